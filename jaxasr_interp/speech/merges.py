"""Byte-pair merges: finding and restoring those that a damaged tokenizer file lacks.

The vocabulary of GPT-2, like those of Whisper, holds 256 bytes and then the token of each merge, in
order: id `256 + k` is the token that merge `k` makes. So the ids tell which merges a file has lost.
Files in circulation lack the first merge, `Ġ t`, and every word that begins with t is then encoded
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
        pairs: the merges in the order of their ranks.
        restored: number of merges that were missing.
        state: `"complete"` if no merge is missing, or none is missing any more; `"other"` if the
            vocabulary is built in another way, so that ids do not tell merges and nothing is
            changed.
    """

    pairs: tuple[Merge, ...]
    restored: int
    state: Literal["complete", "other"]


def complete_merges(
    vocabulary: Mapping[str, int], merges: Sequence[Merge], ordinary: int
) -> Merges:
    """Put missing merges back at their rank.

    A missing merge joins the two pieces that all merges before it make of its token.

    Args:
        vocabulary: id of each token.
        merges: the merges in the order of their ranks.
        ordinary: number of ordinary tokens; special tokens have the ids from there on.
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
    """Return the two pieces that merges make of a token; `None` if there are not two."""
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
