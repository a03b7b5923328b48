"""The ways of training: what a round's steps are made of, and what is measured of each."""
