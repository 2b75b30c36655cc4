"""Compiled programs that outlive the process."""

import os
from pathlib import Path

import jax


def keep_compiled_programs() -> None:
    """Let later processes skip compilation, unless JAX was told where to keep programs.

    They are kept in `jaxasr-interp/xla` in `XDG_CACHE_HOME` or `~/.cache`. The command line does
    this by itself; a script calls it once, before the first computation.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "jaxasr-interp" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
