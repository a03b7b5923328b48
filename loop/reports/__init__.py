"""What is told of a run: on the screen, in its report, and of checkpoints side by side."""
