"""What an answer says, and whether it is right: pure functions over text."""
