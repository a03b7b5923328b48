"""What a study shows, from records to findings. Pure."""
