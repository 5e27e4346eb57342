"""The benchmarks' arithmetic, protocol and refusals, with contestants that pretend to work; what a grid compiles."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from tiny import make_study

from jaxscale.bench import contest, peers
from jaxscale.bench.contest import Contestant, Turn, hold_contest
from jaxscale.bench.grid import GridBench, check_done, spread_cells
from jaxscale.bench.result import OURS, Bench, compare_turns
from jaxscale.bench.shapes import DEFAULT_SHAPES, Shape, parse_shape
from jaxscale.bench.step import list_contestants
from jaxscale.cli import dispatch
from jaxscale.config import MeshConfig
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.flops import count_matmul_params, flops_per_token
from jaxscale.plain import write_json
from jaxscale.plan import plan_isoflop
from jaxscale.train import compiling
from jaxscale.train.compiling import compile_alone
from jaxscale.train.pool import train_cells

FAKE = """
import sys, json
sys.path.insert(0, {folder!r})
from peers import serve, Unable
def make(order):
    if order.get("lacks"):
        raise Unable("it lacks a thing; install it")
    print("chatter that is no answer")
    def step(steps):
        with open(order["diary"], "a") as diary:
            diary.write(order["name"])
        if order.get("dies"):
            print("out of luck", file=sys.stderr)
            sys.exit(3)
        return {{"steps": steps, "seconds": steps * order["step_s"], "loss": order.get("loss", 1.0)}}
    return {{"device": "cpu", "name": order["name"]}}, {{"step": step, "loop": step}}
sys.exit(serve(make, json.loads(sys.argv[1])))
"""


def pretend(tmp_path: Path, name: str, step_s: float, turns: tuple[str, ...] = ("step",), **more: Any) -> Contestant:
    """A contestant that says it needs `step_s` a step, and writes its name down whenever it has its turn."""
    file = tmp_path / "fake.py"
    file.write_text(FAKE.format(folder=str(Path(peers.__file__).parent)))
    order = {"name": name, "step_s": step_s, "diary": str(tmp_path / "diary"), **more}
    return Contestant(name, (sys.executable, str(file), json.dumps(order)), dict(os.environ), turns)


def test_turns_are_interleaved_and_last_as_long_as_asked(tmp_path: Path) -> None:
    asked = [pretend(tmp_path, "A", 0.5), pretend(tmp_path, "B", 0.25), pretend(tmp_path, "C", 4.0)]
    about, turns = hold_contest(asked, rounds=3, seconds=1.0)
    assert (tmp_path / "diary").read_text() == "ABC" + "ABC" * 3  # the first turn of each finds its length
    assert [turn.steps for turn in turns["A", "step"]] == [2] * 3
    assert turns["B", "step"][0].steps == 4 and turns["C", "step"][0].steps == 1
    assert about["B"]["name"] == "B"


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """A moment that slows a whole round down moves the rates and not the ratio."""
    ours = [Turn(1, s, 1.0) for s in (1.0, 10.0, 1.0, 2.0, 1.0)]
    theirs = [Turn(1, s, 1.0) for s in (2.0, 20.0, 2.0, 4.0, 8.0)]
    shape = DEFAULT_SHAPES[0]
    row = compare_turns(shape, {OURS: {}, "nanodo": {}}, {(OURS, "step"): ours, ("nanodo", "step"): theirs})
    peer = row.peers["nanodo"]
    assert (peer.ratio, peer.ratio_min, peer.ratio_max) == (2.0, 2.0, 8.0)
    assert row.tokens_per_s == shape.tokens and peer.tokens_per_s == shape.tokens / 4.0
    assert row.flops_per_s == row.tokens_per_s * flops_per_token(shape.model)


def test_loop_overhead_compares_seconds_a_step_of_the_same_round() -> None:
    bare, loop = [Turn(4, 4.0, 1.0), Turn(2, 4.0, 1.0)], [Turn(1, 1.02, 1.0), Turn(3, 6.3, 1.0)]
    row = compare_turns(DEFAULT_SHAPES[0], {OURS: {}}, {(OURS, "step"): bare, (OURS, "loop"): loop})
    assert row.loop is not None
    assert (row.loop.overhead_min, row.loop.overhead_max) == pytest.approx((0.02, 0.05))
    assert row.loop.overhead == pytest.approx(0.035)


def test_json_follows_the_contract(tmp_path: Path) -> None:
    about, turns = hold_contest(
        [pretend(tmp_path, OURS, 0.1, ("step", "loop")), pretend(tmp_path, "nanodo", 0.2)], 2, 1
    )
    found = Bench((compare_turns(DEFAULT_SHAPES[1], about, turns),), {"device": "cpu"})
    plain = json.loads(found.to_json())
    assert plain["schema"] == "jaxscale.bench/1"
    (row,) = plain["rows"]
    assert row["shape"] == dict(zip("DLHBTV", (128, 4, 4, 16, 128, 256), strict=True))
    assert {"tokens_per_s", "flops_per_s", "peers"} <= row.keys()
    assert row["peers"]["nanodo"]["ratio"] == pytest.approx(2.0) and row["peers"]["nanodo"]["tokens_per_s"] > 0
    assert "nanodo" in str(found) and len(found.to_frame()) == 2


def test_flops_are_counted_as_the_contract_says() -> None:
    for shape in DEFAULT_SHAPES:
        model = shape.model
        assert (model.d_model, model.n_layers, model.n_heads) == (shape.D, shape.L, shape.H)
        assert shape.flops == 6 * count_matmul_params(model) + 6 * shape.L * shape.T * shape.D


@pytest.mark.parametrize(
    ("text", "said"),
    [("64,3,2,16,128", "six whole numbers"), ("64,3,2,16,128,x", "six whole numbers"), ("64,0,2,16,128,256", "above 0"),
     ("64,3,5,16,128,256", "5 heads do not split a width of 64"), ("6,1,2,1,8,256", "2 heads do not split"),
     ("64,3,2,16,128,1", "nothing to predict")],
)  # fmt: skip
def test_a_shape_that_is_none_is_refused_in_a_sentence(text: str, said: str) -> None:
    with pytest.raises(MisuseError, match=said):
        parse_shape(text)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["bench", "step", "--nanodo", str(tmp_path)]) == 2
    assert "holds no nanodo/model.py; give a checkout of github.com/google-deepmind/nanodo" in capsys.readouterr().err
    assert dispatch(["bench", "step", "--nanogpt", str(tmp_path)]) == 2
    assert "holds no model.py" in capsys.readouterr().err
    assert dispatch(["bench", "grid", "--nanodo", str(tmp_path)]) == 2


def test_wrong_options_are_said_before_anything_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["bench", "step", "--seconds", "nan"]) == 2
    (tmp_path / "model.py").touch()
    assert dispatch(["bench", "step", "--nanogpt", str(tmp_path), "--torch-python", "/nowhere/python"]) == 2
    assert "/nowhere/python is no program that can be run" in capsys.readouterr().err


def test_missing_torch_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('none here')")
    order = json.dumps({"checkout": "", "dtype": "float32"})
    command = (sys.executable, peers.__file__, "nanogpt", order)
    asked = Contestant("nanogpt", command, {**os.environ, "PYTHONPATH": str(tmp_path)})
    with pytest.raises(MisuseError, match=r"has no torch; name one that has with --torch-python PATH"):
        hold_contest([asked], 1, 1.0)


def test_what_a_contestant_lacks_dies_of_or_diverges_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="it lacks a thing; install it"):
        hold_contest([pretend(tmp_path, "A", 1.0, lacks=True)], 1, 1.0)
    with pytest.raises(VerdictError, match="A: its process ended with code 3: out of luck"):
        hold_contest([pretend(tmp_path, "A", 1.0, dies=True)], 1, 1.0)
    with pytest.raises(VerdictError, match="A: its loss is not finite"):
        hold_contest([pretend(tmp_path, "A", 1.0, loss=None)], 1, 1.0)


def test_environments_differ_in_the_allocator_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    asked = list_contestants(DEFAULT_SHAPES[0], {"nanodo": tmp_path, "nanogpt": tmp_path}, "py", tmp_path, False,
                             MeshConfig())  # fmt: skip
    names = {each.name: each for each in asked}
    assert list(names) == [OURS, "nanodo", "nanodo_malloc", "nanogpt"]
    assert names["nanodo"].command == names["nanodo_malloc"].command

    def malloc(environment: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in environment.items() if name.startswith("MALLOC_")}

    assert malloc(names["nanodo"].environment) == malloc(names["nanogpt"].environment) == {}
    assert malloc(names[OURS].environment) == malloc(names["nanodo_malloc"].environment) != {}
    assert names["nanogpt"].command[0] == "py"


def test_our_own_contestant_answers_both_turns(tmp_path: Path) -> None:
    shape = Shape(8, 1, 1, 8, 16, 256)  # tests have 8 devices
    (ours,) = list_contestants(shape, {}, sys.executable, tmp_path, True, MeshConfig())
    about, turns = hold_contest([ours], 1, 0.01)
    row = compare_turns(shape, about, turns)
    assert row.loop is not None and row.tokens_per_s > 0 and about[OURS]["compile_s"] > 0


def test_mfu_is_over_the_peak_of_the_devices() -> None:
    """A TPU7x chip is two devices for JAX, and a v5p calls itself TPU v5."""
    turns = {(OURS, "step"): [Turn(1, 1e-3, 1.0)]}
    rows = {kind: compare_turns(DEFAULT_SHAPES[0], {OURS: {"device": kind, "devices": 2}}, turns)
            for kind in ("TPU7x", "TPU v5", "cpu")}  # fmt: skip
    rate = rows["cpu"].flops_per_s
    assert [rows[kind].mfu for kind in rows] == [pytest.approx(rate / 2307e12), pytest.approx(rate / 2 / 459e12), None]


def test_a_subset_of_a_grid_is_spread_over_it_and_said_to_be_one(tmp_path: Path) -> None:
    cells = plan_isoflop(make_study(tmp_path), train_tokens=1e5).cells
    assert spread_cells(cells, 0) == cells
    assert spread_cells(cells, 3) == (cells[0], cells[round((len(cells) - 1) / 2)], cells[-1])
    with pytest.raises(MisuseError, match=r"--cells: 99 are more than the plan's"):
        spread_cells(cells, 99)
    told = GridBench(
        "s", 3, 10, 1e9, 1.0, 2.0, {"nanodo": {"seconds": 6.0, "ratio": 3.0, "ratio_shared": 2.5, "compile_s": 2.0}}, {}
    )
    assert "a subset, 3 of 10 cells" in str(told) and "3.00 times as long" in str(told)
    assert json.loads(told.to_json())["rows"][0]["peers"]["nanodo"]["ratio"] == 3.0


def test_a_grid_compiles_one_program_of_each_kind_a_shape(tmp_path: Path) -> None:
    """Batches, horizons and seeds differ; two workers share the work, and a second study finds all programs made."""
    study = make_study(tmp_path, seeds=(2,))
    mesh = replace(study.mesh, compile_cache=str(tmp_path / "xla"))
    study = replace(study, mesh=mesh)
    planned = plan_isoflop(study, train_tokens=1e5)
    planned = planned.with_cells([c for c in planned.cells if c.spec.model.d_model == 8])
    assert len({(c.spec.model, c.spec.batch_seqs, c.spec.steps) for c in planned.cells}) > 1

    def compiled(name: str) -> dict[str, float]:
        write_json(tmp_path / name / "plan.json", planned.to_json())
        with pytest.raises(VerdictError, match=r"cells did not make all their steps"):
            check_done(tmp_path / name, planned.cells)
        events: list[dict[str, Any]] = []
        train_cells(tmp_path / name, planned.cells, mesh, events.append)
        check_done(tmp_path / name, planned.cells)
        told = [event for event in events if event["event"] == "compiled"]
        return {key: sum(event[key] for event in told) for key in ("programs", "seconds", "reused")}

    shapes = len({c.spec.model for c in planned.cells})
    first, second = compiled("first"), compiled("second")
    assert first["programs"] == 3 * shapes  # init, training, validation
    assert second["programs"] == 0 and second["reused"] >= 3 * shapes


def test_a_second_process_waits_until_the_first_has_compiled(tmp_path: Path) -> None:
    import subprocess

    code = ("import sys\nfrom jaxscale.train.compiling import compile_alone\n"
            "with compile_alone(sys.argv[1], 'shape'): print('mine', flush=True)")  # fmt: skip
    with compile_alone(str(tmp_path), "shape"), pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=3, env=dict(os.environ))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "mine\n"


def test_a_lock_that_cannot_be_had_does_not_keep_anybody_from_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locks").touch()  # a folder for them cannot be made
    with compile_alone(str(tmp_path), "shape"):
        pass
    (tmp_path / "locks").unlink()
    with compile_alone(str(tmp_path), "held"):
        with compile_alone(str(tmp_path), "held", lambda: True):
            pass  # asked to stop: it does not wait
        monkeypatch.setattr(compiling, "_done", set())
        monkeypatch.setattr(compiling, "PATIENCE_S", 0.2)
        with compile_alone(str(tmp_path), "held"):
            pass  # its holder hangs
        monkeypatch.setattr(compiling, "PATIENCE_S", 1e9)
        monkeypatch.setattr(compiling, "_done", set())
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        with compile_alone(str(tmp_path), "held"):
            pass  # the holder may be a process that needs this one to go on


def test_contestants_are_ended_with_the_contest(tmp_path: Path) -> None:
    with contest.start_contestant(pretend(tmp_path, "A", 1.0)) as child:
        assert child.take_turn("step", 3) == Turn(3, 3.0, 1.0)
    assert child.process.poll() == 0
