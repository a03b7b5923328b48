"""What the settings are made of: their groups, the config file, what a task's name says."""
