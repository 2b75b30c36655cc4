"""The sides of `generation.py`: what one run of each is, and what it wrote."""

import dataclasses
import time
from typing import Any

from harness import Peer, seconds
from jaxtyping import Array, Float

import jaxasr_interp as ji
from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.generation.options import Choice
from jaxasr_interp.generation.transcribe import encode_batch
from jaxasr_interp.interventions.kinds import Zero
from jaxasr_interp.interventions.where import END, At, Several

MAX_WITHOUT_A_HEAD = 60
HEAD_SITES = ("z", "cross_z")

type Row = dict[str, Any]
type Head = tuple[str, int, int]
type Tokens = list[list[int]]


@dataclasses.dataclass(frozen=True)
class Clips:
    """What both sides transcribe.

    Attributes:
        model: with its tokenizer.
        mels: of each clip.
        lengths: seconds of each clip.
    """

    model: ji.Whisper
    mels: Float[Array, "clip n_mels mel_frame"]
    lengths: tuple[float, ...]

    @property
    def prompt(self) -> list[int]:
        """What every transcript begins with."""
        assert self.model.tokenizer is not None
        return self.model.tokenizer.prompt()


class Side:
    """A peer's runs: what each took and what the last one wrote."""

    def __init__(self, peer: Peer, **request: Any):
        self.peer, self.request = peer, request
        self.peak = 0
        self.tokens: Tokens = []
        self.encoding: list[float] = []

    def __call__(self) -> float:
        """Run once; return its seconds."""
        answer = self.peer("generate", **self.request)
        (self.tokens,) = answer["tokens"]
        if "encode_seconds" in answer:
            self.encoding.append(answer["encode_seconds"])
        self.peak = max(self.peak, answer["peak_bytes"])
        return answer["seconds"]


class Ours:
    """Our transcripts of all clips, some at a time; encoding and decoding apart."""

    def __init__(self, clips: Clips, batch: int):
        self.clips, self.batch = clips, batch
        self.encoding: list[float] = []
        self.decoding: list[float] = []
        self.generated: list[ji.Generated] = []

    def __call__(self) -> float:
        """Run once; return its seconds."""
        model, batch = self.clips.model, self.batch
        encoding, decoding, self.generated = 0.0, 0.0, []
        for start in range(0, len(self.clips.lengths), batch):
            started = time.perf_counter()
            states = encode_batch(model.encoder, self.clips.mels[start : start + batch])
            states.block_until_ready()
            encoded = time.perf_counter()
            self.generated += ji.generate_batch(model, states)
            decoding += time.perf_counter() - encoded
            encoding += encoded - started
        self.encoding.append(encoding)
        self.decoding.append(decoding)
        return encoding + decoding

    @property
    def tokens(self) -> Tokens:
        """What the last run wrote."""
        return [list(one.tokens) for one in self.generated]


class OurHeads:
    """Our transcripts of all clips with each head of the decoder zeroed by itself."""

    def __init__(self, clips: Clips):
        config = clips.model.config
        self.clips = clips
        self.heads: list[Head] = [
            (site, layer, head)
            for site in HEAD_SITES
            for layer in range(config.decoder_layers)
            for head in range(config.decoder_heads)
        ]
        self.edits = [zeroed(*head) for head in self.heads]
        self.generated: list[list[ji.Generated]] = []

    def __call__(self) -> float:
        """Run once; return its seconds."""
        return seconds(self._run)

    def _run(self) -> None:
        model, mels = self.clips.model, self.clips.mels
        choice = Choice(max_new_tokens=MAX_WITHOUT_A_HEAD)
        states = encode_batch(model.encoder, mels)
        self.generated = generate_rows(model, states, [self.edits] * len(mels), choice=choice)

    def tokens(self, head: Head) -> Tokens:
        """What was written without a head, for each clip."""
        place = self.heads.index(head)
        return [list(of_clip[place].tokens) for of_clip in self.generated]


class TheirHeads:
    """A peer's transcripts without some heads, other ones in every run, scaled to all heads."""

    def __init__(self, peer: Peer, ours: OurHeads, share_states: bool):
        self.peer, self.ours, self.share_states = peer, ours, share_states
        self.runs = self.peak = self.compared = self.differ = 0

    def __call__(self) -> float:
        """Run once; return the seconds that all heads would take."""
        some = sample(self.ours.clips.model.config, self.runs)
        answer = self.peer(
            "generate",
            clips=list(range(len(self.ours.clips.lengths))),
            heads=some,
            max_new_tokens=MAX_WITHOUT_A_HEAD,
            share_states=self.share_states,
        )
        for head, tokens in zip(some, answer["tokens"], strict=True):
            self.differ += differing(self.ours.tokens(head), tokens)[0]
            self.compared += len(tokens)
        self.runs += 1
        self.peak = max(self.peak, answer["peak_bytes"])
        scale = len(self.ours.heads) / len(some)
        return answer.get("encode_seconds", 0.0) + answer["generate_seconds"] * scale


def zeroed(site: str, layer: int, head: int) -> Several:
    """An edit that zeroes one head; of one structure for all heads."""
    return Several(
        tuple(
            At(Zero(), layer, stop=END if s == site else 0, head=head, site=s) for s in HEAD_SITES
        )
    )


def sample(config: ji.WhisperConfig, run: int) -> list[Head]:
    """A head of every layer and site, each run others."""
    layers = range(config.decoder_layers)
    cells = [(site, layer) for site in HEAD_SITES for layer in layers]
    return [(*cell, (run + i) % config.decoder_heads) for i, cell in enumerate(cells)]


def differing(ours: Tokens, theirs: Tokens) -> tuple[int, int]:
    """How many of the transcripts differ, and how many of their tokens."""
    tokens = [
        sum(a != b for a, b in zip(mine, other, strict=False)) + abs(len(mine) - len(other))
        for mine, other in zip(ours, theirs, strict=True)
    ]
    return sum(map(bool, tokens)), sum(tokens)
