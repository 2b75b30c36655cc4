"""Extraction of activations of many clips, which are reduced on the device and stored."""
