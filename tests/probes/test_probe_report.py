"""Scores of probes against scikit-learn, what controls and report say, and `probe`."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from sklearn import metrics

import jaxasr_interp as ji
from jaxasr_interp.probes.labels import parse_target, relabel
from jaxasr_interp.probes.scores import majority, score, selectivity
from jaxasr_interp.probes.targets import read_target
from jaxasr_interp.report.plots.probes import plot_probes
from jaxasr_interp.runtime.store import write_dataset

N, LAYERS, FEATURES = 150, 3, 6


@pytest.fixture(scope="module")
def dataset():
    """A store in which layer 1 knows the label, layers 0 and 2 do not, and `mel` knows half."""
    generator = np.random.default_rng(0)
    labels = np.array(["cat", "dog", "owl"])[generator.integers(0, 3, N)]
    number = np.unique(labels, return_inverse=True)[1]
    x = generator.normal(size=(N, LAYERS, FEATURES)).astype(np.float32)
    x[:, 1, :3] += 4 * np.eye(3)[number]
    mel = generator.normal(size=(N, 4)).astype(np.float32)
    mel[:, 0] += 2 * (number == 0)
    return xarray.Dataset(
        {
            "encoder.resid_post.mean": (("clip", "layer", "d_model"), x),
            "random.encoder.resid_post.mean": (
                ("clip", "layer", "d_model"),
                generator.normal(size=x.shape).astype(np.float32),
            ),
            "encoder.resid_post.every5": (("clip", "layer", "frame", "d_model"), x[:, :, None]),
            "mel": (("clip", "mel_feature"), mel),
            "animal": ("clip", labels),
            "speaker": ("clip", [f"s{i % 50}" for i in range(N)]),
        }
    )


@pytest.fixture(scope="module")
def report(dataset):
    reports = ji.probe_store(
        dataset,
        "encoder.resid_post.mean",
        {"animal": dataset.animal.to_numpy()},
        groups=dataset.speaker.to_numpy(),
        options=ji.FitOptions(l2=[1e-2, 1e-1], seeds=[0, 1]),
    )
    return reports["animal"]


@pytest.mark.parametrize("n_classes", [2, 4])
def test_scores_equal_scikit_learns(n_classes):
    generator = np.random.default_rng(n_classes)
    labels = generator.integers(0, n_classes, 80)
    outputs = generator.normal(size=(1 if n_classes == 2 else n_classes, 80)).round(1)
    outputs[..., :] += (labels if n_classes == 2 else np.eye(n_classes)[labels].T) * 1.0
    target = read_target([f"c{label}" for label in labels])
    drawn = generator.multinomial(80, np.full(80, 1 / 80), 3).astype(float)
    ours = score(target, labels.astype(float), outputs, drawn)
    said = (outputs[0] > 0).astype(int) if n_classes == 2 else outputs.argmax(0)
    for i, weight in enumerate(drawn):
        rows = np.repeat(np.arange(80), weight.astype(int))
        true, predicted = labels[rows], said[rows]
        assert ours["accuracy"][i] == pytest.approx(metrics.accuracy_score(true, predicted))
        balanced = metrics.balanced_accuracy_score(true, predicted)
        assert ours["balanced_accuracy"][i] == pytest.approx(balanced)
        f1 = metrics.f1_score(true, predicted, average="macro")
        assert ours["macro_f1"][i] == pytest.approx(f1)
        if n_classes == 2:
            auc = metrics.roc_auc_score(true, outputs[0][rows])
        else:
            p = np.exp(outputs) / np.exp(outputs).sum(0)
            auc = metrics.roc_auc_score(true, p[:, rows].T, multi_class="ovr")
        assert ours["auc"][i] == pytest.approx(auc)


def test_scores_of_values_equal_scikit_learns():
    generator = np.random.default_rng(0)
    labels = generator.normal(size=50)
    outputs = labels + generator.normal(size=50)
    ours = score(read_target(labels), labels, outputs[None], np.ones((1, 50)))
    assert ours["r2"][0] == pytest.approx(metrics.r2_score(labels, outputs))
    error = metrics.mean_absolute_error(labels, outputs)
    assert ours["mean_absolute_error"][0] == pytest.approx(error)


def test_the_layer_that_knows_stands_out_from_every_control(report):
    accuracy = {name: scores.estimate["accuracy"] for name, scores in report.curves.items()}
    assert set(accuracy) == {"probe", "random weights", "shuffled"}
    assert report.best_layer == 1
    assert accuracy["probe"][1] > 0.95
    for control in (accuracy["probe"][[0, 2]], accuracy["random weights"], accuracy["shuffled"]):
        assert (control < 0.5).all()
    shares = np.unique(report.probes.target.labels, return_counts=True)[1] / N
    assert report.lines["majority"]["accuracy"] == pytest.approx(shares.max(), abs=0.02)
    assert 0.4 < report.lines["mel"]["accuracy"] < 0.8
    real, control = report.curves["probe"], report.curves["shuffled"]
    np.testing.assert_allclose(selectivity(real, control), accuracy["probe"] - accuracy["shuffled"])


def test_intervals_hold_the_estimate_and_widen_with_groups(report):
    scores = report.curves["probe"]
    for name in report.scores:
        assert (scores.low[name] <= scores.estimate[name]).all()
        assert (scores.estimate[name] <= scores.high[name]).all()
    labels = ["a", "b"] * 30
    x = np.random.default_rng(0).normal(size=(1, 30, 4)).repeat(2, 1).astype(np.float32)
    pairs = np.arange(30).repeat(2)
    widths = []
    for groups in (None, [f"g{pair}" for pair in pairs]):
        same = [f"{label}" for label in np.array(labels[:30]).repeat(2)]
        speakers = [f"g{p}" for p in pairs]
        fitted = ji.fit_probes(x, same, groups=speakers, options=ji.FitOptions(shuffled=False))
        probes = fitted["target"]
        probes = probes if groups else dataclasses.replace(probes, groups=None)
        real, _ = ji.score_probes(probes)
        widths.append(real.high["accuracy"][0] - real.low["accuracy"][0])
    assert widths[1] > widths[0]


def test_intervals_narrow_with_their_level_and_depend_on_the_resamples(report):
    wide, _ = ji.score_probes(report.probes, n_resamples=200)
    narrow, _ = ji.score_probes(report.probes, level=0.5, n_resamples=200)
    other, _ = ji.score_probes(report.probes, n_resamples=200, seed=1)
    width = wide.high["auc"] - wide.low["auc"]
    assert (narrow.high["auc"] - narrow.low["auc"] < width).all()
    np.testing.assert_array_equal(narrow.estimate["auc"], wide.estimate["auc"])
    assert (other.high["auc"] != wide.high["auc"]).any()


def test_confusions_are_shares_of_each_class(report):
    confusion = report.confusion(1)
    np.testing.assert_allclose(confusion.sum(1), 1)
    assert (np.diag(confusion) > 0.9).all()


def test_the_majority_is_that_of_the_training_examples(report):
    labels = ["a"] * 20 + ["b"] * 10
    x = np.zeros((1, 30, 2), np.float32)
    x[0, :, 0] = np.arange(30)
    probes = ji.fit_probes(x, labels, options=ji.FitOptions(shuffled=False))["target"]
    found = majority(probes)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == pytest.approx(1 / 2)
    assert found["auc"] == pytest.approx(1 / 2)


def test_the_dataset_has_named_axes(report):
    dataset = report.to_dataset()
    assert dict(dataset.estimate.sizes) == {"curve": 3, "score": 4, "layer": LAYERS}
    assert dataset.confusion.dims == ("layer", "class", "predicted")
    assert list(dataset.control.to_numpy()) == ["majority", "mel"]
    assert dataset.attrs["examples"] == N
    assert dataset.attrs["groups"] == 50


def test_probes_come_back_from_disk(report, tmp_path):
    saved = ji.save_probes(report.probes, tmp_path / "probes")
    loaded = ji.load_probes(saved)
    x = np.random.default_rng(0).normal(size=(LAYERS, 4, FEATURES)).astype(np.float32)
    np.testing.assert_array_equal(loaded.outputs(x), report.probes.outputs(x))
    np.testing.assert_array_equal(loaded.held_out.outputs, report.probes.held_out.outputs)
    assert loaded.target.classes == report.probes.target.classes
    assert loaded.options == report.probes.options
    before, _ = ji.score_probes(report.probes)
    after, _ = ji.score_probes(loaded)
    np.testing.assert_array_equal(before.low["auc"], after.low["auc"])
    with pytest.raises(ji.InputError, match="exists"):
        ji.save_probes(report.probes, saved)
    with pytest.raises(ji.InputError, match="holds no probes"):
        ji.load_probes(tmp_path)


def test_a_direction_raises_its_class(report):
    x = np.zeros((LAYERS, 1, FEATURES), np.float32)
    before = report.probes.outputs(x)[1, :, 0]
    x[1, 0] = 5 * report.probes.direction(1, "owl")
    after = report.probes.outputs(x)[1, :, 0]
    assert np.linalg.norm(x[1, 0]) == pytest.approx(5, rel=1e-5)
    change = after - before
    assert change.argmax() == list(report.probes.target.classes).index("owl")


SITES = ["resid_pre", "resid_mid"]


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_probe_steers_the_site_that_it_read_and_no_other(tiny32, golden, stack, tmp_path):
    generator = np.random.default_rng(0)
    config = tiny32.config
    x = generator.normal(size=(config.layers(stack), 40, config.d_model)).astype(np.float32)
    labels, options = ["no", "yes"] * 20, ji.FitOptions(shuffled=False, l2=[0.1])
    fitted = ji.fit_probes(x, labels, features=f"{stack}.resid_mid", options=options)["target"]
    probes = ji.load_probes(ji.save_probes(fitted, tmp_path / "probes"))
    mel = jnp.asarray(golden["mel_a"], jnp.float32)

    def acts(edits):
        states = ji.encode(tiny32, mel, edit=edits.get("encoder", ji.identity), sites=SITES)
        run = ji.decode(
            tiny32,
            golden["tokens_a"],
            states.states,
            edit=edits.get("decoder", ji.identity),
            sites=SITES,
        )
        return {"encoder": states.acts, "decoder": run.acts}[stack]

    steer = probes.steer(1, 3.0, towards="yes", start=2, stop=4)
    plain, steered = acts({}), acts({stack: steer})
    moved = np.asarray(steered.resid_mid - plain.resid_mid)
    np.testing.assert_array_equal(moved[0], 0)
    np.testing.assert_array_equal(moved[1, :2], 0)
    for pos in (2, 3):
        np.testing.assert_allclose(moved[1, pos], 3 * probes.direction(1, "yes"), atol=1e-5)
    np.testing.assert_array_equal(steered.resid_pre[:2], plain.resid_pre[:2])
    other = "encoder" if stack == "decoder" else "decoder"
    with pytest.raises(ji.InputError, match=rf"of 'resid_mid' in the {stack}: it is refused in"):
        acts({other: steer})
    utterance = ji.Utterance(mel, jnp.asarray(golden["tokens_a"]))
    plan = ji.plan_sweep(tiny32, tokens=utterance.tokens, stack=other, site="resid_mid")
    with pytest.raises(ji.InputError, match=f"refused in the {other}"):
        ji.activation_patching(
            tiny32,
            plan,
            clean=utterance,
            corrupted=utterance,
            metric=ji.metrics.entropy(),
            edit=steer,
        )
    states = ji.encode(tiny32, mel).states
    if stack == "encoder":
        with pytest.raises(ji.InputError, match="refused in the decoder"):
            ji.generate(tiny32, states, edit=steer)
    unknown = ji.fit_probes(x, labels, options=options)["target"]
    with pytest.raises(ji.InputError, match="It is not known which activations these probes read"):
        unknown.steer(1, 3.0)
    with pytest.raises(ji.InputError, match="no site 'resid_out'"):
        ji.fit_probes(x, labels, features=f"{stack}.resid_out", options=options)
    heads = ji.fit_probes(x, labels, features=f"{stack}.z", options=options)["target"]
    with pytest.raises(ji.InputError, match="all heads"):
        heads.steer(1, 3.0)


def test_probes_of_a_store_know_their_site(report):
    assert report.probes.features == ".".join(report.variable.split(".")[:2])


def test_values_of_the_other_stack_are_refused(tiny32, golden):
    mel = jnp.asarray(golden["mel_a"], jnp.float32)
    encoded = ji.encode(tiny32, mel, sites=["resid_post"])
    wrong = ji.At(ji.Interchange(encoded.acts), layer=0, site="resid_post")
    with pytest.raises(ji.InputError, match="source of the patch is EncoderActivations"):
        ji.decode(tiny32, golden["tokens_a"], encoded.states, edit=wrong)
    with pytest.raises(ji.InputError, match="source of the patch is EncoderActivations"):
        ji.generate(tiny32, encoded.states, edit=wrong)
    with pytest.raises(ji.InputError, match="no site 'cross_z'"):
        ji.At(ji.Zero(), site="cross_z", stack="encoder")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda probes: probes.direction(0), "Name the class"),
        (lambda probes: probes.direction(0, "bat"), "has no class 'bat'"),
        (lambda probes: probes.direction(9, "owl"), "outside the 3 layers"),
        (lambda probes: probes.outputs(np.zeros((1, 2, FEATURES), np.float32)), "read 3 layers"),
    ],
)
def test_bad_requests_are_named_in_one_sentence(report, call, message):
    with pytest.raises(ji.InputError, match=message):
        call(report.probes)


@pytest.mark.parametrize(
    ("variable", "message"),
    [("encoder.q.mean", "has no 'encoder.q.mean'"), ("encoder.resid_post.every5", "one vector a")],
)
def test_variables_that_cannot_be_probed_are_named(dataset, variable, message):
    with pytest.raises(ji.InputError, match=message):
        ji.probe_store(dataset, variable, {"animal": dataset.animal.to_numpy()})


def test_stacks_of_unequal_depth_and_heads_are_probed(dataset):
    x = dataset["encoder.resid_post.mean"].to_numpy()
    dataset = dataset.assign(
        {
            "encoder.z.mean": (
                ("clip", "encoder_layer", "head", "d_head"),
                x.reshape(N, LAYERS, 2, FEATURES // 2),
            )
        }
    )
    options = ji.FitOptions(l2=[1e-1], shuffled=False)
    labels = {"animal": dataset.animal.to_numpy()}
    heads = ji.probe_store(dataset, "encoder.z.mean", labels, options=options)["animal"]
    whole = ji.probe_store(dataset, "encoder.resid_post.mean", labels, options=options)["animal"]
    np.testing.assert_array_equal(heads.probes.held_out.outputs, whole.probes.held_out.outputs)


def test_the_picture_has_every_curve(report):
    left, _, _ = plot_probes(report, "animals").axes
    assert {line.get_label() for line in left.lines} == {*report.curves, *report.lines}


def test_classes_can_be_made_of_a_columns_values():
    name, column, patterns = parse_target("speech=kind:yes=read_*|gender;no=nonspeech")
    assert (name, column) == ("speech", "kind")
    values = ["read_en", "gender", "nonspeech", "music"]
    assert relabel(values, patterns) == ["yes", "yes", "no", ""]
    assert relabel(values, patterns, least=2) == ["yes", "yes", "", ""]
    assert parse_target("gender") == ("gender", "gender", {})
    with pytest.raises(ji.InputError, match="cannot be read"):
        parse_target("speech=kind:yes")


@pytest.fixture
def store(dataset, tmp_path):
    dataset = dataset.assign(
        done=("clip", [True] * dataset.sizes["clip"]),
        problem=("clip", [""] * dataset.sizes["clip"]),
    ).assign_attrs(extraction="{}", model="random")
    return write_dataset(dataset, tmp_path / "x.zarr")


def test_probe_writes_scores_pictures_and_probes(invoke, store, tmp_path):
    out = tmp_path / "out"
    arguments = ["probe", str(store), "--target", "animal", "--group", "speaker"]
    code, text, _ = invoke(*arguments, "--out", str(out), "--json")
    assert code == 0
    (row,) = json.loads(text)
    assert row["best_layer"] == 1
    assert set(row["curves"]) == {"probe", "random weights", "shuffled"}
    folder = out / "animal" / "encoder.resid_post.mean"
    assert (folder / "scores.png").is_file()
    scores = xarray.open_zarr(folder / "scores.zarr", consolidated=False)
    best = float(scores.estimate.sel(curve="probe", score="accuracy", layer=1))
    assert best == row["curves"]["probe"]["accuracy"][1]
    code, _, error = invoke(*arguments, "--out", str(out))
    assert code == 2
    assert "exists" in error
    assert invoke(*arguments, "--out", str(out), "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "planet"], "no column 'planet'"),
        (["--target", "animal", "--group", "planet"], "no column 'planet'"),
        (["--target", "animal", "--site", "encoder.z.mean"], "no 'encoder.z.mean'"),
        (["--target", "animal=animal:x"], "cannot be read"),
        (["--target", "animal", "--method", "magic"], "Unknown method 'magic'"),
        (["--target", "animal", "--score", "beauty"], "Unknown score 'beauty'"),
        (["--target", "animal", "--score", "r2"], "'animal' has no score 'r2'"),
        (["--value", "animal"], "no number: probe it as a --target"),
        ([], "Nothing is asked"),
    ],
)
def test_bad_requests_end_with_one_sentence(invoke, store, tmp_path, arguments, message):
    code, _, error = invoke("probe", str(store), *arguments, "--out", str(tmp_path / "out"))
    assert code == 2
    assert message in error
