"""What a sweep will take: its programs, their memory, and the batch that fits."""

import dataclasses

import jax
import pytest

import jaxasr_interp as ji
from jaxasr_interp.checkpoint.convert import abstract_model
from jaxasr_interp.checkpoint.sizes import model_without_weights, openai_config
from jaxasr_interp.patching import forecast
from jaxasr_interp.patching.dataset_work import Grids
from jaxasr_interp.patching.footprint import sweep_programs
from jaxasr_interp.patching.forecast import forecast_sweep
from jaxasr_interp.patching.question_shapes import QuestionShapes
from jaxasr_interp.patching.swept_sites import SweptSites
from jaxasr_interp.runtime.ahead_of_time import DeviceCompiler, ProgramMemory
from jaxasr_interp.runtime.devices import Lanes, make_mesh
from jaxasr_interp.runtime.targets import TargetMachine

V5E = TargetMachine.parse("v5e-8")


class Told(DeviceCompiler):
    """A compiler that says that every program takes some bytes for each question."""

    def __init__(self, each):
        self.name, self.mesh = "libtpu", make_mesh(jax.devices()[:1])
        self.each, self.asked = each, []

    def size(self, tree):
        return 0

    def compile(self, program, arguments, static):
        self.asked.append(program.__name__)
        first = [leaf.shape[0] for leaf in jax.tree.leaves(arguments[1])]
        return ProgramMemory(0, self.each * min(first), 0)


@pytest.fixture
def told(monkeypatch):
    """Makes the TPU's compiler say what a question takes."""

    def tell(each):
        compiler = Told(each)
        monkeypatch.setattr(forecast, "has_compiler", lambda machine: True)
        monkeypatch.setattr(forecast, "DeviceCompiler", lambda machine: compiler)
        return compiler

    return tell


@pytest.fixture
def grids(tiny32):
    model = abstract_model(tiny32.config, "float32")
    return Grids(model, SweptSites.read(["decoder.z@*.each"]), ji.PlanOptions(), ("log_prob",))


def shapes(n_tokens=6, questions=10):
    return QuestionShapes({(n_tokens, n_tokens): questions}, "As the test says.")


@pytest.mark.parametrize(
    ("stack", "sites", "heads"),
    [
        ("decoder", ["resid_pre", "mlp_out", "z"], "each"),
        ("decoder", ["cross_k"], None),
        ("encoder", ["resid_pre"], None),
        ("encoder", ["ln_final"], None),
    ],
)
def test_the_programs_are_those_that_the_sweep_runs(
    tiny32, golden, monkeypatch, stack, sites, heads
):
    ran = set()

    def watched(self, program, *arguments, own, runs, **static):
        ran.add(called(program, arguments, static))
        return program(*arguments, **static)

    monkeypatch.setattr(Lanes, "run", watched)
    tokens = golden["tokens_a"]
    runs = [
        ji.Utterance(*(jax.numpy.asarray(golden[f"{name}_{which}"]) for name in ("mel", "tokens")))
        for which in "ab"
    ]
    runs = [ji.Utterance(one.mel.astype("float32"), one.tokens) for one in runs]
    metrics = [ji.metrics.log_prob(3), ji.metrics.kl()]
    plan = ji.plan_sweep(tiny32, tokens=tokens, stack=stack, site=sites, heads=heads)
    ji.activation_patching_batch(
        tiny32, plan, clean=runs[:1] * 2, corrupted=runs[1:] * 2, metric=[metrics] * 2
    )
    model = abstract_model(tiny32.config, "float32")
    listed = sweep_programs(model, plan, metrics, 2, make_mesh(jax.devices()[:1]))
    begun = {"encode_each", "decode_each"}
    assert {one.call.__name__ for one in listed} > begun
    assert ran == {
        called(one.call, one.arguments, one.static)
        for one in listed
        if one.call.__name__ not in begun
    }


def called(program, arguments, static):
    """A program and the shapes it is called with."""
    leaves = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(arguments))
    return program.__name__, leaves, tuple(static.items())


def test_what_fits_is_described(grids, told):
    told(10**9)
    found = forecast_sweep(grids, shapes(), V5E)
    assert (found.batch_size, found.bytes, found.compiler) == (32, 4 * 10**9, "libtpu")
    assert found.patches == 10 * grids.plan((6, 6)).runs
    assert "4.0 GB of 16.9 GB" in str(found)
    assert "as libtpu compiles it" in str(found)


def test_what_does_not_fit_is_refused_with_the_batch_that_would(grids, told):
    told(3 * 10**9)
    with pytest.raises(ji.InputError, match=r"^64 questions .* --batch 32 fits, in 12.0 GB\.$"):
        forecast_sweep(grids, shapes(), V5E, 64)
    told(10**12)
    with pytest.raises(ji.InputError, match="no smaller batch fits"):
        forecast_sweep(grids, shapes(), V5E, 64)


def test_nothing_is_compiled_where_arrays_alone_are_too_large(grids, told):
    compiler = told(0)
    roomy = dataclasses.replace(grids, options=ji.PlanOptions(memory=10**9))
    with pytest.raises(ji.InputError, match="no smaller batch fits"):
        forecast_sweep(roomy, shapes(), dataclasses.replace(V5E, memory=10**5), 64)
    assert compiler.asked == []


def test_a_batch_beyond_the_budget_is_refused(grids, told):
    told(0)
    narrow = dataclasses.replace(grids.options, memory=3_000_000)
    tight = dataclasses.replace(grids, options=narrow)
    with pytest.raises(ji.InputError, match=r"use in addition to the model: --batch \d+ fits"):
        forecast_sweep(tight, shapes(), V5E, 8 * 512)


@pytest.mark.parametrize("machine", ["v5e-8", "h100-1", "cpu"])
def test_without_a_compiler_the_bytes_are_the_plans_own(grids, monkeypatch, machine):
    monkeypatch.setattr(forecast, "has_compiler", lambda machine: False)
    found = forecast_sweep(grids, shapes(), TargetMachine.parse(machine))
    assert found.compiler is None
    assert found.bytes > 0 < found.seconds
    assert "the plan's own figure, not a compiler's" in str(found)


def test_time_grows_with_the_batches_and_shrinks_with_the_devices(grids, monkeypatch):
    monkeypatch.setattr(forecast, "has_compiler", lambda machine: False)
    one, eight = (TargetMachine.parse(f"v5e-{n}") for n in (1, 8))
    few, many = (forecast_sweep(grids, shapes(6, n), one).seconds for n in (32, 320))
    assert many == pytest.approx(10 * few)
    assert forecast_sweep(grids, shapes(6, 320), eight).seconds == pytest.approx(many / 8)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("tiny.en", 0.039), ("base", 0.074), ("large-v2", 1.55), ("openai/whisper-large-v3", 1.55)],
)
def test_sizes_are_known_without_weights(name, billions):
    model = model_without_weights(name, "bfloat16")
    count = sum(leaf.size for leaf in jax.tree.leaves(model)) / 1e9
    assert count == pytest.approx(billions, rel=0.06)
    assert str(model.dtype) == "bfloat16"


def test_turbo_has_four_decoder_layers_and_unknown_names_have_none():
    turbo = openai_config("turbo")
    assert turbo is not None
    assert (turbo.decoder_layers, turbo.n_mels, turbo.d_vocab) == (4, 128, 51866)
    assert openai_config("large.en") is None
    with pytest.raises(ji.InputError, match="choose one of tiny, base"):
        model_without_weights("huge")


def test_sizes_of_a_folder_are_those_of_its_model(tiny32, tmp_path):
    ji.save_model(tiny32, tmp_path / "saved")
    found = model_without_weights(str(tmp_path / "saved"))
    assert (found.config, found.dtype) == (tiny32.config, tiny32.dtype)
    assert found.tokenizer is not None


@pytest.mark.slow
def test_large_v3_on_v5e_is_compiled_and_what_does_not_fit_is_refused(monkeypatch):
    """All components of 32 tokens, as the TPU's own compiler sees them; minutes long."""
    pytest.importorskip("libtpu", reason="the TPU's compiler is not installed: see the extra tpu")
    names = ("resid_pre", "resid_mid", "resid_mid_cross", "attn_out", "cross_attn_out", "mlp_out")
    places = [f"decoder.{name}" for name in names]
    sites = SweptSites.read([*places, "decoder.z@*.each", "decoder.cross_z@*.each"])
    model = model_without_weights("large-v3", "bfloat16")
    large = Grids(model, sites, ji.PlanOptions(), ("log_prob", "kl"))
    with pytest.raises(ji.InputError, match=r"^64 questions .* --batch 32 fits, in \d\.\d GB\.$"):
        forecast_sweep(large, shapes(32, 1000), V5E, 64)
