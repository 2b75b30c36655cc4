"""Files of torch's: the same bits as safetensors', and hostile ones that run nothing."""

import io
import os
import pickle
import shutil
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxasr_interp as ji
from helpers.golden import GOLDEN, worst
from jaxasr_interp.checkpoint import convert
from jaxasr_interp.checkpoint.openai import OPENAI_TABLE
from jaxasr_interp.checkpoint.torch_file import read_torch

TORCH = GOLDEN / "torch_files"
TINY = GOLDEN / "tiny_random"


def bits(tensor):
    array = np.asarray(tensor)
    return array.dtype, array.shape, array.tobytes()


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert bits(tensor) == bits(theirs[name]), name


@pytest.fixture
def folder(tmp_path):
    """The tiny model's settings, for weights of torch's."""
    for name in ("config.json", "generation_config.json"):
        shutil.copy(TINY / name, tmp_path / name)
    return tmp_path


def put_shards(folder):
    for path in TORCH.glob("pytorch_model*-*.bin"):
        shutil.copy(path, folder)
    shutil.copy(TORCH / "pytorch_model.bin.index.json", folder)


def test_openais_file_holds_the_bits_of_its_safetensors():
    content = read_torch(TORCH / "openai.pt")
    assert_same_bits(content["model_state_dict"], load_file(TORCH / "openai.safetensors"))
    assert content["dims"]["n_text_layer"] == 3


def test_a_bin_holds_the_bits_of_its_safetensors():
    tensors = load_file(TINY / "model.safetensors")
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"]
    stored = read_torch(TORCH / "pytorch_model.bin")
    assert_same_bits(stored, {n: tensors[n].astype(np.float32) for n in stored})
    assert stored.keys() >= tensors.keys() - {"proj_out.weight"}
    shards = {
        name: tensor
        for path in TORCH.glob("pytorch_model*-*.bin")
        for name, tensor in read_torch(path).items()
    }
    assert_same_bits(shards, {name: tensors[name].astype(np.float16) for name in stored})


def test_views_are_read_with_their_strides():
    assert_same_bits(read_torch(TORCH / "views.bin"), load_file(TORCH / "views.safetensors"))


def test_a_bin_and_its_shards_are_loaded(folder, tiny32):
    shutil.copy(TORCH / "pytorch_model.bin", folder)
    loaded, expected = (convert.to_tensors(m) for m in (ji.load_model(folder), tiny32))
    assert_same_bits(loaded, expected)
    (folder / "pytorch_model.bin").unlink()
    put_shards(folder)
    halves = convert.to_tensors(ji.load_model(folder))
    assert_same_bits(
        halves, {n: v.astype(np.float16).astype(np.float32) for n, v in expected.items()}
    )


def test_openais_model_computes_what_openais_code_computes(x64, golden):
    model = ji.load_model(TORCH / "openai.pt", dtype="float64")
    states = ji.encode(model, jnp.asarray(golden["mel_a"])).states
    logits = ji.decode(model, jnp.asarray(golden["tokens_a"]), states).logits
    assert worst(logits, np.load(TORCH / "openai_logits.npy")) < 1e-12
    assert model.name == str(TORCH / "openai.pt")


def test_every_parameter_has_one_name_of_openais():
    names = {rule.name for rule in OPENAI_TABLE}
    stored = {
        ".".join(
            "{layer}" if part.isdigit() and i == 2 else part for i, part in enumerate(n.split("."))
        )
        for n in load_file(TORCH / "openai.safetensors")
    }
    assert names == stored
    assert len(names) == len(OPENAI_TABLE)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "base_model.model."]
)
def test_prefixes_of_wrappers_are_taken_off(folder, tiny32, prefix):
    from safetensors.numpy import save_file

    tensors = load_file(TINY / "model.safetensors")
    save_file({prefix + name: v for name, v in tensors.items()}, folder / "model.safetensors")
    assert_same_bits(convert.to_tensors(ji.load_model(folder)), convert.to_tensors(tiny32))


def test_a_prefix_of_some_names_alone_is_an_error(folder):
    from safetensors.numpy import save_file

    tensors = load_file(TINY / "model.safetensors")
    tensors["module.extra"] = np.zeros(2)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ji.InputError, match=r"unexpected module\.extra"):
        ji.load_model(folder)


def text(value):
    """The instructions that push a value of Python's onto the stack."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(size, stride, *, offset=0, count=60, kind="FloatStorage", key="0"):
    """The instructions that push a tensor."""
    storage = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n"
    storage += text(key) + text("cpu") + text(count) + b"tQ"
    view = text(offset) + text(size) + text(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tR"


def state(*values):
    """The pickle of a dictionary of such values."""
    items = b"".join(text(f"name{i}") + value + b"s" for i, value in enumerate(values))
    return b"\x80\x02}" + items + b"."


def torch_zip(path, pickled, storages=None, compression=zipfile.ZIP_STORED):
    """Write what torch would write around a pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, content in (storages or {"0": bytes(240)}).items():
            archive.writestr(f"archive/data/{key}", content)


class Runs:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def memo_bomb(as_key):
    """A tuple that holds itself 2**60 times over."""
    program = text(()) + b"q\x01"
    for _ in range(60):
        program += b"h\x01h\x01\x86q\x01"
    return b"\x80\x02" + program + b"}" + (b"h\x01N" if as_key else text("x") + b"h\x01") + b"s."


MARK = "hostile_pickle_ran"


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (pickle.dumps({"a": Runs(os.system, (f"touch {MARK}",))}, 2), r"asks for 'posix\.system'"),
        (pickle.dumps({"a": Runs(os.system, (f"touch {MARK}",))}, 4), r"asks for 'posix\.system'"),
        (pickle.dumps(Runs(eval, (f"open({MARK!r}, 'w')",)), 2), r"asks for '__builtin__\.eval'"),
        (f"(S'touch {MARK}'\nios\nsystem\n.".encode(), r"asks for 'STRING"),
        (b"(ios\nsystem\n.", r"asks for 'INST os system'"),
        (b"\x80\x02ctorch.hub\nload\n.", r"asks for 'torch\.hub\.load'"),
        (b"\x80\x02cargparse\nNamespace\n)\x81.", r"asks for 'argparse\.Namespace'"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "asks for 'NEWOBJ'"),
        (b"\x80\x02ctorch\nFloatStorage\n(K\x01tR.", "FloatStorage has unknown arguments"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "does not tell"),
        (memo_bomb(as_key=False), "holds a tuple named 'x'"),
        (memo_bomb(as_key=True), "a key is neither text nor a number"),
        (b"\x80\x02" + b"]" * (1 << 22), "holds a pickle of"),
        (b"\x80\x04\x8d" + (10**18).to_bytes(8, "little") + b"x.", "its pickle cannot be read"),
        (state(tensor((60,), (2,))), r"strides \[2\] from 0 on go beyond the 60 elements"),
        (state(tensor((6, 10), (10, 1), offset=1)), "go beyond the 60 elements"),
        (state(tensor((2,), (10**18,))), "go beyond the 60 elements"),
        (state(tensor((6, 10), (1, 1))), "overlap"),
        (state(tensor((10**9, 10**9), (0, 0))), "overlap"),
        (state(tensor((10**9,), (1,))), "go beyond the 60 elements"),
        (state(tensor((-1,), (1,))), "a size is no number from 0 on"),
        (state(tensor((2, 2), (1,))), "there are 1 strides"),
        (state(tensor((0, 10**30), (1, 1))), "nothing is stored"),
        (state(tensor((60,), (1,), count=10**9)), "has 240 bytes where 1000000000 elements"),
        (state(tensor((60,), (1,), key="9")), "lacks the storage '9'"),
        (state(tensor((60,), (1,), kind="ComplexFloatStorage")), "ComplexFloatStorage"),
        (state(tensor((60,), (1,))), "does not tell n_mels: missing"),
        (text(3) + b".", "holds a int: expected a state dict"),
        (b"\x80\x02R.", "its pickle cannot be read"),
    ],
)
def test_hostile_pickles_are_refused_by_name_and_run_nothing(folder, monkeypatch, pickled, message):
    monkeypatch.chdir(folder)
    torch_zip(folder / "pytorch_model.bin", pickled)
    with pytest.raises(ji.InputError, match=message) as error:
        ji.load_model(folder)
    assert "\n" not in str(error.value)
    assert not (folder / MARK).exists()


def overlapping(content):
    """Let the second storage lie where the first does."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        first, second = (archive.getinfo(f"archive/data/{key}").header_offset for key in "01")
    at = content.rindex(second.to_bytes(4, "little"), 0, content.rindex(b"archive/data/1"))
    return content[:at] + first.to_bytes(4, "little") + content[at + 4 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (overlapping, "overlaps another or lies outside"),
        (lambda content: content[:-30], "is not a whole torch file"),
        (lambda content: b"", "is not a whole torch file"),
        (lambda content: (TORCH / "old.bin").read_bytes(), r"torch\.save\(torch\.load\("),
        (lambda content: pickle.dumps({"a": 1}), r"format of before version 1\.6"),
    ],
)
def test_damaged_and_old_files_are_named(folder, damage, message):
    path = folder / "pytorch_model.bin"
    pickled = state(tensor((60,), (1,)), tensor((60,), (1,), key="1"))
    torch_zip(path, pickled, {"0": bytes(240), "1": bytes(240)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ji.InputError, match=message):
        ji.load_model(folder)


def test_packed_members_are_refused(folder):
    """A megabyte of zeros takes a kilobyte in a packed member: nothing is unpacked."""
    path = folder / "pytorch_model.bin"
    torch_zip(path, state(tensor((60,), (1,))), {"0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ji.InputError, match="is packed or damaged"):
        ji.load_model(folder)


def test_integers_are_no_weights(folder):
    shutil.copy(TORCH / "pytorch_model.bin", folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes().replace(b"FloatStorage", b"IntStorage\n  ", 1))
    with pytest.raises(ji.InputError, match=r"damaged|int32, expected floats"):
        ji.load_model(folder)


def test_a_pt_in_a_folder_is_loaded_and_two_are_not(tmp_path):
    shutil.copy(TORCH / "openai.pt", tmp_path / "a.pt")
    assert ji.load_model(tmp_path).config.d_vocab == 48
    shutil.copy(TORCH / "openai.pt", tmp_path / "b.pt")
    with pytest.raises(ji.InputError, match=r"holds 2 \.pt files"):
        ji.load_model(tmp_path)


def test_a_pt_of_something_else_is_named(tmp_path):
    torch_zip(tmp_path / "a.pt", state(tensor((60,), (1,))))
    with pytest.raises(ji.InputError, match=r"a\.pt is no model of OpenAI's"):
        ji.load_model(tmp_path / "a.pt")
