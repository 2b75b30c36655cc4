"""The memory that work may take in addition to the model."""

import os

import jax


def default_memory() -> int:
    """Return a quarter of the device's memory in bytes; on a processor, of the machine's."""
    stats = jax.devices()[0].memory_stats() or {}
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return stats.get("bytes_limit", machine) // 4
