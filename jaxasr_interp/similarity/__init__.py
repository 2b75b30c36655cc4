"""How similar layers are, and how many directions each of them uses."""
