"""Interventions: the kinds of edits, the places where they act, and their text form."""
