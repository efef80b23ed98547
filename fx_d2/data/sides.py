"""Left and right in the names of classes: what has a side, and what it becomes in a mirrored image."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^A-Za-z\s_/-]+")
"""A word of a name: between blanks, underscores, hyphens and slashes, and as camel case has them."""

_OTHER = {"left": "right", "right": "left"}
_SIDE = re.compile("|".join(_OTHER))


def has_side(name: str) -> bool:
    """Whether a word of a name is left or right: "left_lung", "LungLeft", "LEFT LUNG"; not "upright", "CLEFT"."""
    return not _OTHER.keys().isdisjoint(_words(name))


def find_flip_pairs(tasks: Iterable[Iterable[str]]) -> tuple[tuple[str, str], ...]:
    """Pairs of names of one task that differ in left against right alone ("LEFT_LUNG" and "right lung"), left first.

    Case and what stands between words do not count; where both are there, "leftlung" and "rightlung" are a pair, too. A
    name that fits several is in no pair, nor is one that has another partner in an earlier task.

    Args:
        tasks: of each task its classes.
    """
    paired: set[str] = set()
    pairs = []
    for names in tasks:
        spelled: dict[str, list[str]] = {}
        for name in names:
            spelled.setdefault(" ".join(_words(name)), []).append(name)
        for words, alike in spelled.items():
            side = _SIDE.search(words)
            others = spelled.get(_SIDE.sub(lambda match: _OTHER[match[0]], words), [])
            if side and side[0] == "left" and len(alike) == len(others) == 1 and not paired & {*alike, *others}:
                paired |= {*alike, *others}
                pairs.append((alike[0], others[0]))
    return tuple(pairs)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]
