"""`patch`: sweeps that copy one run's activations into another, cell by cell."""

from pathlib import Path

from jaxasr_interp.cli import options
from jaxasr_interp.cli.pair_sweeps import PairRequest, Swept, sweep_pair
from jaxasr_interp.cli.pairs import (
    DEFAULT_SITES,
    CleanArgument,
    CorruptedArgument,
    OutOption,
    Pair,
    TextOption,
    WordOption,
)
from jaxasr_interp.cli.selection import Selection
from jaxasr_interp.cli.sweeps import partial_file
from jaxasr_interp.patching.sweep import SweepOptions, check_method


def patch(
    clean: CleanArgument,
    corrupted: CorruptedArgument,
    model: options.ModelOption = "tiny.en",
    dtype: options.DtypeOption = None,
    language: options.LanguageOption = None,
    text: TextOption = None,
    word: WordOption = None,
    site: options.SweptSiteOption = None,
    positions: options.PositionsOption = None,
    window: options.WindowOption = None,
    alpha: options.AlphaOption = "1",
    direction: options.DirectionOption = "clean_to_corrupted",
    metric: options.MetricOption = None,
    method: options.MethodOption = "minimal",
    memory: options.MemoryOption = None,
    resume: options.ResumeOption = False,
    plan_only: options.PlanOption = False,
    out: OutOption = Path("runs/patch"),
    as_json: options.JsonOption = False,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Patch activations of one clip's run into another's, and see which bring its words back.

    Two clips that are heard alike up to one word: the sweep asks what decides that word. One clip
    and noise or silence: both runs are given its transcript, and the sweep asks what makes the
    model hear the last word, or --word. Decoder sites, by default resid_pre, are swept over tokens,
    those of the encoder over time.
    """
    pair = Pair.read(clean, corrupted, text, word, language)
    request = PairRequest(
        pair=pair,
        selection=Selection.read(
            site or DEFAULT_SITES, positions=positions, window=window, alpha=alpha, memory=memory
        ),
        metrics=metric or pair.default_metrics,
        direction=direction,
        model=model,
        dtype=dtype,
        plan_only=plan_only,
        out=out,
        as_json=as_json,
        overwrite=overwrite,
    )
    options = SweepOptions(
        direction=direction,
        method=check_method(method),
        resume=partial_file(out) if resume else None,
    )
    sweep_pair(request, lambda sweep: Swept(sweep.run(options)))
