"""Audio, text and time: what a run hears and is given."""
