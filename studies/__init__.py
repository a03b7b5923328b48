"""Studies: one experiment.yaml, many trials, an answer with error bars."""
