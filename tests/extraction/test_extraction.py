"""Extraction against plain runs, one clip at a time, pooled by numpy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import xarray

import jaxasr_interp as ji
from helpers.files import sound, write_table
from helpers.golden import GOLDEN, worst
from helpers.real import real_model
from jaxasr_interp.extraction.request import parse_request

PROMPT = 4
# Two lengths, as each is a compilation.
TEXTS = ("abc def", "qx", "go onto", "hi, you", "ab")
WORDS = ("def", "QX", "onto", "hi", "ab")
LENGTHS = (3000, 1650, 3840, 700, 2000)
SITES = (
    "encoder.resid_post:mean",
    "encoder.resid_post:max",
    "encoder.conv1_out:mean",
    "encoder.z:every=2",
    "encoder.ln_final:at=0,-1,20ms",
    "encoder.pattern:all",
    "encoder.mlp_out:word=word",
    "decoder.resid_post:mean",
    "decoder.resid_post:end",
    "decoder.resid_mid:max",
    "decoder.cross_attn_out:at=4,-1",
    "decoder.ln_final:all",
    "decoder.resid_pre:every=3",
    "decoder.pattern:mean",
    "decoder.cross_k:mean",
    "decoder.logits:end",
    "decoder.mlp_out:word=word",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of clips that fill different parts of the tiny model's 0.24 s, and its rows."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for i, (text, word, length) in enumerate(zip(TEXTS, WORDS, LENGTHS, strict=True)):
        soundfile.write(folder / f"{i}.wav", sound(i, length), 16000, subtype="FLOAT")
        rows.append({"path": f"{i}.wav", "text": text, "word": word, "lang": "en"})
    return folder, rows


def heard(model, folder, row):
    """Spectrogram, frames and tokens of one clip, by the library's plain functions."""
    audio = ji.load_audio(folder / row["path"])
    config = model.config
    mel = ji.log_mel_spectrogram(audio, config.n_mels, config.mel_frames)
    text = model.tokenizer.encode(" " + row["text"])
    tokens = [*model.tokenizer.prompt(row["lang"]), *text, model.tokenizer.end_of_text]
    return mel, -(-len(audio) // 320), tokens


def behind(values: np.ndarray, stop: int, axis: int = 1) -> np.ndarray:
    """NaN from position `stop` on."""
    values = np.moveaxis(values.copy(), axis, 0)
    values[stop:] = np.nan
    return np.moveaxis(values, 0, axis)


def expected(model, folder, row) -> dict[str, np.ndarray]:
    """What each of `SITES` is for one clip."""
    mel, n, tokens = heard(model, folder, row)
    encoder = ji.encode(model, mel, sites="all")
    decoder = ji.decode(model, tokens, encoder.states, sites="all").acts
    e, d = ({k: np.asarray(v) for k, v in vars(acts).items()} for acts in (encoder.acts, decoder))
    words = ji.align_words(model, ji.Utterance(mel, jnp.asarray(tokens[:-1]), PROMPT, n))
    word = next(one for one in words if one.name == row["word"].lower())
    frames, places = slice(*word.frames), slice(*word.tokens)
    said, steps = slice(PROMPT, -1), slice(None, None, 3)
    return {
        "encoder.resid_post.mean": e["resid_post"][:, :n].mean(1),
        "encoder.resid_post.max": e["resid_post"][:, :n].max(1),
        "encoder.conv1_out.mean": e["conv1_out"][: 2 * n].mean(0),
        "encoder.z.every2": behind(e["z"], n)[:, ::2],
        "encoder.ln_final.at0_-1_20ms": e["ln_final"][[0, n - 1, 1]],
        "encoder.pattern.all": e["pattern"],
        "encoder.mlp_out.word_word": e["mlp_out"][:, frames].mean(1),
        "decoder.resid_post.mean": d["resid_post"][:, said].mean(1),
        "decoder.resid_post.end": d["resid_post"][:, -1],
        "decoder.resid_mid.max": d["resid_mid"][:, said].max(1),
        "decoder.cross_attn_out.at4_-1": d["cross_attn_out"][:, [4, -1]],
        "decoder.ln_final.all": d["ln_final"],
        "decoder.resid_pre.every3": d["resid_pre"][:, steps],
        "decoder.pattern.mean": d["pattern"][:, :, said].mean(2),
        "decoder.cross_k.mean": d["cross_k"][:, :n].mean(1),
        "decoder.logits.end": d["logits"][-1],
        "decoder.mlp_out.word_word": d["mlp_out"][:, places].mean(1),
    }


def within(stored: np.ndarray, reference: np.ndarray, name: str) -> np.ndarray:
    """The part of a stored value that the run fills; behind it is nothing."""
    own = tuple(slice(size) for size in reference.shape)
    rest = np.ones(stored.shape, bool)
    rest[own] = False
    blank = stored[rest]
    assert (blank == 0).all() if name == "decoder.pattern.mean" else np.isnan(blank).all()
    return stored[own]


def test_every_reduction_is_that_of_plain_runs(tiny, corpus, tmp_path):
    folder, rows = corpus
    manifest = write_table(folder / "all.tsv", rows)
    done = ji.extract(
        tiny,
        manifest,
        tmp_path / "a.zarr",
        sites=SITES,
        options=ji.ExtractOptions(text="text", batch_size=2),
    )
    assert (done.clips, done.done, done.problems) == (5, 5, ())
    stored = ji.open_activations(done.path)
    control = ji.random_model(tiny, 0)
    for i, row in enumerate(rows):
        for prefix, model in {"": tiny, **({"random.": control} if i == 0 else {})}.items():
            for name, reference in expected(model, folder, row).items():
                if prefix and "word" in name:
                    continue  # Words are where the model itself hears them.
                value = within(stored[prefix + name][i].values, reference, name)
                np.testing.assert_array_equal(np.isnan(value), np.isnan(reference))
                difference = worst(np.nan_to_num(value), np.nan_to_num(reference))
                assert difference < 1e-6, (prefix + name, i)
        mel, n, _ = heard(tiny, folder, row)
        mel = np.asarray(mel, np.float64)[:, : -(-LENGTHS[i] // 160)]
        features = np.concatenate([mel.mean(1), mel.std(1)])
        np.testing.assert_allclose(stored.mel[i].values, features, rtol=1e-5)
        assert stored.frames[i] == n
        assert stored.decoder_text[i] == row["text"]


def test_the_store_has_named_axes_and_labels(tiny, corpus, tmp_path):
    folder, rows = corpus
    manifest = write_table(folder / "all.tsv", rows)
    done = ji.extract(
        tiny,
        manifest,
        tmp_path / "a.zarr",
        sites=SITES,
        options=ji.ExtractOptions(text="text", batch_size=2),
    )
    stored = xarray.open_zarr(done.path, consolidated=False)
    dims = {name: stored[name].dims for name in stored.data_vars}
    # The tiny encoder has two layers and the decoder three.
    assert dims["encoder.resid_post.mean"] == ("clip", "encoder_layer", "d_model")
    assert dims["random.decoder.resid_post.end"] == ("clip", "decoder_layer", "d_model")
    assert dims["encoder.z.every2"][2] == "frame_every2"
    assert stored.frame_every2.values.tolist() == [0, 2, 4, 6, 8, 10]
    assert stored["frame_at0_-1_20ms"].values.tolist() == ["0", "-1", "20ms"]
    assert dims["decoder.ln_final.all"] == ("clip", "pos", "d_model")
    assert stored.word.values.tolist() == list(WORDS)
    assert stored.done.values.all()
    assert stored.attrs["dtype"] == "float64"
    assert "tiny_random" in stored.attrs["model"]
    assert {value.dtype.str for key, value in stored.items() if "coder." in key} == {"<f4"}


def test_what_lies_behind_the_sound_is_not_pooled(tiny, corpus, tmp_path):
    """Silence behind a clip changes the model's states, but not which of them are averaged."""
    folder, rows = corpus
    stored = ji.open_activations(
        ji.extract(
            tiny,
            [{"path": str(folder / rows[3]["path"])}],
            tmp_path / "a.zarr",
            sites=["encoder.resid_pre:mean"],
            options=ji.ExtractOptions(random_seed=None),
        ).path
    )
    mel, n, _ = heard(tiny, folder, rows[3])
    states = np.asarray(ji.encode(tiny, mel).acts.resid_pre)
    assert n == 3
    assert worst(stored["encoder.resid_pre.mean"][0].values, states[:, :3].mean(1)) < 1e-6
    assert worst(stored["encoder.resid_pre.mean"][0].values, states.mean(1)) > 1e-3


def test_own_texts_and_detected_languages(tiny, corpus, tmp_path):
    """The embeddings of the run's tokens say which they are."""
    folder, rows = corpus
    clips = [{**row, "path": str(folder / row["path"])} for row in rows]
    clips[1] |= {"lang": "", "text": ""}
    clips[2] |= {"lang": "German"}
    clips[3] |= {"lang": "xx"}
    done = ji.extract(
        tiny,
        clips,
        tmp_path / "a.zarr",
        sites=["decoder.embed:all"],
        options=ji.ExtractOptions(text="text", random_seed=None, batch_size=1),
    )
    ((path, problem),) = done.problems
    assert path.endswith("3.wav")
    assert "'xx'" in problem
    stored = ji.open_activations(done.path)["decoder.embed.all"].values
    table = np.asarray(tiny.decoder.embed[...])

    def run(i):
        own = stored[i][~np.isnan(stored[i]).any(1)]
        return np.square(own[:, None] - table[None]).sum(-1).argmin(-1).tolist()

    tokenizer = tiny.tokenizer
    assert run(0) == heard(tiny, folder, rows[0])[2]
    assert run(2) == [*tokenizer.prompt("de"), *run(2)[PROMPT:]]
    states = ji.encode(tiny, heard(tiny, folder, rows[1])[0]).states
    language = next(iter(ji.detect_language(tiny, states)))
    written = ji.generate(tiny, states, prompt=tokenizer.prompt(language))
    assert run(1) == [*written.prompt, *written.tokens[:15], tokenizer.end_of_text]
    every = ji.extract(
        tiny,
        clips[:1],
        tmp_path / "own.zarr",
        sites=["decoder.embed:all"],
        options=ji.ExtractOptions(random_seed=None, batch_size=1),
    )
    states = ji.encode(tiny, heard(tiny, folder, rows[0])[0]).states
    text = tokenizer.decode(ji.generate(tiny, states).tokens[:15]).strip()
    by_itself = ji.open_activations(every.path)
    assert by_itself.decoder_text[0] == text
    assert by_itself.decoder_text_source.values.tolist() == ["own"]
    sources = ji.open_activations(done.path).decoder_text_source.values.tolist()
    assert sources == ["text", "own", "text", "text"]


@pytest.mark.real
@pytest.mark.usefixtures("optimised")
def test_real_activations_equal_torch(data, tmp_path):
    model = real_model("tiny.en")
    with np.load(GOLDEN / "tiny.en_activations.npz") as arrays:
        golden = dict(arrays)
    text = model.tokenizer.decode(golden["tokens"]).strip()
    clip = {"path": str(data / "read_en" / "speeches_jfk.flac"), "text": text}
    sites = ["encoder.resid_post:all", "decoder.resid_post:all"]
    done = ji.extract(
        model,
        [clip],
        tmp_path / "a.zarr",
        sites=sites,
        options=ji.ExtractOptions(text="text", batch_size=1, random_seed=None),
    )
    stored = ji.open_activations(done.path)
    encoder, decoder = (stored[name.replace(":", ".")][0].values for name in sites)
    for layer, theirs in enumerate(golden["encoder/hidden"][1:]):
        assert worst(encoder[layer, golden["frame_index"]], theirs) < 1e-4
    for layer, theirs in enumerate(golden["decoder/hidden"][1:]):
        assert worst(decoder[layer, : len(theirs)], theirs) < 1e-4
    assert decoder.shape[1] - len(golden["tokens"]) in (0, 1)


def test_a_random_model_has_the_shape_of_the_model(tiny):
    one, same, other = (ji.random_model(tiny, seed) for seed in (0, 0, 1))
    assert one.config == tiny.config
    assert one.dtype == jnp.float64
    assert one.tokenizer is tiny.tokenizer
    kernel = one.encoder.blocks.mlp.up.kernel[...]
    assert (kernel == same.encoder.blocks.mlp.up.kernel[...]).all()
    assert (kernel != other.encoder.blocks.mlp.up.kernel[...]).all()
    assert abs(float(kernel.std()) * kernel.shape[1] ** 0.5 - 1) < 0.1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("encoder.resid_post", "how positions are reduced"),
        ("encoder.resid_post:sum", "how positions are reduced"),
        ("middle.resid_post:mean", "Unknown stack"),
        ("encoder.cross_z:mean", "no site 'cross_z'"),
        ("encoder.resid_post:end", "no end-of-text"),
        ("decoder.cross_v:end", "no end-of-text"),
        ("decoder.z:at=1.2s", "cannot be read"),
        ("decoder.z:at=", "cannot be read"),
        ("encoder.z:at=3,3", "twice"),
        ("encoder.z:every=0", "no step"),
        ("encoder.z:word", "no column"),
        ("encoder.z:mean=3", "takes nothing"),
        ("encoder.attn_scores:mean", "encoder.pattern"),
    ],
)
def test_requests_that_cannot_be_met(text, sentence):
    with pytest.raises(ji.InputError, match=sentence):
        parse_request(text)
