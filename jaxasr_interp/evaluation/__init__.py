"""Metrics of transcripts: errors, repetition loops, and confidence intervals."""
