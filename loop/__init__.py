"""The loop: what is planned, what a round does, and what is told of it."""
