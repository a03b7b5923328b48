"""Files that survive a kill, a power cut and a full disk, and JSON that may be anybody's."""
