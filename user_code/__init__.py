"""Python files of the user's: loaded apart from each other and from ours, with what they import."""
