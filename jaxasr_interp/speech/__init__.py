"""Audio, text and time: the inputs of a run."""
