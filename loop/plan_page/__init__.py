"""What a run will do, on one page before any training."""
