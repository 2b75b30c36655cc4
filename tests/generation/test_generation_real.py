"""Real speech under edits of every head, and with beams: what torch and openai/whisper write."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.decoding import log_softmax
from helpers.generating import ALWAYS, one_by_one
from helpers.golden import GOLDEN
from helpers.real import TINY_FIRST, real_model
from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.generation.options import Choice
from jaxasr_interp.interventions.where import CountedFrom

pytestmark = pytest.mark.usefixtures("optimised")

CLOSE = 1e-3


def heard(model, data, clips, layer=0, head=0, stop=0):
    """Encoder states; with a head of the encoder zeroed up to frame `stop`."""
    edit = ji.At(ji.Zero(), layer, 0, stop, head, site="z")
    mels = [ji.log_mel_spectrogram(ji.load_audio(data / clip)) for clip in clips]
    return jnp.stack([ji.encode(model, mel, edit=edit, sites=()).states for mel in mels])


def where_they_part(ours, theirs):
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def expect_torch(results, expected, end_of_text):
    """Tokens of `results[clip, key]` are torch's up to a choice that was too close to call."""
    wrong = []
    for (clip, key), result in results.items():
        ours = [*result.tokens, end_of_text] if result.finished else list(result.tokens)
        theirs = expected[clip]["plain"] if key == "plain" else expected[clip]["heads"][key]
        at = where_they_part(ours, theirs)
        gap = expected[clip]["close"].get(key, {}).get(str(at), float("inf"))
        if ours != theirs and gap >= CLOSE:
            wrong.append((clip, key, at, gap))
    assert not wrong


def head_of(key):
    site, head = key.split(".", 1)[1].split("@")
    return site, *map(int, head.split("."))


def first_clips(golden, count):
    return dict(list(golden["clips"].items())[:count])


TWO_OR_ALL = pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.corpus)])


@pytest.mark.real
@TWO_OR_ALL
def test_every_decoder_head_zeroed_writes_what_torch_writes(data, count):
    model = real_model("tiny.en")
    golden = json.loads((GOLDEN / "heads_tiny.en.json").read_text())
    clips = first_clips(golden, count)
    keys = [key for key in next(iter(clips.values()))["heads"] if key.startswith("decoder")]
    rows = []
    for key in ["plain", *keys]:
        site, layer, head = ("none", 0, 0) if key == "plain" else head_of(key)
        rows.append(
            ji.Several(
                tuple(
                    ji.At(ji.Zero(), layer, stop=ALWAYS if one == site else 0, head=head, site=one)
                    for one in ("z", "cross_z")
                )
            )
        )
    choice = Choice(max_new_tokens=golden["max_new_tokens"])
    results = [
        generate_rows(model, states[None], [rows], prompts=[golden["prompt"]], choice=choice)[0]
        for states in heard(model, data, clips)
    ]
    assert len(keys) == 2 * model.config.decoder_layers * model.config.decoder_heads
    by_name = {
        (clip, key): one
        for clip, of_clip in zip(clips, results, strict=True)
        for key, one in zip(["plain", *keys], of_clip, strict=True)
    }
    expect_torch(by_name, clips, golden["end_of_text"])
    changed = [one.tokens != of_clip[0].tokens for of_clip in results for one in of_clip]
    assert sum(changed) > 8 * count


@pytest.mark.real
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.corpus), 13])
def test_encoder_heads_zeroed_write_what_torch_writes(data, every):
    model = real_model("tiny.en")
    golden = json.loads((GOLDEN / "heads_tiny.en.json").read_text())
    names, states = [], []
    for i, (clip, expected) in enumerate(golden["clips"].items()):
        keys = [key for key in expected["heads"] if key.startswith("encoder")]
        for key in keys[i % every :: every]:
            _, layer, head = head_of(key)
            states.append(heard(model, data, [clip], layer, head, ALWAYS)[0])
            names.append((clip, key))
    results = ji.generate_batch(
        model,
        jnp.stack(states),
        prompts=[golden["prompt"]] * len(states),
        choice=ji.Choice(max_new_tokens=golden["max_new_tokens"]),
    )
    by_name = dict(zip(names, results, strict=True))
    expect_torch(by_name, golden["clips"], golden["end_of_text"])


@pytest.mark.real
@TWO_OR_ALL
def test_beams_equal_openai_whisper(data, count):
    model = real_model("tiny.en")
    golden = json.loads((GOLDEN / "beams_tiny.en.json").read_text())
    clips = first_clips(golden, count)
    results = ji.generate_batch(
        model,
        heard(model, data, clips),
        prompts=[golden["prompt"]] * len(clips),
        choice=ji.Choice(max_new_tokens=golden["max_new_tokens"], beam_size=golden["beam_size"]),
    )
    for (clip, expected), result in zip(clips.items(), results, strict=True):
        assert list(result.tokens) == expected["tokens"], clip
        assert result.text.strip() == expected["text"], clip
        assert abs(result.mean_log_prob - expected["avg_logprob"]) < 1e-4, clip


@pytest.mark.real
@pytest.mark.parametrize("name", TINY_FIRST)
def test_edits_of_a_real_model_equal_the_full_recompute(data, name):
    model = real_model(name)
    golden = json.loads((GOLDEN / "heads_tiny.en.json").read_text())
    clip, other = heard(model, data, list(golden["clips"])[:2])
    prompt, n = model.tokenizer.prompt(), 20
    text = [*prompt, *next(iter(golden["clips"].values()))["plain"]]
    source = ji.decode(model, text[:12], other, sites="cross_z").acts
    steer = np.random.default_rng(0).normal(0, 1, model.config.d_model)
    parts = [
        ("z", ji.Zero()),
        ("resid_post", ji.Add(jnp.asarray(steer, jnp.float32))),
        ("pattern", ji.Knockout(3, 8)),
        ("cross_pattern", ji.Knockout(50, 150)),
        ("cross_z", ji.Interchange(source)),
        ("cross_attn_out", ji.Interchange()),
    ]
    rows, labels = one_by_one([(site, [edit]) for site, edit in parts])
    choice = Choice(max_new_tokens=n)
    (results,) = generate_rows(
        model, clip[None], [rows], prompts=[prompt], references=other[None], choice=choice
    )
    suppressed = list(model.generation.suppress)

    def expect_chosen(result, row):
        """By induction: each token is the likeliest one after those before it."""
        tokens = [*prompt, *result.tokens] + [model.tokenizer.end_of_text] * result.finished
        padded = np.asarray(tokens + [0] * (24 - len(tokens)), np.int32)
        acts = ji.decode(model, padded, other, sites="cross_attn_out").acts
        # Counted from 0, so that its source may be shorter than the run.
        edit = CountedFrom(row, 0)
        run = ji.decode(model, padded, clip, edit=edit, sites=(), reference=acts)
        logits = np.array(run.logits, np.float64)
        for step, token in enumerate(tokens[len(prompt) :]):
            values = logits[len(prompt) + step - 1]
            values[suppressed + list(model.generation.suppress_first) * (step == 0)] = -np.inf
            log_p = log_softmax(values)
            assert log_p.max() - log_p[token] < CLOSE
            assert abs(log_p[token] - result.log_probs[step]) < CLOSE

    for result, row, label in zip(results, rows, labels, strict=True):
        try:
            expect_chosen(result, row)
        except AssertionError as error:
            raise AssertionError(label[0], label[2]) from error
    assert len({one.tokens for one in results}) > len(parts)
