"""Changes of a variant: typed, within limits, and refused with the field, the value and the way out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jaxscale.config import EVAL_FIELDS, Recipe, Study, Tuning, Variant
from jaxscale.errors import MisuseError
from jaxscale.vary import declared_fields, vary_study


def vary(*changes: str, study: Study | None = None) -> Study:
    """The study of a variant with these changes, beside one without."""
    base = study or Study()
    return vary_study(replace(base, variants=(Variant("base"), Variant("own", changes))))["own"]


def value_of(study: Study, field: str) -> Any:
    value: Any = study
    for part in field.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("recipe.optimizer=sgd", "sgd"),
        ("grid.widths=16,32", (16, 32)),
        ("grid.widths=(16,32)", (16, 32)),
        ("grid.widths = [16, 32]", (16, 32)),
        ("grid.widths=16", (16,)),
        ("grid.budgets=1e10,3e10", (1e10, 3e10)),
        ("data.mixture=(('a*',.7),('b*',.3))", (("a*", 0.7), ("b*", 0.3))),
        ("data.files=a/*.txt,b/*.txt", ("a/*.txt", "b/*.txt")),
        ("data.files=('a,b.txt',)", ("a,b.txt",)),
        ("data.tokenizer=bpe:512", "bpe:512"),
        ("recipe.eval_shots_from=007", "007"),
        ("data.unique_tokens=1e6", 1e6),
        ("grid.aspect=64", 64.0),
        ("grid.aspect_range=2,128", (2.0, 128.0)),
        ("model.position=none", "none"),
        ("model.base_head_dim=8", 8),
        ("model.n_layers=1e1", 10),
        ("model.tied=true", True),
    ],
)
def test_a_change_is_read_by_the_type_of_its_field(change: str, expected: Any) -> None:
    found = value_of(vary(change), change.partition("=")[0].strip())
    assert (found, type(found)) == (expected, type(expected))
    if isinstance(expected, tuple):
        assert [type(one) for one in found] == [type(one) for one in expected]


def test_changes_leave_all_else_alone_and_none_sets_a_field_free() -> None:
    study = replace(Study(), recipe=Recipe(lr=0.5, lr_horizon_exponent=-0.3, lr_from="x"), seed=7)
    own = vary("recipe.lr=.25", "recipe.lr_horizon_exponent=none", study=study)
    assert own == replace(study, recipe=replace(study.recipe, lr=0.25, lr_horizon_exponent=None))
    assert declared_fields(Variant("x", ("recipe.lr = .25", "model.tied=true"))) == ("recipe.lr", "model.tied")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("recipe.optimiser=sgd", "did you mean 'recipe.optimizer'"),
        ("optimizer=sgd", "did you mean 'recipe.optimizer'"),
        ("model.lr=.1", "did you mean 'recipe.lr'"),
        ("recipe.optimizer=sgdx", "'sgdx' is not one of adamw, sgd, muon, lion, adafactor"),
        ("recipe.lr=fast", "recipe.lr: 'fast' is not a number"),
        ("recipe.lr=nan", "recipe.lr: 'nan' is not a number"),
        ("recipe.lr=1e999", "recipe.lr: inf is not a number"),
        ("recipe.lr=-1", "own: recipe.lr: -1 is not a positive number"),
        ("recipe.lr", "is no FIELD=VALUE"),
        ("model=3", "model is a group of fields; name one of it"),
        ("model.n_layers=2.5", "2.5 is not a whole number"),
        ("model.tied=1", "1 is not true or false"),
        ("grid.widths=16,x", "grid.widths: 'x' is not a whole number"),
        ("grid.widths=", "'' is not a list of whole numbers, as in 16,32"),
        ("grid.aspect_range=1,2,3", "is not 2 values with commas"),
        ("data.mixture=a*,.7", "is not a list of pairs, as in (('a*',.7),('b*',.3))"),
        ("data.files=(1,2)", "1 is not a text"),
        ("mesh.dtype=bfloat16", "change recipe.precision"),
        ("mesh.workers=2", "mesh belongs to the whole study"),
        ("launch.lease_s=2", "launch belongs to the whole study"),
        ("tuning.rates=2", "every variant gets the same sweep by the same rule"),
        ("seed=3", "all variants share init and data order"),
        ("name=x", "a variant has a name of its own"),
        ("grid.exclude_spike=.1", "one rule refuses runs of all variants"),
    ],
)
def test_a_wrong_change_names_field_value_and_way_out(change: str, said: str) -> None:
    with pytest.raises(MisuseError, match=r"^variants: own: ") as caught:
        vary(change)
    assert said in str(caught.value)


def test_one_field_is_changed_once() -> None:
    with pytest.raises(MisuseError, match=r"recipe\.lr is changed twice"):
        vary("recipe.lr=.1", "recipe.lr=.2")


@pytest.mark.parametrize("name", ["", "..", ".x", "-x", "a b", "a/b", "a'b", "x" * 41, "runs", "All"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(MisuseError, match=r"variants\[1\]\.name"):
        vary_study(replace(Study(), variants=(Variant("a"), Variant(name, ("recipe.lr=.1",)))))


def test_names_that_differ_in_case_alone_are_one_folder() -> None:
    with pytest.raises(MisuseError, match="name one folder"):
        vary_study(replace(Study(), variants=(Variant("Adam"), Variant("adam", ("recipe.lr=.1",)))))


@pytest.mark.parametrize("change", ["recipe.lr=0.02", "recipe.lr=2e-2", "data.tokenizer='bytes'"])
def test_two_variants_that_are_the_same_study_are_refused(change: str) -> None:
    with pytest.raises(MisuseError, match="base and own are the same study"):
        vary(change)


def test_a_comparison_needs_two_and_tuning_needs_a_comparison() -> None:
    assert vary_study(Study()) == {}
    with pytest.raises(MisuseError, match="one alone"):
        vary_study(replace(Study(), variants=(Variant("a"),)))
    with pytest.raises(MisuseError, match="this one has none"):
        vary_study(replace(Study(), tuning=Tuning(rates=5)))


def test_a_rate_has_one_source() -> None:
    two = (Variant("a"), Variant("b", ("recipe.lr_from=other.json",)))
    with pytest.raises(MisuseError, match=r"recipe\.lr_from"):
        vary_study(replace(Study(), variants=two, tuning=Tuning(rates=5)))


def test_what_only_looks_at_a_run_may_differ() -> None:
    assert "measure_noise" in EVAL_FIELDS
    assert vary("recipe.measure_noise=true").recipe.measure_noise
