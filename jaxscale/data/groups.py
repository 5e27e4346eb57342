"""Which sources a pattern of data.mixture means, and what sources are called.

A pattern matches a file whose whole path it matches, or the end of it, component by component; a folder stands for
everything below it. A name is the last component of a path or pattern, up to its first dot and without wildcards:
"corpora/gcide.txt.xz" and "*gcide*" are gcide. Where two would be called alike, both keep their paths.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePath

from jaxscale.errors import MisuseError

__all__ = ["check_mixture", "group_sources", "name_sources"]


def check_mixture(mixture: Sequence[tuple[str, float]]) -> None:
    """MisuseError for a weight that is not a positive number and a pattern that is there twice."""
    patterns = [pattern for pattern, _ in mixture]
    for pattern, weight in mixture:
        if not (math.isfinite(weight) and weight > 0):
            raise MisuseError(f"data.mixture: weight {weight:g} of {pattern!r} is not a positive number; a source that "
                              f"is not to be trained on is left out")  # fmt: skip
        if patterns.count(pattern) > 1:
            raise MisuseError(f"data.mixture: {pattern!r} is there twice; name it once, with the sum of its weights")


def group_sources(mixture: Sequence[tuple[str, float]], sources: Sequence[str]) -> list[tuple[int, ...]]:
    """Numbers of the sources (paths) that each pattern means; MisuseError where it means none, or one of another's."""
    check_mixture(mixture)
    owner: dict[int, str] = {}
    groups = []
    for pattern, _ in mixture:
        found = tuple(number for number, source in enumerate(sources) if _matches(pattern, source))
        if not found:
            seen = ", ".join(sources[:5]) + ", ..." * (len(sources) > 5)
            raise MisuseError(f"data.mixture: pattern {pattern!r} matches no file of data.files with training text "
                              f"(there: {seen}); correct it")  # fmt: skip
        for number in found:
            if number in owner:
                raise MisuseError(f"data.mixture: {sources[number]} matches {owner[number]!r} and {pattern!r}; "
                                  f"narrow one of them, a file has one weight")  # fmt: skip
            owner[number] = pattern
        groups.append(found)
    return groups


def name_sources(identities: Iterable[str]) -> dict[str, str]:
    """A short name for each path or pattern, itself where the short one is not its own.

    >>> name_sources(["corpora/gcide.txt.xz", "*tdavid*", "a/x.txt", "b/x.md", "web/**"])
    {'corpora/gcide.txt.xz': 'gcide', '*tdavid*': 'tdavid', 'a/x.txt': 'a/x.txt', 'b/x.md': 'b/x.md', 'web/**': 'web'}
    """
    short = {identity: _shorten(identity) for identity in dict.fromkeys(identities)}
    counts = Counter(short.values())
    return {identity: name if name and counts[name] == 1 else identity for identity, name in short.items()}


def _shorten(identity: str) -> str:
    for part in reversed(PurePath(identity).parts):
        bare = part.translate(dict.fromkeys(map(ord, "*?[]")))
        if name := bare.split(".")[0].strip("/-_ "):
            return name
    return ""


def _matches(pattern: str, source: str) -> bool:
    """
    >>> [_matches(p, "/data/web/a.txt") for p in ("*/a.txt", "web/*.txt", "/data/web", "web", "b/*.txt", "*.md")]
    [True, True, True, False, False, False]
    """
    plain = PurePath(os.path.expanduser(pattern)).as_posix()
    return (fnmatchcase(source, plain) or PurePath(source).match(plain)
            or source.startswith(f"{plain.rstrip('/')}/"))  # fmt: skip
