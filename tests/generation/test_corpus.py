"""Transcribed clips, some or all: pure-argmax greedy decoding writes torch's tokens."""

import json

import jax.numpy as jnp
import pytest

import jaxasr_interp as ji
from helpers.golden import GOLDEN
from jaxasr_interp.generation.transcribe import encode_batch

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("optimised")]

BATCH = 16
CLOSE = 1e-3


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.corpus), 32])
def test_greedy_tokens_equal_torch(real, data, every):
    name, model = real
    golden = json.loads((GOLDEN / f"greedy_{name}.json").read_text())
    clips = golden["clips"]
    # Clips of similar length share a batch: it runs until its longest transcript ends.
    names = sorted(clips, key=lambda clip: len(clips[clip]["tokens"]))[::every]
    size = min(BATCH, len(names))
    excused, wrong = [], []
    for start in range(0, len(names), size):
        batch = (names[start : start + size] * size)[:size]
        mels = [ji.log_mel_spectrogram(ji.load_audio(data / clip)) for clip in batch]
        states = encode_batch(model.encoder, jnp.stack(mels))
        prompts = [golden["prompt"]] * size
        results = ji.generate_batch(
            model, states, prompts=prompts, choice=ji.Choice(suppress=False)
        )
        for clip, result in zip(names[start : start + size], results, strict=False):
            end = [model.tokenizer.end_of_text] if result.finished else []
            ours, theirs = [*result.tokens, *end], clips[clip]["tokens"]
            if ours == theirs:
                continue
            parts = next(
                (i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
                min(len(ours), len(theirs)),
            )
            gap = clips[clip]["close"].get(str(parts), float("inf"))
            (excused if gap < CLOSE else wrong).append((clip, parts, gap))
    print(f"{name}: {len(names)} clips, top-2 gap under {CLOSE} where they part: {excused}")
    assert not wrong
