"""What is done to a run, where, and how it is written."""
