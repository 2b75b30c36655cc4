"""Transcripts of many clips under many interventions."""
