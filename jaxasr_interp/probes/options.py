"""How probes are fitted: the options that `fit_probes` and `probe_store` share."""

import dataclasses
import math
from collections.abc import Sequence

from jaxasr_interp.errors import InputError

METHODS = ("lbfgs", "adamw", "ridge", "lda")


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How probes are fitted, validated and tested.

    Attributes:
        n_folds: number of folds of the cross-validation, at least 3; by default 5.
        seeds: each deals the examples into folds anew; by default `(0,)`. Kept as a tuple.
        l2: penalties λ to choose from, of mean losses; by default 1e-4, 1e-3, 1e-2, 0.1 and 1.
            scikit-learn's `C` is `1 / (λ · examples)`. AdamW decays the weights with λ instead,
            and LDA adds it to the diagonal of the covariance within classes. Kept as a tuple.
        method: `"lbfgs"` (the default), `"adamw"`, `"ridge"` or `"lda"`.
        n_hidden: units of a hidden layer, which needs AdamW; by default `None`, a linear probe.
        balanced: give all classes the same weight, however many examples they have; by default
            off: all examples have the same weight.
        shuffled: also fit probes to shuffled labels, the control of selectivity; by default on.
        steps: most steps of a search; by default 1000.
        tolerance: a search ends when its last steps leave the objective no more than this share of
            an empty probe's loss to lose, of C classes a C²-th of it; by default 6e-7.
        patience: a search ends after this many steps without a better validation loss, with the
            best probe it met. By default `None`: it goes on until it has converged; AdamW, to its
            last step. The probe of all examples always does so, since no example validates it.
        learning_rate: step size of AdamW; by default 3e-3.

    Raises:
        InputError: an option is outside its range, or the method cannot do what is asked.
    """

    n_folds: int = 5
    seeds: Sequence[int] = (0,)
    l2: Sequence[float] = tuple(float(10.0**power) for power in range(-4, 1))
    method: str = "lbfgs"
    n_hidden: int | None = None
    balanced: bool = False
    shuffled: bool = True
    steps: int = 1000
    tolerance: float = 6e-7
    patience: int | None = None
    learning_rate: float = 3e-3

    def __post_init__(self):
        object.__setattr__(self, "seeds", tuple(map(int, self.seeds)))
        object.__setattr__(self, "l2", tuple(map(float, self.l2)))
        if self.n_folds < 3:
            raise InputError(
                f"There are {self.n_folds} folds: expected at least 3, to train, to validate and "
                "to test."
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(
                f"The seeds are {list(self.seeds)}: expected different numbers from 0 on."
            )
        if not self.l2 or not all(0 < penalty < math.inf for penalty in self.l2):
            raise InputError(f"The penalties l2 are {list(self.l2)}: expected numbers above 0.")
        if self.method not in METHODS:
            raise InputError(f"Unknown method {self.method!r}: choose one of {', '.join(METHODS)}.")
        if self.n_hidden is not None and (self.method != "adamw" or self.n_hidden < 1):
            raise InputError("A hidden layer takes method='adamw' and at least one unit.")
        for name in ("steps", "patience", "tolerance", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}: expected a number above 0.")
