"""recipe.evals in training, resumed as undisturbed, and the verb `eval` on final weights."""

import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import WORDS, make_study

from jaxscale.cli import dispatch
from jaxscale.cli.planning import differing_fields
from jaxscale.config import Recipe, Study
from jaxscale.data.tokens import build_tokens
from jaxscale.errors import MisuseError
from jaxscale.evals.record import Evals, evaluate_run, find_evals, read_eval_lines, write_lines
from jaxscale.evals.texts import measure_ids
from jaxscale.leases import Claims
from jaxscale.plain import to_plain, write_json
from jaxscale.plan import plan_isoflop
from jaxscale.runs import Plan, RunSpec
from jaxscale.train import loop, weights, worker
from jaxscale.train.loop import Preempted, train_pack, train_run
from jaxscale.train.weights import load_model, read_weights

FIELDS = {
    "step", "tokens", "flops", "task", "items", "nll_per_byte", "nll_per_token", "accuracy", "accuracy_std_error",
    "accuracy_sum", "accuracy_token", "accuracy_byte", "accuracy_char", "p_correct", "chance", "normalization",
    "shots", "sha256", "truncated", "seconds",
}  # fmt: skip


def write_items(file: Path, items: int = 60) -> str:
    """A word of the training text beside three of its anagrams."""
    rng = random.Random(file.stem)
    words, lines = WORDS.split(), []
    for _ in range(items):
        word = rng.choice(words)
        choices = [word, *("".join(rng.sample(word, len(word))) for _ in range(3))]
        rng.shuffle(choices)
        item = {"question": " ".join(rng.choices(words, k=4)), "choices": choices, "label": choices.index(word)}
        lines.append(json.dumps(item) + "\n")
    file.write_text("".join(lines))
    return str(file)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evals")


@pytest.fixture(scope="module")
def study(root: Path) -> Study:
    study = make_study(root)
    files = tuple(write_items(root / f"{name}.jsonl") for name in ("spelling", "words"))
    return replace(study, recipe=replace(study.recipe, evals=files, eval_points=(0.3, 0.31, 0.6)))


@pytest.fixture(scope="module")
def plan(study: Study) -> Plan:
    info = build_tokens(study.data).info
    return plan_isoflop(study, train_tokens=info.train_tokens, data_sha256=info.data_sha256)


@pytest.fixture(scope="module")
def evals(study: Study) -> Evals:
    found = find_evals(study.recipe)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def spec(plan: Plan) -> RunSpec:
    return plan.cells[2].spec


@pytest.fixture(scope="module")
def quiet(root: Path, plan: Plan, spec: RunSpec, evals: Evals) -> Path:
    """A study folder in which one run was trained undisturbed."""
    write_json(root / "quiet" / "plan.json", plan.to_json())
    train_run(spec, root / "quiet", evals=evals)
    return root / "quiet"


def lines_of(folder: Path, spec: RunSpec) -> list[dict[str, Any]]:
    return [line | {"seconds": 0} for line in read_eval_lines(folder / spec.run_id)]


def stop_after(count: int) -> Callable[[], bool]:
    calls = iter(range(10**6))
    return lambda: next(calls) >= count


def test_evals_are_no_part_of_a_runs_identity(study: Study, plan: Plan) -> None:
    bare = replace(study, recipe=replace(study.recipe, evals=(), eval_points=(), eval_shots=2))
    assert [c.run_id for c in plan_isoflop(bare, train_tokens=1e5).cells] == [c.run_id for c in plan.cells]
    assert differing_fields(to_plain(bare), to_plain(study)) == []
    assert find_evals(bare.recipe) is None


def test_tasks_are_asked_at_the_intervals_after_the_points_and_at_the_end(quiet: Path, spec: RunSpec) -> None:
    lines = read_eval_lines(quiet / spec.run_id)
    ends = [json.loads(line)["step"] for line in (quiet / spec.run_id / "metrics.jsonl").read_text().splitlines()]
    wanted = [min(end for end in ends if end >= point * spec.steps) for point in (0.3, 0.6)]
    assert [(line["step"], line["task"]) for line in lines] == [
        (step, task) for step in (*wanted, spec.steps) for task in ("spelling", "words")
    ]
    for line in lines:
        assert line.keys() == FIELDS and line["items"] == 60 and line["chance"] == 0.25
        assert line["tokens"] == line["step"] * spec.batch_seqs * spec.model.seq_len
    assert lines[-1]["accuracy"] > 0.5 > lines[-1]["nll_per_byte"] / 4


def test_last_lines_are_those_of_the_final_weights(quiet: Path, spec: RunSpec, evals: Evals, root: Path) -> None:
    model = load_model(quiet, spec.run_id[:6])
    again = evaluate_run(lambda: model, spec, spec.steps, evals, root / "again")
    for line, other in zip(again, lines_of(quiet, spec)[-2:], strict=True):
        assert line["nll_per_byte"] == pytest.approx(other["nll_per_byte"], rel=1e-5)
        assert line["accuracy"] == other["accuracy"]


def test_loss_on_the_validation_tokens_is_the_runs_own(quiet: Path, spec: RunSpec) -> None:
    loss = measure_ids(load_model(quiet, spec.run_id), build_tokens(spec.data).val.astype(np.int32))
    assert loss == pytest.approx(train_run(spec, quiet).loss, rel=1e-6)


@pytest.mark.parametrize("intervals", [2, 3, 5])
def test_resumed_evals_are_those_of_an_undisturbed_run(
    root: Path, spec: RunSpec, quiet: Path, evals: Evals, intervals: int
) -> None:
    """Stopped before, at and after the first point; at it the state is saved first and asked on the next start."""
    out = root / f"stopped{intervals}"
    with pytest.raises(Preempted):
        train_run(spec, out, evals=evals, should_stop=stop_after(intervals))
    lines = read_eval_lines(out / spec.run_id)
    if lines:  # as after a kill: a line newer than the checkpoint
        write_lines(out / spec.run_id / "evals.jsonl", [*lines, lines[-1] | {"step": 10**6, "accuracy": 0.0}])
    train_run(spec, out, evals=evals)
    assert lines_of(out, spec) == lines_of(quiet, spec)


def test_runs_of_a_pack_get_the_lines_they_get_alone(root: Path, spec: RunSpec, quiet: Path, evals: Evals) -> None:
    other = replace(spec, lr=spec.lr * 2)
    train_pack((spec, other), root / "packed", evals=evals)
    alone, packed = lines_of(quiet, spec), lines_of(root / "packed", spec)
    assert [(line["step"], line["task"]) for line in packed] == [(line["step"], line["task"]) for line in alone]
    for line, wanted in zip(packed, alone, strict=True):
        assert line["nll_per_byte"] == pytest.approx(wanted["nll_per_byte"], rel=1e-3)
    assert lines_of(root / "packed", other)[-1]["nll_per_byte"] != packed[-1]["nll_per_byte"]


def test_a_branch_is_asked_past_its_trunks_step_only(root: Path, study: Study, evals: Evals) -> None:
    recipe = replace(study.recipe, schedule="wsd")
    branched = replace(study, recipe=recipe, grid=replace(study.grid, schedule="wsd-branches"))
    cells = plan_isoflop(branched, train_tokens=1e5).cells
    branch = max((cell.spec for cell in cells if cell.spec.parent), key=lambda spec: spec.steps)
    trunk = next(cell.spec for cell in cells if cell.run_id == branch.parent)
    train_run(trunk, root / "branches")
    train_run(branch, root / "branches", evals=replace(evals, points=(0.3, 0.6, 0.85)))
    steps = sorted({line["step"] for line in lines_of(root / "branches", branch)})
    assert len(steps) == 2 and branch.parent_step < 0.85 * branch.steps <= steps[0] < steps[1] == branch.steps


def test_two_processes_write_the_lines_of_one(quiet: Path, root: Path, spec: RunSpec) -> None:
    """Each scores half of the rows; the first one reads and writes the file."""
    out = root / "two"
    out.mkdir()
    (out / "plan.json").write_text((quiet / "plan.json").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        seat = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, "-m", "jaxscale", "train", str(out), "--run", spec.run_id]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    both = [subprocess.Popen(command, env=os.environ | seat | flags | {"JAX_PROCESS_ID": str(i)}) for i in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    lines, wanted = lines_of(out, spec), lines_of(quiet, spec)
    assert [(line["step"], line["task"]) for line in lines] == [(line["step"], line["task"]) for line in wanted]
    for line, one in zip(lines, wanted, strict=True):
        assert line["nll_per_byte"] == pytest.approx(one["nll_per_byte"], rel=1e-4)


def test_a_worker_hands_on_what_the_recipe_names(
    root: Path, plan: Plan, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for sweeps and trunks, whose models nobody keeps."""
    handed: dict[str, Evals | None] = {}

    def note(specs: Any, *_: Any, evals: Evals | None, keep_weights: bool, **__: Any) -> tuple[()]:
        assert keep_weights == (evals is not None)
        handed[role] = evals
        return ()

    monkeypatch.setattr(loop, "train_pack", note)
    for role in ("grid", "holdout", "sweep", "audit", "trunk"):
        cell: Any = replace(plan.cells[0], role=role)
        worker._train_cells(root, plan, [cell], "process", {}, study, Claims(root), threading.Event())
    assert {role for role, evals in handed.items() if evals} == {"grid", "holdout"}
    assert handed["grid"] == find_evals(study.recipe)


def ask(*argv: str) -> dict[str, Any]:
    """What `eval` writes."""
    out = Path(argv[0]).parent / "eval.json"
    assert dispatch(["eval", *argv, "--out", str(out)]) == 0
    return json.loads(out.read_text())


def test_verb_tells_every_done_run_and_reads_no_weights_twice(
    root: Path, quiet: Path, spec: RunSpec, study: Study, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    more = write_items(root / "more.jsonl", 40)
    files = [*study.recipe.evals, more]
    text = str(root / "text" / "000.txt")
    first = ask(str(quiet), "--tasks", *files, "--texts", text, "--shots", "0")
    assert first["schema"] == "jaxscale.eval/1" and [row["task"] for row in first["rows"]] == [
        "more", "spelling", "words"
    ]  # fmt: skip
    assert {"run", "role", "budget", "seed", "N", "D", "C"} < first["rows"][0].keys()
    assert first["texts"][0]["nll_per_token"] == pytest.approx(
        first["texts"][0]["bits_per_byte"] * np.log(2), rel=1e-12
    )
    shown = capsys.readouterr().out
    assert spec.run_id in shown and f"{first['rows'][0]['accuracy']:.3f} ±" in shown and "chance 0.25" in shown

    def fail(*_: Any) -> None:
        raise AssertionError("weights were read")

    with monkeypatch.context() as patched:
        patched.setattr(weights, "read_weights", fail)
        assert ask(str(quiet), "--tasks", *files, "--texts", text) == first
        assert ask(str(quiet), "--run", spec.run_id[:5])["rows"] == first["rows"][1:]
    shots = ask(str(quiet), "--tasks", more, "--shots", "1", "--normalization", "sum")["rows"]
    assert shots[0]["shots"] == 1 and shots[0]["accuracy"] == shots[0]["accuracy_sum"]
    assert sum(line["task"] == "more" for line in read_eval_lines(quiet / spec.run_id)) == 1
    write_items(root / "more.jsonl", 41)
    assert ask(str(quiet), "--tasks", more)["rows"][0]["items"] == 41


def test_verb_refuses_in_one_sentence(
    root: Path, quiet: Path, plan: Plan, study: Study, spec: RunSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = replace(study, recipe=Recipe())
    write_json(root / "bare" / "plan.json", plan_isoflop(bare, train_tokens=1e6).to_json())
    planned = next(cell.run_id for cell in plan.cells if cell.run_id != spec.run_id)
    task = study.recipe.evals[0]
    for argv, words in (
        ([str(root / "bare"), "--tasks", task], "none of its"),
        ([str(quiet), "--tasks", "no*.jsonl"], "--tasks: 'no*.jsonl' matches no file"),
        ([str(quiet), "--run", planned, "--tasks", task], f"--run: {planned} is planned; only runs that are done"),
        ([str(quiet), "--run", "zz", "--tasks", task], "run 'zz': no cell"),
        ([str(quiet), "--tasks", task, "--shots", "-1"], "--shots: -1 examples cannot be given"),
        ([str(quiet), "--tasks", task, "--shots", "60"], "60 examples are asked for and 59 others are there"),
        ([str(root), "--tasks", task], "no plan.json there"),
    ):
        assert dispatch(["eval", *argv]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(MisuseError, match="no weights of its last step"):
        read_weights(root / "bare", spec, study.mesh)
