"""Clips to train a tuned lens of the tiny model on."""

import numpy as np

import jaxasr_interp as ji

TRAINING = {"steps": 30, "batch_size": 16, "save_every": 10, "held_out": 0.25}


def clips(n):
    generator = np.random.default_rng(3)
    audio = generator.normal(0, 0.1, (n, 24 * 160)).astype(np.float32)
    texts = ["".join(generator.choice(list("abcdefgh"), 3 + i % 5)) for i in range(n)]
    return [ji.Clip(f"{i}", a, t, "en") for i, (a, t) in enumerate(zip(audio, texts, strict=True))]
