"""Lenses: what the model would say if it stopped at an earlier layer, and what makes it say so."""
