"""What must hold of sweeps, measured on a model and clip."""
