"""The arrows of the loop, one a file: train, keep, evaluate, decide, find, send, select."""
