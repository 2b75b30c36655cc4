"""Work whose inputs, settings or functions changed is not gone on with."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import jaxasr_interp as ji
from helpers.by_hand import brief_clips
from helpers.extracting import extract_with
from helpers.files import sound
from helpers.functions import times
from helpers.sweeps import plan_of
from jaxasr_interp.runtime import identity
from jaxasr_interp.runtime.identity import digest


def heavier(model):
    """A copy of the model with one parameter changed in its last bit, of the same name."""
    copy = jax.tree.map(lambda leaf: leaf, model)
    copy.generation, copy.tokenizer, copy.source = model.generation, model.tokenizer, model.source
    bias = copy.decoder.final_norm.bias[...]
    copy.decoder.final_norm.bias[...] = bias.at[0].set(jnp.nextafter(bias[0], jnp.inf))
    return copy


def test_what_cannot_be_known_again_is_refused(tiny, utterances, tmp_path):
    class Callable:
        def __call__(self, site, layer, value):
            return value

    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=corrupted.tokens)
    runs = {"clean": clean, "corrupted": corrupted, "metric": ji.metrics.entropy()}
    with pytest.raises(ji.InputError, match=r"The edit holds a .*Callable, which cannot be known"):
        ji.activation_patching(
            tiny, plan, **runs, edit=Callable(), options=ji.SweepOptions(resume=tmp_path / "a.npz")
        )
    with (tmp_path / "file").open("w") as file, pytest.raises(ji.InputError, match="TextIOWrapper"):
        digest(lambda: file)


def sweep(model, utterances, path, **change):
    clean, corrupted = utterances
    plan = {
        name: change.pop(name)
        for name in ("site", "layers", "alpha", "positions")
        if name in change
    }
    options = {
        "clean": clean,
        "corrupted": corrupted,
        "metric": ji.metrics.custom(lambda logits: logits[-1, 0]),
        "edit": times(2.0),
        **change,
    }
    how = {
        name: options.pop(name) for name in ("direction", "method", "alignment") if name in options
    }
    plan = plan_of(model, tokens=options["corrupted"].tokens, **{"layers": [1], **plan})
    sweep_options = ji.SweepOptions(resume=path, **how)
    return ji.activation_patching(model, plan, **options, options=sweep_options)


def test_a_changed_sweep_is_refused(tiny, utterances, tmp_path, monkeypatch):
    clean, corrupted = utterances
    path = tmp_path / "sweep.npz"
    whole = sweep(tiny, utterances, path)
    written = path.read_bytes()
    tokens = corrupted.tokens.at[-1].add(1)
    changes = [
        ({"site": "resid_mid"}, "plan"),
        ({"layers": [0]}, "plan"),
        ({"alpha": 0.5}, "plan"),
        ({"positions": "0:2"}, "plan"),
        ({"clean": ji.Utterance(clean.mel + 1e-6, clean.tokens)}, "clean"),
        ({"corrupted": ji.Utterance(corrupted.mel, tokens)}, "corrupted"),
        ({"metric": ji.metrics.custom(lambda logits: logits[-1, 1])}, "metric"),
        ({"metric": ji.metrics.log_prob(3)}, "plan, metric"),
        ({"edit": times(3.0)}, "edit"),
        ({"edit": ji.Scale(2.0)}, "edit"),
        ({"edit": None}, "edit"),
        ({"direction": "corrupted_to_clean"}, "direction"),
        ({"method": "vmap"}, "method"),
        ({"alignment": [0, 0, *range(2, len(tokens))]}, "alignment"),
    ]
    for change, what in changes:
        with pytest.raises(ji.InputError, match=rf"of another sweep \({what} differs?\)"):
            sweep(tiny, utterances, path, **change)
    with pytest.raises(ji.InputError, match=r"\(model differs\)"):
        sweep(heavier(tiny), utterances, path)
    with (
        jax.default_matmul_precision("bfloat16"),
        pytest.raises(ji.InputError, match=r"\(precision differs\)"),
    ):
        sweep(tiny, utterances, path)
    with monkeypatch.context() as patch:
        patch.setattr(identity, "major_version", lambda version="": "1000")
        with pytest.raises(ji.InputError, match="version differ"):
            sweep(tiny, utterances, path)
    again = sweep(tiny, utterances, path, on_progress=lambda *done: pytest.fail("computed again"))
    np.testing.assert_array_equal(again.patched, whole.patched)
    assert path.stat().st_size == len(written)


def test_a_changed_sweep_on_text_is_refused(tiny, tmp_path):
    tone, noise = brief_clips()
    soundfile.write(tmp_path / "reference.wav", noise[:2000], 16000)
    clip = ji.Clip("a", tone, "a b c", "en")
    mine = ji.Intervention("mine", decoder=times(2.0))
    edits = [f"mix:decoder.mlp_out@1:ref={tmp_path}/reference.wav", mine]
    path, choice = tmp_path / "texts.zarr", ji.Choice(max_new_tokens=3)

    def swept(model=tiny, clip=clip, edits=edits, choice=choice, on_progress=None):
        options = {"choice": choice, "resume": path, "on_progress": on_progress}
        return ji.ablation_sweep(model, [clip], edits, **options)

    whole = swept()
    silence = dataclasses.replace(tiny.generation, suppress=(1, 2, 3))
    quiet = heavier(tiny)
    quiet.decoder.final_norm.bias[...] = tiny.decoder.final_norm.bias[...]
    quiet.generation = silence
    for change, what in (
        ({"model": heavier(tiny)}, "model"),
        ({"model": quiet}, "model"),
        ({"edits": [edits[0], ji.Intervention("mine", decoder=times(3.0))]}, "edits"),
        ({"edits": [f"{edits[0]}:alpha=0.5", mine]}, "edits"),
        ({"edits": [edits[0], dataclasses.replace(mine, seed=1)]}, "edits"),
        ({"choice": dataclasses.replace(choice, temperature=0.5)}, "choice"),
    ):
        with pytest.raises(ji.InputError, match=rf"of another sweep on text \({what} differs\)"):
            swept(**change)
    soundfile.write(tmp_path / "reference.wav", noise[:1999], 16000)
    with pytest.raises(ji.InputError, match=r"\(edits differs\)"):
        swept()
    soundfile.write(tmp_path / "reference.wav", noise[:2000], 16000)
    assert swept().generated == whole.generated
    # A clip of the same name with other samples is another clip.
    with pytest.raises(ji.InputError, match=r"\(clips differs\)"):
        swept(clip=dataclasses.replace(clip, audio=noise))
    chunks = (file for file in (path / "transcript" / "c").rglob("*") if file.is_file())
    kept = max(chunks, key=lambda file: file.stat().st_size)
    kept.write_bytes(kept.read_bytes()[:-9] + bytes(9))
    with pytest.raises(ji.InputError, match=r"texts.zarr"):
        swept()


@pytest.fixture
def rows(tmp_path):
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", sound(i, 1000), 16000)
    return [{"path": str(tmp_path / f"{i}.wav"), "text": "ab", "lang": "en"} for i in range(2)]


def test_a_changed_extraction_is_refused(tiny32, rows, tmp_path):
    out, options = tmp_path / "a.zarr", {"sites": ["decoder.resid_post:end"], "text": "text"}
    extract_with(tiny32, rows, out, **options)
    whole = ji.open_activations(out).load()
    assert len(set(whole.audio_sha256.values.tolist())) == 2
    for change, what in (
        ({"sites": ["decoder.resid_mid:end"]}, "sites"),
        ({"dtype": "float16"}, "dtype"),
        ({"text": "own"}, "text"),
        ({"language": "de"}, "language"),
        ({"random_seed": 1}, "random_seed"),
        ({"batch_size": 3}, "batch_size"),
        ({"snr": [0]}, "clips, audio"),
    ):
        with pytest.raises(ji.InputError, match=rf"of another extraction \({what} differs?\)"):
            extract_with(tiny32, rows, out, **(options | change))
    with pytest.raises(ji.InputError, match=r"\(clips differs\)"):
        extract_with(tiny32, [rows[0] | {"text": "ac"}, rows[1]], out, **options)
    with pytest.raises(ji.InputError, match=r"\(model differs\)"):
        extract_with(heavier(tiny32), rows, out, **options)
    shutil.copy(rows[0]["path"], tmp_path / "kept.wav")
    soundfile.write(rows[0]["path"], sound(5, 1000), 16000)
    with pytest.raises(ji.InputError, match=r"\(audio differs\)"):
        extract_with(tiny32, rows, out, **options)
    shutil.copy(tmp_path / "kept.wav", rows[0]["path"])
    again = extract_with(tiny32, rows, out, **options)
    assert again.done == 2
    assert ji.open_activations(out).load().identical(whole)


def test_samples_that_changed_are_refused(tiny32, rows, tmp_path):
    def given(factor):
        return [
            {"audio": {"array": factor * sound(i, 1000), "sampling_rate": 16000}, "text": "ab"}
            for i in range(2)
        ]

    options = {"sites": ["encoder.resid_post:mean"]}
    extract_with(tiny32, given(1), tmp_path / "a.zarr", **options)
    extract_with(tiny32, given(1), tmp_path / "a.zarr", **options)
    with pytest.raises(ji.InputError, match=r"\(audio differs\)"):
        extract_with(tiny32, given(2), tmp_path / "a.zarr", **options)


def test_a_changed_training_is_refused(tiny, tmp_path):
    training = ji.LensTraining(steps=2, batch_size=4, held_out=0.5)
    clips = [ji.Clip(str(i), sound(i, 3000), "ab", "en") for i in range(2)]
    whole = ji.train_tuned_lens(tiny, clips, tmp_path, training)
    for change, what in (
        ({"model": heavier(tiny)}, "model"),
        ({"clips": [dataclasses.replace(clips[0], audio=sound(7, 3000)), clips[1]]}, "clips"),
        ({"clips": [dataclasses.replace(clips[0], text="ac"), clips[1]]}, "clips"),
        ({"training": dataclasses.replace(training, learning_rate=0.1)}, "training"),
    ):
        given = {"model": tiny, "clips": clips, "training": training} | change
        with pytest.raises(ji.InputError, match=rf"of another training \({what} differs\)"):
            ji.train_tuned_lens(given["model"], given["clips"], tmp_path, given["training"])
    again = ji.train_tuned_lens(tiny, clips, tmp_path, training)
    np.testing.assert_array_equal(again.translators.weight, whole.translators.weight)
