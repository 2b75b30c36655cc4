"""Probes against scikit-learn: losses, weights, standardisation, splits, early stopping."""

import jax
import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

import jaxasr_interp as ji
from jaxasr_interp.probes.splits import make_folds, shuffle_labels
from jaxasr_interp.probes.targets import read_target

N, FEATURES, LAYERS = 120, 10, 2
STRENGTHS = (1e-3, 1e-1)


@pytest.fixture(scope="module")
def data():
    """Features of very different sizes, one of them constant; three kinds of labels; speakers."""
    generator = np.random.default_rng(0)
    x = generator.normal(3, 1, (LAYERS, N, FEATURES)) * 10.0 ** np.arange(-4, 6)
    x[:, :, 2] = 7.0
    z = (x - x.mean(1, keepdims=True)) / np.maximum(x.std(1, keepdims=True), 1e-9)
    noisy = z[0, :, :6] @ generator.normal(size=(6, 3)) + generator.normal(size=(N, 3))
    return {
        "x": x,
        "two": np.where(noisy[:, 0] > 0.5, "yes", "no"),
        "three": np.array(["a", "b", "c"])[noisy.argmax(1)],
        "value": 5 + 3 * noisy[:, 0],
        "speaker": np.array([f"s{i % 24}" for i in range(N)]),
    }


def sklearn_probe(x, labels, strength, **options):
    """A pipeline's weights, for features as they are."""
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(
        C=1 / (strength * len(labels)), tol=1e-10, max_iter=10_000, **options
    ).fit(scaler.transform(x), labels)
    kernel = model.coef_ / scaler.scale_
    return kernel, model.intercept_ - kernel @ scaler.mean_


def log_loss(outputs, labels, weights=None):
    if outputs.shape[0] == 1:
        outputs = np.concatenate([np.zeros_like(outputs), outputs])
    log_p = outputs - np.logaddexp.reduce(outputs, axis=0)
    return -np.average(log_p[labels.astype(int), np.arange(len(labels))], weights=weights)


def fit(x, y, **options):
    return ji.fit_probes(
        x, y, options=ji.FitOptions(**{"l2": STRENGTHS, "shuffled": False} | options)
    )


@pytest.mark.parametrize("name", ["two", "three"])
def test_probes_equal_scikit_learns(x64, data, name):
    probes = fit(data["x"], {name: data[name]}, tolerance=1e-12)[name]
    labels = probes.target.labels
    for layer, x in enumerate(data["x"]):
        for fold in range(5):
            trains = (probes.folds[0] != fold) & (probes.folds[0] != (fold + 1) % 5)
            validates = probes.folds[0] == (fold + 1) % 5
            held_out = []
            for i, strength in enumerate(STRENGTHS):
                kernel, bias = sklearn_probe(x[trains], labels[trains], strength)
                outputs = kernel @ x.T + bias[:, None]
                ours = probes.held_out.train_loss[layer, i, 0, fold]
                assert ours == pytest.approx(log_loss(outputs[:, trains], labels[trains]), abs=1e-6)
                held_out.append(outputs)
                loss = log_loss(outputs[:, validates], labels[validates])
                ours = probes.held_out.validation_loss[layer, i, 0, fold]
                assert ours == pytest.approx(loss, abs=1e-4)
            tests = probes.folds[0] == fold
            chosen = held_out[probes.held_out.l2_index[layer, 0, fold]][:, tests]
            np.testing.assert_allclose(
                probes.held_out.outputs[layer, 0][:, tests], chosen, atol=2e-3
            )


def test_the_probe_of_all_examples_reads_activations_as_they_are(x64, data):
    probes = fit(data["x"], data["two"], tolerance=1e-13)["target"]
    for layer, x in enumerate(data["x"]):
        strength = STRENGTHS[probes.l2_index[layer]]
        kernel, bias = sklearn_probe(x, probes.target.labels, strength)
        np.testing.assert_allclose(
            probes.outputs(data["x"])[layer], kernel @ x.T + bias[:, None], atol=1e-4
        )
        mean = probes.held_out.validation_loss[layer].mean((1, 2))
        assert probes.l2_index[layer] == mean.argmin()


@pytest.mark.parametrize("name", ["two", "three"])
def test_float32_reaches_the_loss_of_scikit_learn(data, name):
    x, spread = data["x"][0], StandardScaler().fit(data["x"][0]).scale_
    for strength in STRENGTHS:
        probes = fit(x[None].astype(np.float32), data[name], l2=[strength])["target"]
        labels = probes.target.labels
        ours = probes.probe.kernel[0], probes.probe.bias[0]
        losses = [
            log_loss(kernel @ x.T + bias[:, None], labels)
            + strength / 2 * np.square(kernel * spread).sum()
            for kernel, bias in (ours, sklearn_probe(x, labels, strength))
        ]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("method", ["lbfgs", "adamw", "ridge", "lda"])
def test_float32_stays_float32_where_float64_is_enabled(x64, method):
    x = np.random.default_rng(0).normal(size=(1, 24, 3)).astype(np.float32)
    options = ji.FitOptions(n_folds=3, method=method, l2=(0.1,), shuffled=False, steps=20)
    fit = ji.fit_probes(x, (x[0, :, 0] > 0).astype(int), options=options)["target"]
    assert jax.tree.leaves(fit.probe)[0].dtype == np.float32
    assert ji.score_probes(fit)[0].estimate["accuracy"][0] > 0.7


def test_balanced_probes_weigh_classes_alike(x64, data):
    probes = fit(data["x"][:1], data["three"], balanced=True, tolerance=1e-12)["target"]
    labels, x = probes.target.labels, data["x"][0]
    kernel, bias = sklearn_probe(x, labels, STRENGTHS[probes.l2_index[0]], class_weight="balanced")
    ours, theirs = probes.outputs(data["x"][:1])[0], kernel @ x.T + bias[:, None]
    # The outputs of several classes are known up to a number that all of them share.
    np.testing.assert_allclose(ours - ours.mean(0), theirs - theirs.mean(0), atol=1e-3)


@pytest.mark.parametrize("name", ["two", "three", "value"])
def test_ridge_equals_scikit_learns(x64, data, name):
    probes = fit(data["x"][:1], data[name], method="ridge")["target"]
    x = StandardScaler().fit_transform(data["x"][0])
    labels, strength = probes.target.labels, STRENGTHS[probes.l2_index[0]]
    wanted = {"two": 2 * labels - 1, "three": np.eye(3)[(labels % 3).astype(int)], "value": labels}
    model = Ridge(alpha=strength * N, tol=1e-12).fit(x, wanted[name])
    theirs = np.atleast_2d(model.predict(x).T)
    np.testing.assert_allclose(probes.outputs(data["x"][:1])[0], theirs, atol=1e-8)


def test_regression_by_search_is_ridge(x64, data):
    searched, solved = (
        fit(data["x"], data["value"], method=method, tolerance=1e-13)["target"]
        for method in ("lbfgs", "ridge")
    )
    np.testing.assert_allclose(
        searched.outputs(data["x"]), solved.outputs(data["x"]), rtol=1e-5, atol=1e-5
    )


class Ridged:
    """A covariance estimator of scikit-learn: λ on the diagonal."""

    def __init__(self, strength):
        self.strength = strength

    def fit(self, x):
        self.covariance_ = np.cov(x.T, bias=True) + self.strength * np.eye(x.shape[1])
        return self


def test_lda_equals_scikit_learns(x64, data):
    probes = fit(data["x"][:1], data["three"], method="lda")["target"]
    x, labels = StandardScaler().fit_transform(data["x"][0]), probes.target.labels
    estimator = Ridged(STRENGTHS[probes.l2_index[0]])
    within = np.concatenate([x[labels == c] - x[labels == c].mean(0) for c in range(3)])
    covariance = estimator.fit(within).covariance_
    means = np.stack([x[labels == c].mean(0) for c in range(3)])
    model = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=estimator).fit(x, labels)
    np.testing.assert_allclose(model.means_, means)
    kernel = means @ np.linalg.inv(covariance)
    bias = np.log(np.bincount(labels.astype(int)) / N) - (kernel * means).sum(1) / 2
    np.testing.assert_allclose(
        probes.outputs(data["x"][:1])[0], kernel @ x.T + bias[:, None], rtol=1e-6, atol=1e-7
    )


def test_many_targets_and_seeds_equal_one_at_a_time(x64, data):
    targets = {"two": data["two"], "other": np.roll(data["two"], 7)}
    together = fit(data["x"], targets, seeds=(0, 1), tolerance=1e-11)
    for name, labels in targets.items():
        alone = fit(data["x"][1:], labels, seeds=(1,), tolerance=1e-11)["target"]
        np.testing.assert_array_equal(together[name].folds[1], alone.folds[0])
        np.testing.assert_allclose(
            together[name].held_out.outputs[1, 1], alone.held_out.outputs[0, 0], atol=1e-3
        )


def test_small_batches_equal_one_large_batch(x64, data):
    options = ji.FitOptions(l2=STRENGTHS, tolerance=1e-11)
    x, done = data["x"], []
    whole = ji.fit_probes(x, data["two"], options=options)["target"]
    parts = ji.fit_probes(
        x,
        data["two"],
        options=options,
        memory=3 * 4 * (20 * FEATURES + 10 * 128),
        on_progress=lambda *seen: done.append(seen),
    )["target"]
    np.testing.assert_allclose(parts.held_out.outputs, whole.held_out.outputs, atol=1e-3)
    np.testing.assert_array_equal(parts.l2_index, whole.l2_index)
    # Each layer has 11 splits, in batches of 3.
    assert len(done) == LAYERS * 4
    assert done[-1] == (LAYERS * 2 * 11, LAYERS * 2 * 11, "probes")


def test_unknown_labels_take_no_part(x64, data):
    labels = data["two"].astype(object)
    labels[::3] = None
    x = data["x"].copy()
    x[:, ::3] *= -50
    probes, clean = (fit(x, labels, tolerance=1e-12)["target"] for x in (data["x"], x))
    assert np.isnan(probes.held_out.outputs[:, :, :, ::3]).all()
    known = probes.target.known
    np.testing.assert_allclose(
        clean.held_out.outputs[..., known], probes.held_out.outputs[..., known], atol=1e-4
    )


def test_early_stopping_returns_the_probe_that_validates_best(data):
    x = data["x"].astype(np.float32)
    options = {"method": "adamw", "l2": [1e-4], "learning_rate": 0.1, "steps": 400}
    stopped = fit(x, data["three"], patience=400, **options)["target"]
    trained = fit(x, data["three"], **options)["target"]
    assert (stopped.held_out.validation_loss <= trained.held_out.validation_loss + 1e-4).all()
    assert (stopped.held_out.train_loss > trained.held_out.train_loss).all()


@pytest.mark.parametrize("method", ["lbfgs", "adamw"])
def test_the_probe_of_all_examples_is_trained_where_others_stop_early(data, method):
    x = data["x"].astype(np.float32)
    options = {"l2": [1e-3], "patience": 10, "steps": 300, "learning_rate": 0.05}
    probes = fit(x, data["two"], method=method, **options)["target"]
    right = (probes.outputs(x)[0, 0] > 0) == probes.target.labels
    assert right.mean() > 0.8


@pytest.mark.parametrize("method", ["lbfgs", "adamw", "ridge", "lda"])
def test_nothing_is_learnt_from_the_examples_that_test(x64, data, method):
    folds = fit(data["x"][:1], data["two"], method="ridge")["target"].folds[0]
    other = data["x"][:1].copy()
    changed, *rest = np.flatnonzero(folds == 0)
    other[0, changed] *= 30
    options = {"method": method, "steps": 100, "tolerance": 1e-12}
    outputs = [
        fit(x, data["two"], **options)["target"].held_out.outputs[0, 0, 0, rest]
        for x in (data["x"][:1], other)
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["lbfgs", "adamw"])
def test_values_are_learnt_wherever_they_lie(data, method):
    x = data["x"].astype(np.float32)
    near, far = (
        fit(x, data["value"] + offset, method=method, steps=300)["target"] for offset in (0.0, 2e4)
    )
    np.testing.assert_allclose(
        far.held_out.outputs - 2e4, near.held_out.outputs, atol=0.02 * data["value"].std()
    )
    np.testing.assert_allclose(far.outputs(x) - 2e4, near.outputs(x), atol=0.05)


def test_features_that_hardly_vary_do_not_mislead_float32(data):
    x = data["x"][:1, :, :6].copy()
    x[0, :, 2] = 1000.1
    x[0, :, 3] = 0
    folds = fit(x, data["two"], method="ridge")["target"].folds[0]
    x[0, np.flatnonzero(folds == 0)[:3], 3] = 5.0
    probes = fit(x.astype(np.float32), data["two"], l2=[1e-3], tolerance=1e-8)["target"]
    assert probes.direction(0)[2] == 0
    trains = (folds != 0) & (folds != 1)
    labels = probes.target.labels
    kernel, bias = sklearn_probe(x[0][trains], labels[trains], 1e-3)
    theirs = (kernel @ x[0].T + bias[:, None])[:, folds == 0]
    np.testing.assert_allclose(probes.held_out.outputs[0, 0][:, folds == 0], theirs, atol=0.05)


def test_gaps_are_unknown_in_any_notation():
    given = ["a", "b", np.nan, None, ""]
    assert read_target(np.array(given, object)).classes == ("a", "b")
    values = read_target([0.5, None, 1.5])
    assert values.kind == "regression"
    np.testing.assert_array_equal(values.known, [True, False, True])


def test_a_hidden_layer_learns_what_no_line_separates():
    generator = np.random.default_rng(1)
    x = generator.normal(size=(1, 200, 4)).astype(np.float32)
    labels = np.where(x[0, :, 0] * x[0, :, 1] > 0, "same", "other")
    options = {"method": "adamw", "l2": [1e-3], "learning_rate": 0.02, "patience": 100}
    right = {}
    for hidden in (None, 32):
        probes = fit(x, labels, n_hidden=hidden, **options)["target"]
        outputs = probes.held_out.outputs[0, 0, 0]
        right[hidden] = ((outputs > 0) == probes.target.labels).mean()
    assert right[None] < 0.65
    assert right[32] > 0.85


@pytest.mark.parametrize("grouped", [False, True])
def test_folds_spread_classes_and_keep_groups_together(data, grouped):
    target = read_target(data["three"], "three")
    speakers = np.unique(data["speaker"], return_inverse=True)[1] if grouped else None
    folds = make_folds(target, 4, 0, speakers)
    assert set(folds) == set(range(4))
    for number in range(3):
        each = np.bincount(folds[target.labels == number], minlength=4)
        assert each.max() - each.min() <= (6 if grouped else 1)
    if speakers is not None:
        for speaker in np.unique(speakers):
            assert len(set(folds[speakers == speaker])) == 1
    assert (folds != make_folds(target, 4, 1, speakers)).any()


def test_shuffles_exchange_labels_within_folds(data):
    target = read_target(data["three"])
    speakers = np.unique(data["speaker"], return_inverse=True)[1]
    folds = make_folds(target, 4, 0, speakers)
    dealt = shuffle_labels(target.labels, folds, 0, speakers)
    assert (dealt != target.labels).mean() > 0.3
    for fold in range(4):
        same = (np.sort(each[folds == fold]) for each in (dealt, target.labels))
        np.testing.assert_array_equal(*same)
    own = (speakers % 2).astype(float)
    exchanged = shuffle_labels(own, folds, 0, speakers)
    assert (exchanged != own).any()
    for speaker in np.unique(speakers):
        assert len(set(exchanged[speakers == speaker])) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": ["a"] * N}, "all alike"),
        ({"y": ["a", "b"]}, "2 labels: expected 120"),
        ({"n_folds": 2}, "at least 3"),
        ({"y": ["rare"] * 3 + ["usual"] * (N - 3)}, "Class 'rare' .* has 3 examples"),
        ({"groups": ["one"] * 60 + ["two"] * 60}, "groups: expected one for each of 5 folds"),
        ({"method": "magic"}, "Unknown method 'magic'"),
        ({"l2": [0.0]}, "numbers above 0"),
        ({"n_hidden": 8}, "takes method='adamw'"),
        ({"y": np.linspace(0, 1, N), "method": "lda"}, "LDA tells classes apart"),
        ({"x": np.zeros((0, N, FEATURES))}, "expected \\[layer, example, feature\\]"),
        ({"x": np.full((1, N, 2), np.nan)}, "not finite"),
        ({"groups": ["a"]}, "There are 1 groups"),
        ({"seeds": (0, 0)}, "different numbers from 0 on"),
        ({"patience": 0}, "patience is 0"),
    ],
)
def test_bad_requests_are_named_in_one_sentence(data, change, message):
    given = {"x": data["x"], "y": data["two"], "groups": None} | change
    x, y, groups = (given.pop(name) for name in ("x", "y", "groups"))
    with pytest.raises(ji.InputError, match=message):
        ji.fit_probes(x, y, groups=groups, options=ji.FitOptions(**given))
