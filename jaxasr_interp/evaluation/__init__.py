"""How transcripts are compared with what was said."""
