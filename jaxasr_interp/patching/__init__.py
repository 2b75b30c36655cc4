"""Activation patching: plan a sweep, run only what its patches change, keep named results."""
