"""Left and right in class names: which classes have a side, and which pairs swap under a horizontal flip."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^A-Za-z\s_/-]+")
"""A word of a class name: split at whitespace, underscores, hyphens, slashes and camel-case boundaries."""

_OTHER = {"left": "right", "right": "left"}
_SIDE = re.compile("|".join(_OTHER))


def has_side(name: str) -> bool:
    """Whether one word of a name is left or right: "left_lung", "LungLeft", "LEFT LUNG"; not "upright", "CLEFT"."""
    return not _OTHER.keys().isdisjoint(_words(name))


def find_flip_pairs(tasks: Iterable[Iterable[str]]) -> tuple[tuple[str, str], ...]:
    """Pairs of names of one task that differ only in left and right ("LEFT_LUNG" and "right lung"), left first.

    Case and word separators are ignored; "leftlung" and "rightlung" are a pair as well if both exist. A name with
    several candidates is in no pair, nor is a name that already has another partner in an earlier task.

    Args:
        tasks: the class names of each task.
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
