"""Studies: one experiment.yaml, many trials, and what is generated and checked of them."""
