"""A cache on disk, so that later processes need not compile the same programs again."""

import os
from pathlib import Path

import jax


def keep_compiled_programs() -> None:
    """Keep compiled programs on disk, so that later processes need not compile them again.

    They are kept in `jaxasr-interp/xla` in `XDG_CACHE_HOME` or `~/.cache`, unless
    `JAX_COMPILATION_CACHE_DIR` names another folder. The command line does this by itself; a script
    calls it once, before the first computation.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache_dir / "jaxasr-interp" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
