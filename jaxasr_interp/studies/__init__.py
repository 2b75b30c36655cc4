"""Experiments on many clips, one file each."""
