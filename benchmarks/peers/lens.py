"""The logit lens by hand: eager PyTorch, one layer's logits after another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from job import Stopwatch
from torch import Tensor
from transformers import WhisperForConditionalGeneration


@dataclass(frozen=True)
class States:
    """What the lens reads: `hidden` [layer, pos, d_model], and a target token for each position."""

    hidden: Tensor
    targets: Tensor


def read_states(file: Path, device: torch.device, dtype: torch.dtype) -> States:
    """Read the arrays of an `.npz` onto the device."""
    with np.load(file) as arrays:
        hidden = torch.from_numpy(arrays["hidden"]).to(device, dtype)
        targets = torch.from_numpy(arrays["targets"].astype(np.int64)).to(device)
    return States(hidden, targets)


def logit_lens(
    model: WhisperForConditionalGeneration, states: States, top_k: int, clock: Stopwatch
) -> dict[str, list[Any]]:
    """The same statistics as ours of every layer, the last layer's distribution computed once."""
    rows = []
    with clock.part("lens"):
        final = _log_probs(model, states.hidden[-1])
        p_final = final.exp()
        for hidden in states.hidden[:-1]:
            rows.append(_read(_log_probs(model, hidden), final, p_final, states.targets, top_k))
        rows.append(_read(final, final, p_final, states.targets, top_k))
    return {name: torch.stack([row[name] for row in rows]).tolist() for name in rows[0]}


def _log_probs(model: WhisperForConditionalGeneration, hidden: Tensor) -> Tensor:
    logits = model.proj_out(model.model.decoder.layer_norm(hidden))
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _read(
    log_p: Tensor, final: Tensor, p_final: Tensor, targets: Tensor, top_k: int
) -> dict[str, Tensor]:
    top_log_probs, top_tokens = log_p.topk(top_k)
    own = log_p.gather(-1, targets[:, None])
    return {
        "top_tokens": top_tokens,
        "top_log_probs": top_log_probs,
        "target_log_prob": own[:, 0],
        "target_rank": (log_p > own).sum(-1),
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "kl": (p_final * (final - log_p)).sum(-1),
    }
