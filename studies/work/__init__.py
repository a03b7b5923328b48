"""A study at work: its trials side by side, its record, its table, and what they came to."""
