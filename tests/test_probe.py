"""Which way is taken: the fastest as measured, once a shape, and `process` where it hardly matters."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import pytest
from tiny import make_study

from jaxscale.config import MeshConfig
from jaxscale.errors import MisuseError
from jaxscale.plan import plan_isoflop
from jaxscale.runs import RunSpec
from jaxscale.sweep import Way
from jaxscale.train import probe
from jaxscale.train.engine import make_engine
from jaxscale.train.probe import choose_way


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    return plan_isoflop(make_study(tmp_path_factory.mktemp("probe")), train_tokens=1e5).cells[0].spec


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Figures that the next measurements give; each is taken once."""
    waiting: list[dict[str, float]] = []
    monkeypatch.setattr(probe, "_measure", lambda specs, mesh: waiting.pop(0))
    return waiting


@pytest.mark.parametrize(
    ("ms", "way"),
    [
        ({"process": 2.0, "pack": 1.0, "turn": 1.5}, "pack"),
        ({"process": 2.0, "pack": 3.0, "turn": 1.5}, "turn"),
        ({"process": 2.0, "pack": 1.95, "turn": 1.97}, "process"),  # not clearly faster
        ({"process": 2.0, "pack": 3.0, "turn": 2.5}, "process"),
    ],
)
def test_the_clearly_fastest_way_is_taken(
    spec: RunSpec, measured: list[dict[str, float]], ms: dict[str, float], way: Way
) -> None:
    measured.append(ms)
    assert choose_way([spec, replace(spec, seed=9)], MeshConfig(compile_cache="")) == (way, ms)


def test_a_shape_is_measured_once(spec: RunSpec, measured: list[dict[str, float]], tmp_path: Path) -> None:
    """Rate, seed, steps and parameterization are not the shape; width, batch and the number of runs are."""
    mesh, pair = MeshConfig(compile_cache=str(tmp_path)), [spec, replace(spec, seed=9)]
    measured += [{"process": float(i), "pack": 9.0, "turn": 9.0} for i in range(1, 6)]
    assert choose_way(pair, mesh)[1]["process"] == 1
    same = [replace(s, lr=0.5, steps=7, model=replace(s.model, parameterization="standard")) for s in pair]
    assert choose_way(same, mesh)[1]["process"] == 1
    others = ([*pair, replace(spec, seed=3)], [replace(s, batch_seqs=2 * s.batch_seqs) for s in pair],
              [replace(s, model=replace(s.model, d_model=2 * s.model.d_model)) for s in pair])  # fmt: skip
    assert [choose_way(other, mesh)[1]["process"] for other in others] == [2, 3, 4]


def test_a_damaged_record_is_measured_anew(spec: RunSpec, measured: list[dict[str, float]], tmp_path: Path) -> None:
    mesh, pair = MeshConfig(compile_cache=str(tmp_path)), [spec, replace(spec, seed=9)]
    measured += [{"process": float(i), "pack": 9.0, "turn": 9.0} for i in range(1, 4)]
    choose_way(pair, mesh)
    (file,) = (tmp_path / "ways").iterdir()
    for text in ('{"ms": {"process": 1', json.dumps({"ms": {"process": 1.0}})):
        file.write_text(text)
        assert choose_way(pair, mesh)[1]["process"] > 1


def test_short_runs_and_single_ones_are_not_measured(spec: RunSpec, measured: list[dict[str, float]]) -> None:
    mesh = MeshConfig(compile_cache="")
    assert choose_way([spec], mesh) == ("process", {})
    assert choose_way([spec, replace(spec, seed=9)], mesh, seconds=5.0) == ("process", {})


def test_a_mesh_that_splits_a_run_packs_none(spec: RunSpec) -> None:
    mesh = MeshConfig(fsdp=2, compile_cache="")
    assert choose_way([spec, replace(spec, seed=9)], mesh) == ("process", {})
    with pytest.raises(MisuseError, match=r"mesh.packs: turn .* cannot split one \(mesh.fsdp 2"):
        make_engine([spec, replace(spec, seed=9)], 8, "turn", mesh, jnp.float32)


def test_each_way_is_timed(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real measurement, cut short: a positive time for every way, the state moving on."""
    monkeypatch.setattr(probe, "ROUNDS", 1)
    monkeypatch.setattr(probe, "SECONDS", 0.01)
    way, ms = choose_way([spec, replace(spec, seed=9)], MeshConfig(compile_cache=""))
    assert set(ms) == {"process", "pack", "turn"} and all(value > 0 for value in ms.values()) and way in ms
