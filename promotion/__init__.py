"""What a checkpoint has to show before the registry takes it, and what comes back of it."""
