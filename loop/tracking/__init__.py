"""A ledger told to trackers, beside the run and again after it."""
