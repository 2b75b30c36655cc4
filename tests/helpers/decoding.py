"""Special tokens of the tiny model, and what may follow as openai/whisper states it."""

import numpy as np

NO_TIMESTAMPS, BEGIN, END = 39, 40, 30
PROMPT = [31, 32, 35, NO_TIMESTAMPS]


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits)


def forbidden_by_openai(logits, tokens):
    """The timestamp rules, token by token, as openai/whisper states them."""
    logits = logits.copy()
    logits[NO_TIMESTAMPS] = -np.inf
    last = len(tokens) >= 1 and tokens[-1] >= BEGIN
    second = len(tokens) < 2 or tokens[-2] >= BEGIN
    if last and second:
        logits[BEGIN:] = -np.inf
    elif last:
        logits[:END] = -np.inf
    times = [token for token in tokens if token >= BEGIN]
    if times:
        logits[BEGIN : times[-1] + (0 if last and not second else 1)] = -np.inf
    if not tokens:
        logits[:BEGIN] = -np.inf
        logits[BEGIN + 51 :] = -np.inf
    log_p = log_softmax(logits)
    if np.logaddexp.reduce(log_p[BEGIN:]) > log_p[:BEGIN].max():
        logits[:BEGIN] = -np.inf
    return logits
