import argparse
def overhead(args: argparse.Namespace) -> int: return 0
