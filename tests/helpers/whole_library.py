"""One use of everything that the library computes on a device."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxasr_interp as ji
from jaxasr_interp.checkpoint.convert import abstract_model
from jaxasr_interp.extraction import programs
from jaxasr_interp.extraction.request import parse_request
from jaxasr_interp.generation import transcribe
from jaxasr_interp.lens import tuned_data
from jaxasr_interp.lens.direct import DIRECT_SITES
from jaxasr_interp.lens.tuned_training import LensRows, fit_translators, mean_divergence

SMALL = ji.WhisperConfig(
    n_mels=80, d_vocab=51865, d_model=768, encoder_layers=12, decoder_layers=12, encoder_heads=12,
    decoder_heads=12, encoder_d_mlp=3072, decoder_d_mlp=3072,
)  # fmt: skip
LARGE = ji.WhisperConfig(
    n_mels=128, d_vocab=51866, d_model=1280, encoder_layers=32, decoder_layers=32,
    encoder_heads=20, decoder_heads=20, encoder_d_mlp=5120, decoder_d_mlp=5120,
)  # fmt: skip
TOKENS = 32
CLIPS = 4
OPTIONS = ji.PlanOptions(memory=4 * 10**9)


def zero_model(config: ji.WhisperConfig, dtype: str, tokenizer: ji.Tokenizer) -> ji.Whisper:
    """A model of some shape whose parameters are all zero."""
    abstract = abstract_model(config, dtype)
    model = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)
    model.tokenizer = tokenizer
    return model


def use_everything(model: ji.Whisper) -> None:
    """Call the library's functions once each, with clips of 30 s and 32 tokens."""
    c, tokenizer = model.config, model.tokenizer
    assert tokenizer is not None
    mel = ji.log_mel_spectrogram(np.ones(480_000, np.float32), c.n_mels)
    tokens = jnp.asarray([*tokenizer.prompt(), *range(TOKENS - 4)], jnp.int32)
    states = ji.encode(model, mel).states
    run = ji.decode(model, tokens, states, sites=DIRECT_SITES)
    sweeps(model, mel, tokens)
    lenses(model, mel, run, states, tokens)
    generation(model, states)
    extraction(model, mel, tokens)
    probes()


def sweeps(model: ji.Whisper, mel: jax.Array, tokens: jax.Array) -> None:
    """Exact sweeps of every kind, and attribution."""
    runs = {"clean": ji.Utterance(mel, tokens), "corrupted": ji.Utterance(mel, tokens)}
    metric = [ji.metrics.log_prob(1), ji.metrics.kl()]
    for method, plan in (
        ("minimal", {"site": ["resid_pre", "mlp_out"]}),
        ("minimal", {"site": "z", "heads": "each"}),
        ("minimal", {"site": "cross_v", "positions": "0:1500:50"}),
        ("minimal", {"stack": "encoder", "site": "resid_pre", "positions": "0:1500:50"}),
        ("minimal", {"stack": "encoder", "site": "ln_final", "positions": "0:1500:50"}),
        ("vmap", {"site": "resid_pre"}),
        ("reference", {"site": "resid_pre", "layers": [3], "positions": [5]}),
    ):
        ji.activation_patching(
            model,
            ji.plan_sweep(model, tokens=tokens, options=OPTIONS, **plan),
            **runs,
            metric=metric,
            options=ji.SweepOptions(method=method),
        )
    for plan in ({"site": ["resid_pre", "z"]}, {"stack": "encoder", "site": "resid_pre"}):
        ji.attribution_patching(
            model, ji.plan_sweep(model, tokens=tokens, **plan), **runs, metric=metric
        )


def lenses(
    model: ji.Whisper, mel: jax.Array, run: ji.DecoderRun, states: jax.Array, tokens: jax.Array
) -> None:
    """Lenses, the step that trains one, and the parts of a logit."""
    ji.logit_lens(model, run)
    ji.direct_logit_attribution(model, run, tokens, tokens)
    ji.encoder_lens(model, mel, choice=ji.Choice(max_new_tokens=8))
    tuned_data._run(model.decoder, states, tokens)
    training = ji.LensTraining(steps=1)
    n, c = training.batch_size, model.config
    rows = LensRows(
        np.zeros((n, c.decoder_layers - 1, c.d_model), jnp.bfloat16),
        np.zeros((n, c.d_model), np.float32),
        np.zeros(n, np.float32),
    )
    translators, _ = fit_translators(model, rows, training)
    mean_divergence(model, translators, rows, n)
    ji.tuned_lens(model, run, translators)


def generation(model: ji.Whisper, states: jax.Array) -> None:
    """Transcripts of a clip under the edits of 12 heads, of several clips, and by other loops."""
    edits = [ji.At(ji.Zero(), 3, head=head, site="z") for head in range(12)]
    choice = ji.Choice(max_new_tokens=24)
    ji.generate_rows(model, states[None], [edits], choice=choice)
    ji.generate_batch(model, jnp.stack([states] * CLIPS), choice=choice)
    ji.generate(model, states, choice=ji.Choice(max_new_tokens=24, beam_size=5))
    ji.generate_fixed(model, states, choice=choice)
    ji.detect_language(model, states)


def extraction(model: ji.Whisper, mel: jax.Array, tokens: jax.Array) -> None:
    """Mean activations of several clips."""
    mels, texts = jnp.stack([mel] * CLIPS), jnp.stack([tokens] * CLIPS)
    frames, said = (
        (jnp.asarray([[0, stop]] * CLIPS, jnp.int32),) for stop in (len(mel[0]) // 2, TOKENS)
    )
    of_encoder, of_decoder = (
        (parse_request(f"{stack}.resid_post:mean"),) for stack in ("encoder", "decoder")
    )
    states, _ = programs.encode_reduced(model.encoder, mels, frames, requests=of_encoder)
    programs.decode_reduced(model.decoder, states, texts, said, requests=of_decoder)
    transcribe.encode_batch(model.encoder, mels)


def probes() -> None:
    """Linear probes of one layer by every method."""
    x, y = np.ones((1, 500, 768), np.float32), np.arange(500) % 2
    for method in ("lbfgs", "adamw", "lda"):
        ji.fit_probes(x, y, options=ji.FitOptions(method=method))
