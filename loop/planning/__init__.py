"""What is settled before the first paid step."""
