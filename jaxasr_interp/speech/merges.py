"""Byte-pair merges against the vocabulary that they make, and what a damaged list lacks.

GPT-2's vocabulary, which Whisper's are made like, is 256 bytes and then what each merge makes, in
order: id `256 + k` is what merge `k` makes. A list that has lost some of its merges shows thereby
which: files in circulation lack the first, `Ġ t`, so that every word that begins with t is encoded
in pieces that the model never writes.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

_BYTES = 256

type Merge = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Merges:
    """The merges of a vocabulary.

    Attributes:
        pairs: in the order of their ranks.
        restored: how many of them were missing.
        state: `"complete"`, as it came or now that it is restored; `"other"` if the vocabulary is
            of another build, in which ids do not tell merges: then nothing is changed.
    """

    pairs: tuple[Merge, ...]
    restored: int
    state: Literal["complete", "other"]


def complete_merges(
    vocabulary: Mapping[str, int], merges: Sequence[Merge], ordinary: int
) -> Merges:
    """Put merges that are missing back at their rank.

    A missing merge is the last step of encoding its token with all that rank before it.

    Args:
        vocabulary: id of each token.
        merges: in the order of their ranks.
        ordinary: how many ids are of ordinary tokens; those from there on are special.
    """
    tokens = {number: token for token, number in vocabulary.items()}
    given, found, ranks = tuple(merges), [], {}
    rest = iter(given)
    following = next(rest, None)
    for number in range(_BYTES, ordinary):
        token = tokens.get(number)
        if not token:
            break
        pair = following
        if pair is not None and pair[0] + pair[1] == token:
            following = next(rest, None)
        else:
            pair = _last_step(token, ranks)
        if pair is None:
            return Merges(given, 0, "other")
        ranks[pair] = len(found)
        found.append(pair)
    if following is not None:
        return Merges(given, 0, "other")
    return Merges(tuple(found), len(found) - len(given), "complete")


def _last_step(token: str, ranks: Mapping[Merge, int]) -> Merge | None:
    """The two pieces that merges make of a token; `None` if they make more or fewer."""
    pieces = list(token)
    while len(pieces) > 2:
        best = min(itertools.pairwise(pieces), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            return None
        merged: list[str] = []
        for piece in pieces:
            if merged and (merged[-1], piece) == best:
                merged[-1] += piece
            else:
                merged.append(piece)
        pieces = merged
    return (pieces[0], pieces[1]) if len(pieces) == 2 else None
