"""Whisper in Flax, which returns its activations."""
