"""Scores and what follows from them: intervals, power, decision, diagnosis; no edge is touched."""
