"""Fonts for the scripts of all languages: those of the system that have a picture's letters."""

import contextlib
import functools
import logging
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

_CJK = ("Hangul", "Cjk", "Hiragana", "Katakana", "Bopomofo")
# They have every letter as a box, or letters that matplotlib cannot draw.
_NO_LETTERS = ("LastResort", "Last Resort", "Color Emoji")
_LARGEST_ASCII, _REGULAR = 127, 400


def use_fonts(figure: Any) -> None:
    """Give all texts of a figure fonts that have their letters.

    Fonts of the system are added behind the figure's own, whose letters stay as they are. If no
    font has a letter, a warning names its script and a font to install.
    """
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    letters = {c for text in texts for c in text.get_text() if ord(c) > _LARGEST_ASCII}
    missing = {c for c in letters if c.isprintable()} - _letters_of(findfont(FontProperties()))
    if not missing:
        return
    found = []
    for family, path in _system_fonts():
        if has := missing & _letters_of(path):
            found.append(family)
            missing -= has
        if not missing:
            break
    if missing:
        warnings.warn(_lack(missing), stacklevel=2)
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *found])


@contextlib.contextmanager
def without_notes_on_fonts() -> Iterator[None]:
    """Leave out what matplotlib says of fonts: `use_fonts` has said which letters have none."""
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
            warnings.filterwarnings("ignore", r"Matplotlib currently does not support .* natively")
            yield
    finally:
        logger.setLevel(level)


def _system_fonts() -> list[tuple[str, str]]:
    """Return family and path of upright fonts, Noto Sans first: it has most scripts."""
    from matplotlib.font_manager import fontManager, weight_dict

    upright = [
        font
        for font in fontManager.ttflist
        if font.style == "normal" and not any(name in font.name for name in _NO_LETTERS)
    ]
    # Of each family the file that is nearest to regular: a variable font may call itself thin.
    by_weight = sorted(
        upright,
        key=lambda font: -abs(int(weight_dict.get(str(font.weight), font.weight)) - _REGULAR),
    )
    fonts = {font.name: font.fname for font in by_weight}
    return sorted(fonts.items(), key=lambda font: (not font[0].startswith("Noto Sans"), font[0]))


@functools.lru_cache(maxsize=512)
def _letters_of(path: str) -> frozenset[str]:
    from matplotlib.font_manager import get_font

    return frozenset(map(chr, get_font(path).get_charmap()))


def _lack(missing: Iterable[str]) -> str:
    """Say which scripts have no font, and what to install."""
    names = {unicodedata.name(letter, "unknown").split()[0].capitalize() for letter in missing}
    scripts = sorted(name.replace("Cjk", "CJK") for name in names)
    fonts = sorted({"CJK" if name in _CJK else name for name in names})
    wanted = " and ".join(f"Noto Sans {font}" for font in fonts)
    return (
        f"No font of this system has the {', '.join(scripts)} letters of a picture, which stand "
        f"as boxes: install {wanted}."
    )
