"""Measurement of the invariants of sweeps on a model and clip."""
