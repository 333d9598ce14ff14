"""Torch modules and losses: on single slices (cnn) and over the slices of a study (sequence)."""
