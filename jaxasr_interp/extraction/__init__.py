"""Activations of many clips, reduced on the device and stored: see `extract`."""
