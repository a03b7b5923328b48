"""Whether a service computes what Tinker documents: what is tried, and what is made of it."""
