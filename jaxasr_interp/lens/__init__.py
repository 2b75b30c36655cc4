"""Lenses, which read a prediction from earlier layers, and attribute it to components."""
