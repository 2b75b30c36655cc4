"""The command `patch`: sweeps that copy one run's activations into another, cell by cell."""

from pathlib import Path

from jaxasr_interp.cli import options, pairs
from jaxasr_interp.cli.pair_sweeps import Output, PairRequest, Swept, sweep_pair
from jaxasr_interp.cli.selection import Selection
from jaxasr_interp.cli.sweeps import partial_file
from jaxasr_interp.patching.sweep import SweepOptions


def patch(
    clean: pairs.CleanArgument,
    corrupted: pairs.CorruptedArgument,
    model: options.ModelOption = "tiny.en",
    dtype: options.DtypeOption = None,
    language: options.LanguageOption = None,
    text: pairs.TextOption = None,
    word: pairs.WordOption = None,
    site: options.SweptSiteOption = None,
    positions: options.PositionsOption = None,
    window: options.WindowOption = None,
    alpha: options.AlphaOption = "1",
    direction: options.DirectionOption = "clean_to_corrupted",
    metric: options.MetricOption = None,
    memory: options.MemoryOption = None,
    plan_only: options.PlanOption = False,
    out: pairs.OutOption = Path("runs/patch"),
    as_json: options.JsonOption = False,
    as_csv: options.CsvOption = False,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Patch activations of one clip's run into another's, and see which restore its words.

    If the transcripts of two clips agree up to one word, the sweep shows which activations decide
    that word. With one clip and noise or silence, both runs take the clip's transcript, and the
    sweep shows which activations make the model predict the last word, or --word. Decoder sites
    (default: resid_pre) are swept over tokens, encoder sites over time.
    """
    pair = pairs.Pair.read(clean, corrupted, text, word, language)
    sites = site or pairs.DEFAULT_SITES
    cells = Selection.read(sites, positions=positions, window=window, alpha=alpha, memory=memory)
    output = Output(out, plan_only, as_json, as_csv, overwrite)
    names = metric or pair.default_metrics
    request = PairRequest(pair, cells, names, direction, (model, dtype), output)
    how = SweepOptions(
        direction=direction,
        resume=partial_file(out),
    )
    sweep_pair(request, lambda sweep: Swept(sweep.run(how)))
    if not plan_only:
        partial_file(out).unlink(missing_ok=True)
