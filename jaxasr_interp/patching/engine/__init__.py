"""The exact minimal sweep, part by part."""
