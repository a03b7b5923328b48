"""What is measured on a checkpoint: question files, Inspect tasks, held-out losses."""
