"""The report of a study, from findings to its files."""
