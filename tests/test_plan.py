"""Plans: budgets met, both arms there, every drop explained, refusals with the way out, golden copies."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from jaxscale.config import Grid, MeshConfig, ModelConfig, Recipe, Study
from jaxscale.errors import MisuseError
from jaxscale.flops import training_flops
from jaxscale.plan import BUDGET_TOLERANCE, plan_isoflop
from jaxscale.runs import Plan
from jaxscale.study import load_study

CONFIGS = [file for file in sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
           if not file.stem.startswith("flagship")]  # fmt: skip
"""Grids; a flagship is one shape that preflight is asked about."""
GOLDEN = Path(__file__).parent / "golden"
TEXT_TOKENS = 1e7


def plan_of(**grid: object) -> Plan:
    return plan_isoflop(replace(Study(), grid=replace(Grid(), **grid)), train_tokens=TEXT_TOKENS)


def test_every_cell_meets_its_budget_by_the_exact_count() -> None:
    for cell in plan_of().cells:
        spec = cell.spec
        assert training_flops(spec.model, spec.tokens) == cell.flops
        assert abs(cell.flops / spec.budget_flops - 1) < BUDGET_TOLERANCE
        assert spec.tokens == spec.steps * spec.batch_seqs * spec.model.seq_len


def test_both_arms_of_every_parabola_exist() -> None:
    planned = plan_of()
    for budget in Grid().budgets:
        ratios = [c.spec.tokens / c.n_params for c in planned.cells if c.spec.budget_flops == budget]
        assert len(ratios) >= 5
        assert sum(r > 20 for r in ratios) >= 2 and sum(r < 20 for r in ratios) >= 2
        assert all(20 / 36 / 1.02 < r < 20 * 36 * 1.02 for r in ratios)  # a factor 6 in N is 36 in D/N


def test_horizon_of_every_cell_is_its_own_tokens() -> None:
    """No two budgets share a schedule: warmup and decay are fractions of the cell's own steps."""
    for cell in plan_of().cells:
        assert cell.spec.warmup_steps == max(1, round(0.03 * cell.spec.steps))
        assert cell.spec.weight_decay * cell.spec.lr * cell.spec.steps == pytest.approx(2.0)


def test_batch_follows_tokens_by_the_stated_rule() -> None:
    for cell in plan_of().cells:
        batch_tokens = cell.spec.batch_seqs * 64
        assert abs(batch_tokens - max(256, math.sqrt(cell.spec.tokens))) <= 4 * 64 / 2 + 1


def test_every_size_of_the_ladder_is_planned_or_dropped_with_a_reason() -> None:
    planned = plan_of(holdout=(1e12,))
    for budget in Grid().budgets:
        kept = {c.spec.model.d_model for c in planned.cells if c.spec.budget_flops == budget}
        left = {d.d_model for d in planned.dropped if d.budget_flops == budget and d.reason}
        assert kept | left == set(Grid().widths) and not kept & left


def test_repeated_seeds_differ_in_seed_only() -> None:
    planned = plan_of(seeds=(3, 1))
    first = [c for c in planned.cells if c.spec.budget_flops == min(Grid().budgets)]
    assert {c.spec.seed for c in first} == {0, 1, 2}
    assert len({c.run_id for c in planned.cells}) == len(planned)
    assert len({replace(c.spec, seed=0) for c in first}) == len(first) // 3


def test_holdout_is_trained_near_the_expected_optimum_and_marked() -> None:
    held = [c for c in plan_of(holdout=(1e12,)).cells if c.role == "holdout"]
    assert len(held) == 2 and {c.spec.budget_flops for c in held} == {1e12}
    assert all(1 / 3 < c.spec.tokens / c.n_params / 20 < 3 for c in held)


def test_thinning_keeps_both_ends_and_names_what_it_left() -> None:
    planned = plan_of(widths=(8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64), sizes_per_budget=5)
    kept = [c.spec.model.d_model for c in planned.cells if c.spec.budget_flops == 1e11]
    assert len(kept) == 5 and kept[0] == 8 and kept[-1] == 64
    assert any("sizes_per_budget" in d.reason for d in planned.dropped)


def test_a_plan_survives_its_json() -> None:
    planned = plan_of(holdout=(1e12,))
    assert Plan.from_json(planned.to_json()) == planned


def test_an_edited_plan_file_is_noticed() -> None:
    text = plan_of().to_json().replace('"lr": 0.02', '"lr": 0.03')
    with pytest.raises(MisuseError, match="hashes to"):
        Plan.from_json(text)


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"budgets": (1e8,)}, r"1e8 FLOPs cannot be bracketed.*(lower|raise)"),
        ({"budgets": (1e14,)}, r"1e14 FLOPs cannot be bracketed.*add grid.widths above 96"),
        ({"widths": (8, 12)}, r"the ladder gives 2 sizes"),
        ({"budgets": (-3e10,)}, r"grid.budgets: -3e\+10 is not a positive number"),
        ({"budgets": ()}, r"grid.budgets"),
        ({"widths": (7, 8)}, r"grid.widths: 7 is odd.*use 8"),
        ({"holdout": (3e11,)}, r"grid.holdout: 3e\+11 is also in grid.budgets"),
        ({"spread": 1.0}, r"grid.spread: 1 leaves no sizes"),
        ({"min_steps": 10**6}, r"fewer than grid.min_steps"),
        ({"budgets": (1e9, math.nan)}, r"grid.budgets: nan is not a positive number"),
        ({"budgets": (3e10, 3e10)}, r"grid.budgets: 3e\+10 is there twice.*grid.seeds"),
        ({"holdout": (-1.0,)}, r"grid.holdout: -1 is not a positive number"),
        ({"aspect": 0.0}, r"grid.aspect: 0 is not a positive number"),
        ({"spread": math.nan}, r"grid.spread: nan is not a finite number"),
        ({"sizes_per_budget": 3}, r"grid.sizes_per_budget: 3 sizes do not make a parabola; use 5"),
        ({"holdout": (1e16,)}, r"grid.holdout: no size of the ladder"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_way_out(grid: dict[str, object], said: str) -> None:
    with pytest.raises(MisuseError, match=said):
        plan_of(**grid)


@pytest.mark.parametrize(
    ("study", "said"),
    [
        (Study(seed=-1), "seed: -1 is not a number of 0 or more"),
        (Study(seed=2**32), "seed: 4294967296 is beyond 32 bits"),
        (Study(name=""), "name: '' does not name a folder"),
        (Study(model=ModelConfig(kv_groups=0)), "model.kv_groups: 0 is not a positive number"),
        (Study(model=ModelConfig(base_d_model=0)), "model.base_d_model: 0 is not a positive number"),
        (Study(model=ModelConfig(depth_alpha=3.0)), "model.depth_alpha: 3 is outside 0.5 to 1"),
        (Study(recipe=Recipe(b1=1.5)), "recipe.b1: 1.5 is outside 0 to"),
        (Study(recipe=Recipe(weight_decay=math.nan)), "recipe.weight_decay: nan is not a number of 0 or more"),
        (Study(recipe=Recipe(schedule="wsd", decay_fraction=0.99)), "more than the whole run"),
        (Study(mesh=MeshConfig(tensor=-1)), "mesh.tensor: -1 is not a number of 0 or more"),
    ],
)
def test_numbers_outside_their_range_are_refused_by_name(study: Study, said: str) -> None:
    with pytest.raises(MisuseError, match=said):
        plan_isoflop(study, train_tokens=TEXT_TOKENS)


def test_batch_that_does_not_divide_over_the_named_chips_is_refused() -> None:
    with pytest.raises(MisuseError, match=r"microbatch_seqs: 4 sequences do not divide over 64 devices.*use 64"):
        plan_isoflop(replace(Study(), hardware="v5e:64"), train_tokens=TEXT_TOKENS)
    with pytest.raises(MisuseError, match=r"fsdp=3 .* does not make the 8 chips"):
        plan_isoflop(replace(Study(), hardware="h100:8", mesh=MeshConfig(fsdp=3)), train_tokens=TEXT_TOKENS)


def test_text_too_short_says_how_many_epochs_it_would_mean() -> None:
    with pytest.raises(MisuseError, match=r"epochs of the text, more than data.max_epochs = 1"):
        plan_isoflop(Study(), train_tokens=1e5)
    allowed = plan_isoflop(replace(Study(), data=replace(Study().data, max_epochs=200)), train_tokens=1e5)
    assert max(cell.epochs or 0 for cell in allowed.cells) > 10


def test_depth_follows_width_where_an_aspect_is_asked_for() -> None:
    planned = plan_of(aspect=16.0, aspect_range=(8, 32), spread=12.0)
    for cell in planned.cells:
        model = cell.spec.model
        assert 8 <= model.d_model / model.n_layers <= 32
        assert model.n_layers == max(1, round(model.d_model / 16))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_resolved_plan_of_every_shipped_config_is_the_golden_one(file: Path, request: pytest.FixtureRequest) -> None:
    """A changed default shows in review; `pytest --update-golden` rewrites, in a commit that says why."""
    planned = plan_isoflop(load_study(file), train_tokens=None)
    lines = [planned.config["name"], *planned.assumptions[:3]]
    lines += [
        f"{c.run_id} {c.role} C={c.spec.budget_flops:g} L={c.spec.model.n_layers} d={c.spec.model.d_model} "
        f"N={c.n_params} D={c.spec.tokens} steps={c.spec.steps} batch={c.spec.batch_seqs} seed={c.spec.seed}"
        for c in planned.cells
    ]
    lines += [f"dropped C={d.budget_flops:g} d={d.d_model}: {d.reason}" for d in planned.dropped]
    golden = GOLDEN / f"{file.stem}.txt"
    if request.config.getoption("--update-golden"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text("\n".join(lines) + "\n")
    assert golden.read_text().splitlines() == lines


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_every_config_reads_as_documentation(file: Path) -> None:
    doc = file.read_text().split('"""')[1]
    for heading in ("Purpose", "Command", "Cost", "Expected"):
        assert f"{heading}:" in doc, heading
