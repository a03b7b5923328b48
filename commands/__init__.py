"""What each command does beside the loop."""
