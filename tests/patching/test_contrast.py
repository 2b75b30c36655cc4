"""The questions of sweeps: which token is asked for, and what the metrics of it read."""

from importlib import resources

import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.real import real_model
from jaxasr_interp.generation.utterances import count_frames
from jaxasr_interp.model.run import EncodedUtterance
from jaxasr_interp.patching.contrast import Contrast, ask_transcript, ask_word
from jaxasr_interp.patching.metric_names import METRICS

TEXT = "The cat sat on the mat."


@pytest.fixture(scope="module")
def clip():
    return ji.load_audio(str(resources.files("jaxasr_interp") / "data" / "grass.flac"))


@pytest.mark.real
@pytest.mark.parametrize(
    ("word", "before"),
    [
        (None, " The cat sat on the"),
        ("cat", " The"),
        ("THE:1", ""),
        ("the:2", " The cat sat on"),
        ("sat:1", " The cat"),
    ],
)
def test_a_word_is_asked_for_after_the_text_before_it(clip, word, before):
    model = real_model("tiny.en")
    asked = ask_word(model, clip, np.zeros_like(clip), text=TEXT, word=word)
    tokenizer = model.tokenizer
    assert list(asked.tokens) == [*tokenizer.prompt(), *tokenizer.encode(before)]
    rest = TEXT.removeprefix(before.strip()).split()[0]
    assert rest.startswith(tokenizer.decode([asked.target]).strip())
    assert tokenizer.decode(np.asarray(asked.transcript.tokens).tolist()) == f" {TEXT}"
    states = ji.encode(model, asked.corrupted.mel).states
    logits = np.array(ji.decode(model, asked.tokens, states).logits[-1])
    logits[asked.target] = -np.inf
    assert asked.other == logits.argmax()
    assert asked.frames == count_frames(model, clip) == -(-len(clip) // 320)


@pytest.mark.real
def test_the_metrics_are_those_of_the_whole_text(clip):
    model = real_model("tiny.en")
    asked = ask_transcript(model, clip, np.zeros_like(clip), text=TEXT)
    assert asked.target == model.tokenizer.end_of_text
    assert list(asked.tokens) == np.asarray(asked.transcript.tokens).tolist()
    states = ji.encode(model, asked.clean.mel).states
    logits = ji.decode(model, asked.tokens, states).logits
    log_probs = np.asarray(logits, np.float64)
    log_probs -= np.log(np.exp(log_probs).sum(1, keepdims=True))
    targets = [*asked.tokens[2:], asked.target]
    each = [log_probs[1 + i, token] for i, token in enumerate(targets)]

    def value(name):
        metric = asked.metric(name)
        rows = np.arange(len(logits))[list(metric.rows)] if metric.rows else np.arange(len(logits))
        return float(metric(logits[rows], logits[rows]))

    assert value("cross_entropy") == pytest.approx(-np.mean(each), abs=1e-5)
    assert value("log_prob") == pytest.approx(each[-1], abs=1e-5)
    assert value("kl_all") == pytest.approx(0, abs=1e-5)
    assert {asked.metric(name).name for name in METRICS} == set(METRICS)


def test_every_metric_can_be_made(utterances):
    clean, corrupted = (
        EncodedUtterance(mel=one.mel, tokens=one.tokens, prompt=2, frames=12) for one in utterances
    )
    asked = Contrast(clean, corrupted, 3, 4, clean, "said", None)
    assert [asked.metric(name).name for name in METRICS] == list(METRICS)
