"""Decoding again at higher temperatures: when, how often, and with which context."""

import dataclasses

import numpy as np
import pytest

import jaxasr_interp as ji
from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.generation.fallback import decode_again
from jaxasr_interp.generation.long_form import transcribe_windows
from jaxasr_interp.generation.prompts import default_prompt
from jaxasr_interp.model.edits import Identity

GOOD, LOOP = "A sentence that does not repeat itself.", "again and " * 40


def generated(text, mean_log_prob, no_speech_prob):
    return ji.Generated((0,), (5,), (2 * mean_log_prob,), True, no_speech_prob, text)


@pytest.mark.parametrize(
    ("text", "mean_log_prob", "no_speech_prob", "again"),
    [
        (GOOD, -0.3, 0.1, False),
        (GOOD, -0.3, 0.9, False),
        (GOOD, -1.2, 0.1, True),
        (GOOD, -1.2, 0.9, False),
        (LOOP, -0.3, 0.1, True),
        (LOOP, -0.3, 0.9, True),
        (LOOP, -1.2, 0.9, False),
    ],
)
def test_what_repeats_itself_or_is_improbable_is_decoded_again(
    text, mean_log_prob, no_speech_prob, again
):
    tried = []

    def decode(choice):
        tried.append(choice)
        return generated(text, mean_log_prob, no_speech_prob)

    first = ji.Choice(beam_size=3)
    _, used = decode_again(decode, first, decode(first))
    temperatures = [0, 0.2, 0.4, 0.6, 0.8, 1.0] if again else [0]
    assert [choice.temperature for choice in tried] == temperatures
    assert [choice.beam_size for choice in tried] == [3, 1, 1, 1, 1, 1][: len(tried)]
    assert used == tried[-1]


def test_the_first_result_that_will_do_is_taken():
    def decode(choice):
        good = choice.temperature >= 0.6
        return generated(GOOD if good else LOOP, -0.3, 0.1)

    first = ji.Choice(temperature=0.5)
    result, used = decode_again(decode, first, decode(first))
    assert (result.text, used.temperature) == (GOOD, 0.6)


def test_text_of_a_high_temperature_is_no_context(tiny32):
    # The tiny model of random weights is never sure: every window falls back to temperature 1.
    seconds = tiny32.config.max_seconds
    audio = np.random.default_rng(0).normal(size=int(3 * seconds * 16_000)).astype(np.float32)
    choice = ji.Choice(max_new_tokens=6, fallback=True)
    found = list(transcribe_windows(tiny32, audio, choice=choice))
    with pytest.raises(ji.InputError, match="decodes again what transcribe generates"):
        ji.transcribe_batch(tiny32, [audio[:100]], choice=choice)
    drawn = ji.Choice(max_new_tokens=6, temperature=1.0, fallback=True)
    expected = transcribe_windows(tiny32, audio, choice=drawn, condition_on_previous_text=False)
    assert found == list(expected)
    assert len({segment.start for segment in found}) > 1


def test_the_likeliest_of_five_samples_is_taken(tiny32):
    config = tiny32.config
    audio = np.random.default_rng(1).normal(size=config.max_samples).astype(np.float32)
    choice = ji.Choice(max_new_tokens=6, temperature=1.0)
    mel = ji.log_mel_spectrogram(audio, config.n_mels, 2 * config.mel_frames)
    states = ji.encode(tiny32, mel[:, : config.mel_frames], sites=()).states
    prompt = default_prompt(tiny32, timestamps=True)
    # Each is drawn alone; the window's own number is 99, as its temperature is 1.
    drawn = [
        generate_rows(
            tiny32,
            states[None],
            [[Identity()]],
            prompts=[prompt],
            choice=choice,
            draws=[5 * 99 + i],
        )[0][0]
        for i in range(5)
    ]
    means = [sum(one.log_probs) / len(one.tokens) for one in drawn]
    assert len(set(means)) == 5
    assert np.argmax(means) > 0
    expected = drawn[np.argmax(means)]
    found = next(
        transcribe_windows(tiny32, audio, choice=dataclasses.replace(choice, fallback=True))
    )
    assert found.mean_log_prob == pytest.approx(expected.mean_log_prob, rel=1e-5)
    assert found.tokens == expected.tokens[: len(found.tokens)]
