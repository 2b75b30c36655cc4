"""Running a sweep: two runs, then the plan's chunks one after the other, gathered into a result."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.edits import Edit, as_pytree
from jaxasr_interp.errors import InputError
from jaxasr_interp.forward import check_tokens
from jaxasr_interp.interventions import Interchange
from jaxasr_interp.metrics import Metric, check_metric
from jaxasr_interp.model import Whisper
from jaxasr_interp.patching import decoder, encoder, full, states
from jaxasr_interp.patching.chunks import Chunk, base_bytes
from jaxasr_interp.patching.decoder import Reached, pack
from jaxasr_interp.patching.landing import base_sites, entry_layer, land
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.reading import Reads, evaluate_runs, read
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.patching.runs import Run, Sites, Utterance, align, run_utterances
from jaxasr_interp.sites import DecoderActivations

METHODS = ("minimal", "vmap", "reference")
DIRECTIONS = ("clean_to_corrupted", "corrupted_to_clean")
_ROWS_READ_TOGETHER = 512


def activation_patching(
    model: Whisper,
    plan: SweepPlan,
    *,
    clean: Utterance,
    corrupted: Utterance,
    metric: Metric | Sequence[Metric],
    edit: Edit | None = None,
    direction: str = "clean_to_corrupted",
    alignment: Sequence[int] | None = None,
    method: str = "minimal",
    on_progress: Callable[[int], None] | None = None,
) -> SweepResult:
    """Patch one run's activations into another, one cell at a time, and read metrics.

    For each cell of the plan: run one utterance with `ã = (1 - α) a + α edit(a)` in that cell,
    where by default `edit(a)` is what the other utterance's run has there.

    Args:
        model: the model.
        plan: from `plan_sweep`.
        clean: the run in which the behaviour of interest happens.
        corrupted: the run in which it does not.
        metric: one or several of `jaxasr_interp.metrics`.
        edit: what a patch does instead of an interchange: one of `jaxasr_interp.interventions`, or
            any `edit(site, layer, value) -> value`.
        direction: `"clean_to_corrupted"` patches the corrupted run, `"corrupted_to_clean"` the
            clean one.
        alignment: for runs of different length: for each position of the patched run, the position
            of the other run that it is compared and exchanged with.
        method: `"minimal"` computes only what a patch can change; `"vmap"` runs the patched stack
            and all after it from the beginning, many patches together; `"reference"` does the same
            one patch at a time. The numbers are the same.
        on_progress: called with the number of patches done, now and then.

    Returns:
        The metrics under every patch, and those of the clean and corrupted run.

    Raises:
        InputError: runs of different length without an alignment, a metric that reads what the runs
            do not have, an edit that does not fit the plan, or an unknown method or direction.

    Source: Meng et al. 2022 (causal tracing); Vig et al. 2020 (interchange of activations).
    """
    return activation_patching_batch(
        model,
        plan,
        clean=[clean],
        corrupted=[corrupted],
        metric=[metric],
        edit=edit,
        direction=direction,
        alignment=alignment,
        method=method,
        on_progress=on_progress,
    )[0]


def activation_patching_batch(
    model: Whisper,
    plan: SweepPlan,
    *,
    clean: Sequence[Utterance],
    corrupted: Sequence[Utterance],
    metric: Sequence[Metric | Sequence[Metric]],
    edit: Edit | None = None,
    direction: str = "clean_to_corrupted",
    alignment: Sequence[int] | None = None,
    method: str = "minimal",
    on_progress: Callable[[int], None] | None = None,
) -> list[SweepResult]:
    """`activation_patching` for several pairs of utterances of equal length, swept together.

    Args:
        model: see `activation_patching`.
        plan: see `activation_patching`; made for any of the runs that are patched.
        clean: the clean run of each pair.
        corrupted: the corrupted run of each pair.
        metric: the metrics of each pair, of the same kinds in the same order.
        edit: see `activation_patching`; the same for all pairs.
        direction: see `activation_patching`.
        alignment: see `activation_patching`.
        method: see `activation_patching`.
        on_progress: called with the number of cells done in all pairs.

    Returns:
        One result for each pair.

    Raises:
        InputError: see `activation_patching`; also pairs whose number or metrics differ.
    """
    if method not in METHODS:
        raise InputError(f"Unknown method {method!r}: choose one of {', '.join(METHODS)}.")
    if direction not in DIRECTIONS:
        raise InputError(f"Unknown direction {direction!r}: choose one of {', '.join(DIRECTIONS)}.")
    lists = [[one] if not isinstance(one, Sequence) else list(one) for one in metric]
    if not len(clean) == len(corrupted) == len(lists) or not lists:
        raise InputError(
            f"There are {len(clean)} clean runs, {len(corrupted)} corrupted ones and {len(lists)} "
            "sets of metrics: give one of each for every pair."
        )
    metrics = _stack_metrics(lists, plan, model.config.d_vocab)
    into_corrupted = direction == "clean_to_corrupted"
    patched, other = (corrupted, clean) if into_corrupted else (clean, corrupted)
    aligned = _check_lengths(model, plan, patched, other, alignment)
    reads = Reads.of(lists[0], plan.n_tokens)
    plan = dataclasses.replace(plan, reads=len(reads.pos))
    base, edits, other_logits = _prepare(model, plan, patched, other, aligned, reads, edit, method)
    base_logits = base.logits
    clean_logits = other_logits if into_corrupted else base_logits
    baselines = [
        np.asarray(evaluate_runs(metrics, reads, logits, clean_logits))
        for logits in (base_logits, other_logits)
    ]
    sweep = _Sweep(model, plan, base, edits, metrics, reads, clean_logits)
    values = _gather(sweep, method, on_progress)
    names = tuple(one.name for one in lists[0])
    corrupted_values, clean_values = baselines if into_corrupted else baselines[::-1]
    shape = (len(names), *plan.axes.values())
    return [
        SweepResult(
            plan,
            names,
            values[i].T.reshape(shape),
            clean_values[i],
            corrupted_values[i],
            direction,
        )
        for i in range(len(lists))
    ]


def _prepare(
    model: Whisper,
    plan: SweepPlan,
    patched: Sequence[Utterance],
    other: Sequence[Utterance],
    aligned: Int[np.ndarray, " pos"],
    reads: Reads,
    edit: Edit | None,
    method: str,
) -> tuple[Run, Edit, Float[Array, "batch read d_vocab"]]:
    """Run all utterances once: the runs to patch, each one's edit, and the other runs' logits."""
    swept = frozenset(plan.sites)
    kept = base_sites(plan.stack, swept) if method == "minimal" else Sites()
    given = Sites.of(plan.stack, swept) if edit is None else Sites()
    source = run_utterances(model, other, given, aligned[reads.pos].astype(np.int32))
    same_audio = all(a.mel is b.mel for a, b in zip(patched, other, strict=True))
    states = source.states if same_audio and plan.stack == "decoder" else None
    base = run_utterances(model, patched, kept, reads.pos, states)
    if edit is not None:
        edits = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(patched)), as_pytree(edit))
        return base, edits, source.logits
    acts = source.acts(plan.stack)
    if isinstance(acts, DecoderActivations) and not _is_straight(aligned, other):
        acts = jax.vmap(lambda one: align(one, aligned))(acts)
    return base, Interchange(acts), source.logits


def _is_straight(aligned: Int[np.ndarray, " pos"], other: Sequence[Utterance]) -> bool:
    return np.array_equal(aligned, np.arange(len(other[0].tokens)))


def _stack_metrics(
    lists: Sequence[Sequence[Metric]], plan: SweepPlan, d_vocab: int
) -> tuple[Metric, ...]:
    """The pairs' metrics as one tuple whose arrays have a leading axis for the pairs."""
    if not lists[0]:
        raise InputError("There is no metric to read: give at least one.")
    names = [one.name for one in lists[0]]
    if len(set(names)) < len(names):
        raise InputError(f"Two metrics have the same name in {names}: name each apart.")
    for one in [one for some in lists for one in some]:
        check_metric(one, plan.n_tokens, d_vocab)
    kinds = {jax.tree.structure(tuple(some)) for some in lists}
    if len(kinds) > 1:
        raise InputError("The pairs' metrics differ in kind or position: give all the same.")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tuple(some) for some in lists))


def _check_lengths(
    model: Whisper,
    plan: SweepPlan,
    patched: Sequence[Utterance],
    other: Sequence[Utterance],
    alignment: Sequence[int] | None,
) -> Int[np.ndarray, " pos"]:
    """The other run's position for each position of the patched run."""
    lengths = [
        {len(check_tokens(model.config, run.tokens)) for run in runs} for runs in (patched, other)
    ]
    if lengths[0] != {plan.n_tokens} or len(lengths[1]) != 1:
        raise InputError(
            f"The plan is for runs of {plan.n_tokens} tokens; the patched ones have "
            f"{sorted(lengths[0])} and the others {sorted(lengths[1])}: each kind must be of one "
            "length, the patched ones of the plan's."
        )
    (length,) = lengths[1]
    if alignment is None:
        if length != plan.n_tokens:
            raise InputError(
                f"The patched run has {plan.n_tokens} tokens and the other {length}: give an "
                "alignment, the other run's position for each of the patched run's."
            )
        return np.arange(length)
    positions = np.asarray(alignment)
    if positions.shape != (plan.n_tokens,) or not ((positions >= 0) & (positions < length)).all():
        raise InputError(
            f"The alignment {list(alignment)} does not give one of the other run's {length} "
            f"positions for each of the {plan.n_tokens}."
        )
    return positions


@dataclasses.dataclass(frozen=True)
class _Sweep:
    """What every chunk of a sweep shares; arrays have a leading axis for the pairs of runs."""

    model: Whisper
    plan: SweepPlan
    base: Run
    edits: Edit
    metrics: tuple[Metric, ...]
    reads: Reads
    clean_logits: Float[Array, "batch read d_vocab"]

    @property
    def utterances(self) -> int:
        return len(self.base.tokens)

    def minimal(self, chunks: Sequence[Chunk], together: int) -> list[Array]:
        """Only what the patches change; the last rows of several chunks are read together."""
        reached = [self._reach(chunk) for chunk in chunks]
        past = [np.asarray(self._is_past(chunk)) for chunk in chunks]
        idle = together - len(chunks)
        return read(
            self.model.decoder,
            self.base,
            tuple(reached + reached[-1:] * idle),
            tuple(past + past[-1:] * idle),
            self.metrics,
            self.reads,
            self.clean_logits,
            batch=self._read_at_once(),
        )

    def batched(self, chunks: Sequence[Chunk], together: int) -> list[Array]:
        """A run of its own for every patch, all of a chunk together."""
        shared = (self.metrics, self.reads, self.clean_logits)
        where = {"stack": self.plan.stack}
        return [
            full.run_batched(
                self.model, self.base, self.edits, chunk.cells, *shared, site=chunk.site, **where
            )
            for chunk in chunks
        ]

    def one_by_one(self, chunks: Sequence[Chunk], together: int) -> list[Array]:
        """A run of its own for every patch, one after the other."""
        return [
            jnp.stack([self._run_each(chunk, index) for index in range(self.utterances)])
            for chunk in chunks
        ]

    def groups(self, method: str) -> Iterator[tuple[list[Chunk], int]]:
        """Chunks of one shape whose rows are read together, and how many that are at most."""
        chunks = self.plan.chunks(method, self.utterances)
        for site in self.plan.sites:
            some = [chunk for chunk in chunks if chunk.site == site]
            if not some:
                continue
            rows = some[0].size * len(self.reads.pos) * self.utterances
            most = max(1, _ROWS_READ_TOGETHER // rows) if method == "minimal" else 1
            n_groups = -(-len(some) // most)
            size = -(-len(some) // n_groups)
            for start in range(0, len(some), size):
                yield some[start : start + size], size

    def _read_at_once(self) -> int:
        """Patches whose logits fit the memory."""
        left = self.plan.memory - base_bytes(self.plan, self.utterances)
        row = 4 * self.clean_logits.dtype.itemsize * self.plan.config.d_vocab
        return max(1, left // (row * len(self.reads.pos) * self.utterances))

    def _run_each(self, chunk: Chunk, index: int) -> Array:
        pairs = (self.base, self.edits, self.metrics, self.clean_logits)
        base, edit, metrics, clean = jax.tree.map(lambda leaf: leaf[index], pairs)
        where = {"stack": self.plan.stack, "site": chunk.site}
        return jnp.stack(
            [
                full.run_patched(self.model, base, edit, cell, metrics, self.reads, clean, **where)
                for cell in chunk.each()
            ]
        )

    def _is_past(self, chunk: Chunk) -> bool:
        """Whether the chunk's rows come out of the last layer already."""
        layers = self.model.config.decoder_layers
        return self.plan.stack == "encoder" or entry_layer(chunk.site, chunk.layer) == layers

    def _reach(self, chunk: Chunk) -> Reached:
        model, base, edits, reads = self.model, self.base, self.edits, self.reads.pos
        if chunk.site == "ln_final":
            return _finished(
                model,
                states.propagate(model.decoder, base, edits, chunk.cells, reads, width=chunk.width),
            )
        layer, entry = np.int32(chunk.layer), np.int32(entry_layer(chunk.site, chunk.layer))
        blocks = (model.encoder if self.plan.stack == "encoder" else model.decoder).blocks
        entries = land(blocks, base, edits, chunk.cells, layer, site=chunk.site, width=chunk.width)
        if self.plan.stack == "encoder":
            return _finished(
                model, encoder.propagate(model, base, entries, entry, chunk.cells, reads)
            )
        packing = pack(chunk, self.plan.n_tokens, everywhere=self.plan.counts_frames)
        return decoder.propagate(model.decoder, base, entries, entry, packing, reads)


def _finished(model: Whisper, resid: Float[Array, "batch patch read d_model"]) -> Reached:
    heads = model.config.decoder_heads
    z = jnp.zeros((*resid.shape[:-1], heads, resid.shape[-1] // heads), resid.dtype)
    return Reached(resid, z)


def _gather(
    sweep: _Sweep, method: str, on_progress: Callable[[int], None] | None
) -> Float[np.ndarray, "batch cell metric"]:
    """Run all chunks and put their values in the sweep's order."""
    run = {"minimal": sweep.minimal, "vmap": sweep.batched, "reference": sweep.one_by_one}[method]
    shape = (sweep.utterances, sweep.plan.size, len(sweep.metrics))
    values, done = np.full(shape, np.nan, sweep.clean_logits.dtype), 0
    for chunks, together in sweep.groups(method):
        for chunk, part in zip(chunks, run(chunks, together), strict=False):
            values[:, chunk.where] = np.asarray(part)[:, : len(chunk.where)]
            done += len(chunk.where)
        if on_progress is not None:
            on_progress(done * sweep.utterances)
    return values
