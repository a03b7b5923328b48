"""Rows of any format as examples and datums: sources, words, quality, contamination, rendering."""
