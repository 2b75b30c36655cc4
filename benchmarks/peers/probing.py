"""Linear probes by hand: one `torch.optim.LBFGS` a probe, in the peers' environment.

    {"op": "data", "file": NPZ}                     x [layer, example, feature], labels [example]
    {"op": "fit", "probes": [[layer, l2, [example, ...]], ...]}

`fit` standardises the examples that train, minimises mean cross-entropy plus `l2 / 2 ‖w‖²`,
and answers with each probe's training loss without the penalty.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from serving import serve
from torch.nn.functional import binary_cross_entropy_with_logits


class Worker:
    """Fits probes to the arrays it was given."""

    def take(self, file: str) -> dict[str, Any]:
        """Take activations and labels."""
        with np.load(Path(file)) as arrays:
            self.x = torch.from_numpy(arrays["x"])
            self.labels = torch.from_numpy(arrays["labels"].astype(np.float32))
        return {"layers": len(self.x)}

    def fit(self, probes: list[tuple[int, float, list[int]]]) -> dict[str, Any]:
        """Fit one probe after another."""
        started = time.perf_counter()
        losses = [self._fit(layer, l2, rows) for layer, l2, rows in probes]
        return {"seconds": time.perf_counter() - started, "losses": losses}

    def _fit(self, layer: int, l2: float, rows: list[int]) -> float:
        x, labels = self.x[layer, rows], self.labels[rows]
        x = (x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-9)
        weights = torch.zeros(x.shape[1], requires_grad=True)
        bias = torch.zeros((), requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weights, bias], max_iter=200, tolerance_grad=1e-4, line_search_fn="strong_wolfe"
        )

        def loss() -> torch.Tensor:
            return binary_cross_entropy_with_logits(x @ weights + bias, labels)

        def objective() -> torch.Tensor:
            optimizer.zero_grad()
            value = loss() + l2 / 2 * weights.square().sum()
            value.backward()
            return value

        optimizer.step(objective)
        with torch.no_grad():
            return float(loss())


if __name__ == "__main__":
    worker = Worker()
    serve({"data": worker.take, "fit": worker.fit})
