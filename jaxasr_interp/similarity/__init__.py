"""How alike layers are, and how many directions they use."""
