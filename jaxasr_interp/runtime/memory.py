"""How much memory work may take beside the model."""

import os

import jax


def default_memory() -> int:
    """A quarter of the device's memory in bytes, or of the machine's where it is the processor."""
    stats = jax.devices()[0].memory_stats() or {}
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return stats.get("bytes_limit", machine) // 4
