"""A run's directory: its events, its records, and what is found in it again."""
