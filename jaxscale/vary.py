"""A study with variants -> one study each: every change typed and within limits, or refused with the way out.

A change is FIELD=VALUE of the study, written as a person would: "recipe.optimizer=sgd", "grid.widths=16,32" or
"(16,32)", "data.mixture=(('a*',.7),('b*',.3))". The value is read by the field's own type; nothing is evaluated.
What belongs to the study as a whole (where it trains, its seed, the rules of its evidence) no variant may change: two
variants that differ in it by accident would differ in the answer.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, Union

from jaxscale.config import Study, Tuning, Variant
from jaxscale.errors import MisuseError
from jaxscale.limits import check_limits
from jaxscale.plain import to_plain

__all__ = ["RESERVED", "declared_fields", "vary_study"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,39}")
"""Names are folders and stand in commands to copy: no space, no quote, nothing that leads out of a folder."""
RESERVED = ("runs", "all")
"""Names that mean something else beside those of variants: the folder of the sweeps' runs, every variant."""
WHOLE = {
    "name": "it names the study's folder; a variant has a name of its own",
    "variants": "a variant has no variants",
    "tuning": "every variant gets the same sweep by the same rule",
    "launch": "it says how the study goes through a cluster",
    "mesh": "it says where the study trains, and that changes no result",
    "mesh.dtype": "it is where the study trains; to compare precisions change recipe.precision",
    "seed": "all variants share init and data order; repeat them with grid.seeds",
    "hardware": "the plan has one price list",
    "grid.exclude_spike": "one rule refuses runs of all variants",
    "data.cache": "where token files lie changes no result",
    "forecast_flops": "all variants are compared at one target",
    "declared": "all variants are read by one approach",
    "bootstrap": "all intervals rest on as many draws",
}
"""Fields of the study as a whole, with the reason."""


def vary_study(study: Study) -> dict[str, Study]:
    """The study of each variant by name, in order, without variants and tuning; {} where the study has none.

    MisuseError: a name that is no folder's or is there twice, fewer than two variants, two that are the same study, a
    change of an unknown field, of another type, out of limits, or of what belongs to the whole study.
    """
    if not study.variants:
        if study.tuning.rates:
            raise MisuseError("tuning.rates: tunes the variants of a study and this one has none; add variants, or use "
                              "`jaxscale mup sweep` and recipe.lr_from")  # fmt: skip
        return {}
    _check_names(study.variants)
    found: dict[str, Study] = {}
    for variant in study.variants:
        found[variant.name] = own = _change(study, variant)
        if study.tuning.rates and own.recipe.lr_from:
            raise MisuseError(f"variants: {variant.name}: recipe.lr_from: every variant takes its rate from its own "
                              f"sweep (tuning.rates); leave one of the two out")  # fmt: skip
        same = [name for name, other in found.items() if name != variant.name and to_plain(other) == to_plain(own)]
        if same:
            raise MisuseError(f"variants: {same[0]} and {variant.name} are the same study; change a field in one of "
                              f"them, or leave it out")  # fmt: skip
    return found


def declared_fields(variant: Variant) -> tuple[str, ...]:
    """Dotted names of the fields that a variant changes."""
    return tuple(change.partition("=")[0].strip() for change in variant.changes)


def _check_names(variants: tuple[Variant, ...]) -> None:
    if len(variants) < 2:
        raise MisuseError("variants: one alone has nothing to be compared with; give a second, as in "
                          'Variant("as_it_is")')  # fmt: skip
    seen: dict[str, str] = {}
    for i, variant in enumerate(variants):
        if not NAME.fullmatch(variant.name):
            raise MisuseError(f"variants[{i}].name: {variant.name!r} names no folder; use 1 to 40 letters, digits and "
                              f". _ + -, a letter or digit first")  # fmt: skip
        key = variant.name.casefold()  # some file systems do not tell case
        if key in RESERVED:
            raise MisuseError(f"variants[{i}].name: {variant.name!r} is taken ({', '.join(RESERVED)}); use another")
        if key in seen:
            raise MisuseError(f"variants[{i}].name: {variant.name!r} and {seen[key]!r} name one folder; use another")
        seen[key] = variant.name


def _change(study: Study, variant: Variant) -> Study:
    own = replace(study, variants=(), tuning=Tuning())
    changed: set[str] = set()
    for change in variant.changes:
        field, equals, text = (part.strip() for part in change.partition("="))
        where = f"variants: {variant.name}: {change!r}"
        if not equals:
            raise MisuseError(f"{where}: is no FIELD=VALUE; write it as in recipe.optimizer=sgd")
        if field in changed:
            raise MisuseError(f"{where}: {field} is changed twice; change it once")
        changed.add(field)
        own = _set(own, field, _parse(text, _find_type(field, where), f"{where}: {field}"))
    try:
        check_limits(own)
    except MisuseError as error:
        raise MisuseError(f"variants: {variant.name}: {error}") from error
    return own


def _set(owner: Any, field: str, value: Any) -> Any:
    head, _, rest = field.partition(".")
    return replace(owner, **{head: _set(getattr(owner, head), rest, value) if rest else value})


def _find_type(field: str, where: str) -> Any:
    """The declared type of a field by its dotted name; MisuseError for one that a variant cannot have."""
    for part in (field, field.partition(".")[0]):
        if part in WHOLE:
            raise MisuseError(f"{where}: {part} belongs to the whole study: {WHOLE[part]}")
    known = dict(_fields(Study))
    if field in known:
        return known[field]
    if any(name.startswith(f"{field}.") for name in known):
        raise MisuseError(f"{where}: {field} is a group of fields; name one of it, as in "
                          f"{next(name for name in known if name.startswith(f'{field}.'))}")  # fmt: skip
    usable = [name for name in known if name.partition(".")[0] not in WHOLE and name not in WHOLE]
    last = [name for name in usable if name.rpartition(".")[2] == field.rpartition(".")[2]]  # the wrong group, or none
    near = last or difflib.get_close_matches(field, usable, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "`jaxscale plan STUDY.py --help` lists them"
    raise MisuseError(f"{where}: {field!r} is no field of a study; {hint}")


@cache
def _fields(kind: Any, prefix: str = "") -> tuple[tuple[str, Any], ...]:
    """(dotted name, type) of every field that holds a value."""
    hints = typing.get_type_hints(kind)
    found: list[tuple[str, Any]] = []
    for one in fields(kind):
        name, hint = f"{prefix}{one.name}", hints[one.name]
        if is_dataclass(hint):
            found += _fields(hint, f"{name}.")  # type: ignore[arg-type]
        else:
            found.append((name, hint))
    return tuple(found)


def _parse(text: str, kind: Any, where: str) -> Any:
    """The value that a person's text means for a field of this type."""
    origin = typing.get_origin(kind)
    if origin is tuple and text[:1] not in ("(", "["):
        parts = text.removesuffix(",").split(",")  # (16,) without its brackets
        members = list(_members(kind, len(parts)))
        if not text or typing.get_origin(members[0]) is tuple or len(members) != len(parts):
            raise _wrong(text, kind, where)
        return tuple(_parse(part.strip(), one, where) for part, one in zip(parts, members, strict=True))
    if origin in (Union, types.UnionType) and text.lower() == "none":
        return _check(None, kind, where)
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    is_text = kind is str or (origin is Literal and isinstance(typing.get_args(kind)[0], str))
    return _check(text if is_text and not isinstance(value, str) else value, kind, where)


def _check(value: Any, kind: Any, where: str) -> Any:
    """The value as the type wants it, numbers of whole type where it says int; MisuseError where it is another."""
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        choices = typing.get_args(kind)
        if value is None and type(None) in choices:
            return None
        return _check(value, next(one for one in choices if one is not type(None)), where)
    if origin is Literal and value in typing.get_args(kind):
        return value
    if origin is tuple and isinstance(value, tuple | list):
        members = list(_members(kind, len(value)))
        if len(members) == len(value):
            return tuple(_check(one, member, where) for one, member in zip(value, members, strict=True))
    if kind in (str, bool) and isinstance(value, kind):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if number and kind is float:
        return float(value)
    if number and kind is int and value == int(value):
        return int(value)
    raise _wrong(value, kind, where)


def _members(kind: Any, count: int) -> Iterator[Any]:
    """The types of a tuple's members: one for all, or one each."""
    members = typing.get_args(kind)
    return iter([members[0]] * count if members[1:] == (...,) else members)


def _wrong(value: Any, kind: Any, where: str) -> MisuseError:
    return MisuseError(f"{where}: {value!r} is not {_describe(kind)}")


def _describe(kind: Any) -> str:
    """What a type allows, in words, with an example where it takes one."""
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return f"{_describe(next(one for one in members if one is not type(None)))}, or none"
    if origin is Literal:
        return f"one of {', '.join(map(str, members))}"
    if origin is tuple and typing.get_origin(members[0]) is tuple:
        return "a list of pairs, as in (('a*',.7),('b*',.3))"
    if origin is tuple:
        return f"a list of {PLURALS[members[0]]}" if members[1:] == (...,) else f"{len(members)} values with commas"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]


PLURALS = {
    int: "whole numbers, as in 16,32",
    float: "numbers, as in 1e10,3e10",
    str: "texts, as in a/*.txt,b/*.txt",
}
