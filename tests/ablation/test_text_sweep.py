"""Sweeps on text: every cell against that clip alone under that edit, and what is counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.by_hand import brief_clips, briefly
from helpers.generating import louder
from helpers.sweeps import counted
from jaxasr_interp.ablation import work as text_work
from jaxasr_interp.speech.noise import noise_like

CHOICE = ji.Choice(max_new_tokens=6)
LIGHT = [
    "zero:decoder.mlp_out@0",
    "zero:decoder.mlp_out@2:alpha=0.5",
    "scale:decoder.cross_z@1.0:factor=-3",
    "zero:decoder.mlp_out@1:step=2..4",
    "zero:decoder.embed:pos=5..7",
]
"""Single components that are edited row by row: they are made alike."""
HEAVY = [
    "zero:decoder.mlp_out@0 + zero:decoder.cross_attn_out@2",
    "zero:decoder.mlp_out@1 + zero:decoder.cross_attn_out@0",
    "scale:decoder.cross_v@1:factor=-2",
    "mix:decoder.resid_post@1:ref=noise",
    "mix:decoder.resid_post@0:ref=noise:alpha=0.5",
    "mix:decoder.resid_post@0:ref=noise:seed=1",
    "mix:decoder.resid_post@1:ref=silence",
    "zero:encoder.mlp_out@0",
    "zero:encoder.mlp_out@1",
    "zero:encoder.mlp_out@0:alpha=0.5 + zero:decoder.mlp_out@1",
    "mix:encoder.resid_post@0:ref=noise",
    "mix:encoder.resid_post@0:ref=noise + mix:decoder.resid_post@2:alpha=0.5:ref=noise",
]


@pytest.fixture
def model(tiny):
    """English and German change places, so that German is what it detects."""
    embed, pair = tiny.decoder.embed[...], np.array([32, 33])
    tiny.decoder.embed[...] = embed.at[pair].set(embed[pair[::-1]])
    return louder(tiny)


@pytest.fixture
def hears():
    return briefly


@pytest.fixture
def clips():
    tone, noise = brief_clips()
    return [
        ji.Clip("tone", tone, "a b c"),
        ji.Clip("noise", noise, None, "en"),
        ji.Clip("short", noise[:2000] - tone[:2000], "", "german"),
    ]


def write_alone(model, hears, clip, text):
    """One clip under one edit: encode, then generate."""
    edit = ji.parse_edit(text, model) if text else ji.Intervention("")
    mel, acts, reference = hears(clip.audio, 8), None, None
    language = clip.language or next(iter(ji.detect_language(model, ji.encode(model, mel).states)))
    prompt = model.tokenizer.prompt(language)
    decoder = edit.decoder_edit(len(prompt))
    if edit.reference is not None:
        silent = np.zeros_like(clip.audio)
        heard = silent if edit.reference == "silence" else noise_like(clip.audio, edit.seed)
        beside = ji.encode(model, hears(heard, 8), sites="all")
        acts = beside.acts
        reference = beside.states if decoder.needs_reference else None
    states = ji.encode(model, mel, edit=edit.encoder, reference=acts).states
    return ji.generate(
        model,
        states,
        prompt=prompt,
        edit=decoder,
        reference=reference,
        choice=ji.Choice(max_new_tokens=6),
    )


def expect_same(found, expected, label):
    assert found.prompt == expected.prompt, label
    assert found.tokens == expected.tokens, label
    assert (found.text, found.finished) == (expected.text, expected.finished), label
    np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.no_speech_prob, expected.no_speech_prob, rtol=1e-9)


@pytest.mark.parametrize(
    "edits", [LIGHT, pytest.param(HEAVY, marks=pytest.mark.slow)], ids=["light", "heavy"]
)
def test_every_cell_is_that_clip_alone_under_that_edit(model, hears, clips, edits):
    done = []
    swept = ji.ablation_sweep(model, clips, edits, choice=CHOICE, on_progress=counted(done))
    assert done == [i * (1 + len(edits)) for i in range(4)]
    assert [one.text for one in swept.interventions] == ["unedited", *edits]
    assert swept.clips == tuple(clips)
    assert swept.languages == ("de", "en", "de")
    for text, row in zip(["", *edits], swept.generated, strict=True):
        for clip, one in zip(clips, row, strict=True):
            expect_same(one, write_alone(model, hears, clip, text), (text, clip.name))
        if text:
            moved = [
                np.abs(np.subtract(a.log_probs, b.log_probs)).max() if a.tokens == b.tokens else 1
                for a, b in zip(row, swept.generated[0], strict=True)
            ]
            assert min(moved) > 1e-4, text


def test_on_an_accelerator_clips_share_a_batch(model, hears, clips, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    done, edits = [], [LIGHT[2], HEAVY[0], *HEAVY[3:5], *HEAVY[7:9]]
    swept = ji.ablation_sweep(model, clips, edits, choice=CHOICE, on_progress=counted(done))
    assert done[-1] == 3 * (1 + len(edits))
    for text, row in zip(["", *edits], swept.generated, strict=True):
        for clip, one in zip(clips, row, strict=True):
            expect_same(one, write_alone(model, hears, clip, text), (text, clip.name))


def test_a_reference_is_heard_once_for_each_clip(model, hears, clips, monkeypatch):
    heard, hear = [], text_work.encode_reference

    def counted(model, clip, reference, seed, sites):
        heard.append((len(clip), reference, seed, frozenset(sites)))
        return hear(model, clip, reference, seed, sites)

    monkeypatch.setattr(text_work, "encode_reference", counted)
    edits = [f"mix:encoder.resid_post@{layer}:ref=noise" for layer in range(2)]
    edits += ["mix:encoder.resid_post@0:ref=noise:alpha=0.5", "mix:decoder.resid_post@1:ref=noise"]
    ji.ablation_sweep(model, clips[1:], edits, choice=ji.Choice(max_new_tokens=1))
    assert len(heard) == len(set(heard)) == 4


class CutOffError(Exception):
    pass


def cut_off(after):
    """Called with what is done; ends the work there."""

    def on_progress(done, total, phase):
        if done == after:
            raise CutOffError

    return on_progress


@pytest.fixture
def generated(monkeypatch):
    """How many clips each call of `generate_rows` writes about."""
    calls, rows = [], text_work.generate_rows

    def counted(model, states, *arguments, **options):
        calls.append(len(states))
        return rows(model, states, *arguments, **options)

    monkeypatch.setattr(text_work, "generate_rows", counted)
    return calls


def test_a_sweep_goes_on_behind_the_last_whole_clip(model, hears, clips, tmp_path, generated):
    edits, partial = LIGHT[:2], tmp_path / "new" / "partial.zarr"
    whole = ji.ablation_sweep(model, clips, edits, choice=CHOICE)
    assert generated == [1, 1, 1]
    options = {"choice": CHOICE, "resume": partial}
    with pytest.raises(CutOffError):
        ji.ablation_sweep(model, clips, edits, on_progress=cut_off(6), **options)
    generated.clear()
    done = []
    resumed = ji.ablation_sweep(model, clips, edits, on_progress=counted(done), **options)
    assert generated == [1]
    assert done == [6, 9]
    assert resumed.generated == whole.generated
    assert resumed.languages == whole.languages
    np.testing.assert_array_equal(resumed.errors, whole.errors)
    generated.clear()
    assert ji.ablation_sweep(model, clips, edits, **options).generated == whole.generated
    assert generated == []
    # A clip is known by its samples and its language, not by its name alone.
    for i, other in enumerate((ji.Clip("tone", clips[1].audio), ji.Clip("noise", clips[1].audio))):
        changed = [*clips[:i], other, *clips[i + 1 :]]
        with pytest.raises(ji.InputError, match=r"another sweep on text \(clips differs\)"):
            ji.ablation_sweep(model, changed, edits, **options)


@pytest.mark.parametrize(
    "change",
    [
        {"interventions": LIGHT[1:3]},
        {"interventions": LIGHT[:1]},
        {"choice": ji.Choice(max_new_tokens=5)},
        {"choice": ji.Choice(suppress=False, max_new_tokens=6)},
        {"resume": "no store"},
    ],
)
def test_what_another_sweep_has_kept_is_refused(model, hears, clips, tmp_path, change, monkeypatch):
    options = {"interventions": LIGHT[:2], "choice": CHOICE, "resume": tmp_path / "partial.zarr"}
    with pytest.raises(CutOffError):
        ji.ablation_sweep(model, clips, on_progress=cut_off(3), **options)
    if "resume" in change:
        other = tmp_path / "other.zarr"
        other.mkdir()
        (other / "zarr.json").write_text(change["resume"])
        change = {"resume": other}
    kept = contents(options["resume"])
    with pytest.raises(
        ji.InputError, match=r"zarr is (of another sweep on text \(.*\): .*remove|no store of)"
    ):
        ji.ablation_sweep(model, clips, **(options | change))
    assert contents(options["resume"]) == kept


def contents(store):
    return {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_what_is_kept_under_another_vector_is_refused(model, hears, clips, tmp_path):
    options = {"choice": CHOICE, "resume": tmp_path / "partial.zarr"}
    edits = [f"add:decoder.mlp_out@1:vector={tmp_path}/v.npy"]
    np.save(tmp_path / "v.npy", np.ones(16))
    whole = ji.ablation_sweep(model, clips[:1], edits, **options)
    np.save(tmp_path / "v.npy", np.full(16, 2.0))
    with pytest.raises(ji.InputError, match="is of another sweep"):
        ji.ablation_sweep(model, clips[:1], edits, **options)
    np.save(tmp_path / "v.npy", np.ones(16))
    assert ji.ablation_sweep(model, clips[:1], edits, **options).generated == whole.generated
    moved = dataclasses.replace(
        ji.parse_edit(edits[0], model), decoder=ji.At(ji.Add(jnp.ones(16)), 1, site="resid_post")
    )
    with pytest.raises(ji.InputError, match="is of another sweep"):
        ji.ablation_sweep(model, clips[:1], [moved], **options)


def test_bad_sweeps_are_named(model, hears, clips):
    a, b = clips[:2]
    for arguments, message in (
        (([a, b, a], LIGHT), "Two clips have the same name: 'tone'"),
        (([a], ["zero:decoder.z@1", "zero:decoder.z@1"]), "Two edits .* 'zero:decoder.z@1'"),
        (([], LIGHT), "at least one clip and one edit"),
        (([a], []), "at least one clip and one edit"),
        (
            ([ji.Clip("long", np.zeros(31 * 16_000, np.float32))], LIGHT),
            "long is longer than 0.24 s",
        ),
        (([a], ["zero:decoder.z@9"]), "no layer 9"),
    ):
        with pytest.raises(ji.InputError, match=message):
            ji.ablation_sweep(model, *arguments)


def test_every_component_has_an_edit(model):
    def texts(*arguments, **options):
        return [one.text for one in ji.component_edits(model, *arguments, **options)]

    sublayers = [f"zero:decoder.{s}@" for s in ("attn_out", "cross_attn_out", "mlp_out")]
    heads = [f"zero:decoder.{s}@" for s in ("z", "cross_z")]
    assert texts() == [
        *(f"{place}{layer}" for place in sublayers for layer in range(3)),
        *(f"{place}{layer}.{head}" for place in heads for layer in range(3) for head in range(2)),
    ]
    assert {text.split("@")[0] for text in texts(stack="encoder")} == {
        f"zero:encoder.{site}" for site in ("attn_out", "mlp_out", "z")
    }
    options = {"sites": ["z", "mlp_out"], "layers": [1], "heads": [0, 3], "alphas": [0.5, 1.0]}
    assert texts("mix:ref=noise", stack="encoder", **options) == [
        "mix:encoder.z@1.0:ref=noise:alpha=0.5",
        "mix:encoder.z@1.3:ref=noise:alpha=0.5",
        "mix:encoder.mlp_out@1:ref=noise:alpha=0.5",
        "mix:encoder.z@1.0:ref=noise",
        "mix:encoder.z@1.3:ref=noise",
        "mix:encoder.mlp_out@1:ref=noise",
    ]
    assert texts(sites=["z", "attn_out"], layers=[0, 2], heads="all") == [
        "zero:decoder.z@0",
        "zero:decoder.z@2",
        "zero:decoder.attn_out@0",
        "zero:decoder.attn_out@2",
    ]
    with pytest.raises(ji.InputError, match="no site 'nose'"):
        texts(sites=["nose"])
    edit = ji.component_edits(model, sites=["z"], layers=[2], heads=[1], alphas=[0.25])[0].decoder
    assert (edit.site, edit.layer, edit.head, edit.alpha) == ("z", 2, 1, 0.25)
