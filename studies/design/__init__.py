"""What a study comes to: experiment.yaml, its trials and arms, their configs and scripts."""
