"""A checkpoint as a folder that other programs load: written, loaded again, and compared."""
