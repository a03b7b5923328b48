import argparse
def hundred(args: argparse.Namespace) -> int: return 0
