"""The memory that work may take in addition to the model."""

import os

import jax


def device_memory() -> int:
    """Return the bytes of a device of this machine.

    The devices of a processor have equal parts of the machine's memory.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return stats.get("bytes_limit", machine // jax.local_device_count())


def default_memory() -> int:
    """Return a quarter of a device's memory in bytes."""
    return device_memory() // 4
