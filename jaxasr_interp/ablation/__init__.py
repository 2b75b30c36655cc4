"""Ablation sweeps on text: transcripts of many clips under many interventions."""
