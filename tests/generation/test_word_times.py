"""When words are said against openai-whisper's own alignment of the same transcripts."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.golden import GOLDEN
from helpers.real import REAL_MODELS, real_model
from jaxasr_interp.generation.utterances import count_frames

pytestmark = pytest.mark.real

FRAME = 0.02


def differences(name, data, clip):
    """Seconds between our starts and ends of words and theirs, at the same edges of tokens."""
    model = real_model(name)
    golden = json.loads((GOLDEN / f"words_{name}.json").read_text())
    heads = {tuple(head) for head in golden["alignment_heads"]}
    assert set(model.generation.alignment_heads) == heads
    expected, prompt = golden["clips"][clip], golden["prompt"]
    audio = ji.load_audio(data / clip)
    mel = ji.log_mel_spectrogram(audio, model.config.n_mels)
    tokens = [*prompt, *expected["tokens"]]
    frames = count_frames(model, audio)
    utterance = ji.Utterance(mel, jnp.asarray(tokens), len(prompt), frames)
    words = ji.align_words(model, utterance, refine=False)
    # Theirs by the position of their first token, and of the one behind their last.
    edges = np.cumsum([len(prompt), *(len(own) for *_, own in expected["words"])]).tolist()
    assert edges[-1] == len(tokens)
    starts = {at: word[1] for at, word in zip(edges, expected["words"], strict=False)}
    ends = {at: word[2] for at, word in zip(edges[1:], expected["words"], strict=True)}
    # Punctuation, which is theirs on its own, belongs to our word before it.
    apart = [at for at, word in zip(edges, expected["words"], strict=False) if word[0][0] == " "]
    assert [word.tokens[0] for word in words] == apart
    assert [word.tokens[1] for word in words] == [*apart[1:], len(tokens)]
    return (
        np.array([word.seconds[0] - starts[word.tokens[0]] for word in words]),
        np.array([word.seconds[1] - ends[word.tokens[1]] for word in words]),
    )


def expect_whisper(name, data, clips):
    each = [differences(name, data, clip) for clip in clips]
    starts, ends = (np.abs(np.concatenate(some)) for some in zip(*each, strict=True))
    print(
        f"{name}: {len(starts)} words, starts within {starts.max():.2f} s of openai-whisper's, "
        f"ends within {ends.max():.2f} s"
    )
    # We give the last frame a clip begins, and each word one frame at least.
    assert starts.max() < FRAME + 1e-6
    assert ends.max() < 3 * FRAME + 1e-6
    assert (starts < 1e-6).mean() > 0.9
    assert (ends < 1e-6).mean() > 0.7


def clips_of(name):
    return list(json.loads((GOLDEN / f"words_{name}.json").read_text())["clips"])


@pytest.mark.parametrize("name", REAL_MODELS)
def test_words_are_said_where_openai_whisper_says(name, data):
    expect_whisper(name, data, ["read_en/libri_26-495-0018.flac"])


@pytest.mark.corpus
@pytest.mark.parametrize("name", REAL_MODELS)
def test_all_words_are_said_where_openai_whisper_says(name, data):
    expect_whisper(name, data, clips_of(name))
