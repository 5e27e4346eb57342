"""Runs over 2 and 4 processes (gloo on the loopback): one curve, one writer, one end, whoever is stopped or dies."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tiny import make_study

from jaxscale.config import MeshConfig, Study
from jaxscale.data.batches import BatchSource
from jaxscale.data.tokens import build_tokens
from jaxscale.errors import MisuseError
from jaxscale.plan import plan_isoflop
from jaxscale.runs import Plan, RunResult, RunSpec
from jaxscale.sweep import read_result
from jaxscale.train import dispatch
from jaxscale.train.address import Seating, bind_address, find_seating, own_address
from jaxscale.train.loop import train_run
from jaxscale.trunks import branch_off

OFTEN = MeshConfig(checkpoint_every_s=0.0)
DEATH_S = 15.0
"""Within this a process ends whose peer was killed: heartbeats take 10 s where no collective notices before."""
LOSS_RTOL = 1e-5
"""Float32 sums in another order, over a whole run."""

SLOTS = 8
"""Steps of a logging interval here: on a busy machine a step of four processes takes a tenth of a second."""

DRIVER = (
    f"""
from jaxscale.train import dispatch
dispatch.FEW_SLOTS = {SLOTS}
"""
    + """
import json, sys
from pathlib import Path
from jaxscale.train import hosts
assert hosts.connect()
from jaxscale.errors import MisuseError
from jaxscale.sweep import read_plan
from jaxscale.train.gang import pick_pending, train_gang

def refuse(mine):
    if mine:
        raise MisuseError("no: use yes")
    return "yes"

def say(action):
    try:
        return action()
    except MisuseError as error:
        return [str(error), error.agreed]

import jax
me = jax.process_index()
said = [
    hosts.gather(me), hosts.broadcast(f"from {me}"), hosts.agree((me == 1, False)),
    say(lambda: hosts.from_first(lambda: refuse(True), "a")), say(lambda: hosts.together(lambda: refuse(me == 1), "b")),
    say(lambda: hosts.together(lambda: refuse(False), "c")),
]
print(json.dumps(said), flush=True)
def train(folder, **how):
    heard = []
    with hosts.leave_together():
        code = train_gang(folder, pick_pending(folder, read_plan(folder).cells), on_event=heard.append, **how)
    print("gang", code, *[event["message"] for event in heard if event["event"] == "error"], flush=True)

for folder in map(Path, sys.argv[1:]):
    train(folder)
train(folder, should_stop=lambda: me == 1)
"""
)

FAULT = (
    f"""
from jaxscale.train import dispatch
dispatch.FEW_SLOTS = {SLOTS}
"""
    + """
import os, signal, sys
from jaxscale.train import hosts
agree, intervals = hosts.agree, iter(range(10**6))
number, who, when = map(int, sys.argv[1:4])

def agree_after_fault(flags, at):
    if at == "interval" and next(intervals) == when and int(os.environ["JAX_PROCESS_ID"]) == who:
        os.kill(os.getpid(), number)
    return agree(flags, at)

hosts.agree = agree_after_fault
from jaxscale.cli import main
main(sys.argv[4:])
"""
)
"""The command line, where one process may send itself a signal at the end of a logging interval, counted from 0."""


@dataclass
class Gang:
    """Processes of one run and, once they have ended, what they printed."""

    processes: list[subprocess.Popen[str]]

    def join(self, timeout_s: float = 240.0) -> tuple[list[int], list[str]]:
        """Exit codes and outputs; what still runs then is killed."""
        try:
            said = [process.communicate(timeout=timeout_s)[0] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.communicate()
        return [process.returncode for process in self.processes], said


def launch(count: int, *words: str) -> Gang:
    """`count` processes of one CPU device each, that find each other at a free port of the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2", "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count), "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    }  # fmt: skip
    return Gang([subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  env=environment | {"JAX_PROCESS_ID": str(i)}) for i in range(count)])  # fmt: skip


def launch_run(count: int, folder: Path, spec: RunSpec, fault: tuple[int, int, int] = (0, -1, 0)) -> Gang:
    """`jaxscale train` in `count` processes; `fault`: a signal, to whom, and after which interval."""
    return launch(count, "-c", FAULT, *(str(int(part)) for part in fault), "train", str(folder), "--run", spec.run_id)


def lines(folder: Path, spec: RunSpec) -> list[dict[str, float]]:
    file = folder / spec.run_id / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [{key: value for key, value in row.items() if key not in ("seconds", "crc")} for row in rows]


def steps_saved(folder: Path, spec: RunSpec) -> list[int]:
    return sorted(int(path.name) for path in (folder / spec.run_id / "checkpoints").iterdir())


def result_of(folder: Path, spec: RunSpec) -> RunResult:
    return read_result(folder / spec.run_id / "result.json")


def assert_same_curve(got: list[dict[str, float]], wanted: list[dict[str, float]]) -> None:
    assert [row["step"] for row in got] == [row["step"] for row in wanted]
    np.testing.assert_allclose([row["loss"] for row in got], [row["loss"] for row in wanted], rtol=LOSS_RTOL)


@pytest.fixture(scope="module", autouse=True)
def small_dispatches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "FEW_SLOTS", SLOTS)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def study(root: Path) -> Study:
    study = make_study(root)
    return replace(study, mesh=replace(study.mesh, checkpoint_every_s=0.0))


@pytest.fixture(scope="module")
def whole(study: Study) -> Plan:
    info = build_tokens(study.data).info
    return plan_isoflop(study, train_tokens=info.train_tokens, data_sha256=info.data_sha256)


def set_steps(spec: RunSpec, steps: int, **fields: object) -> RunSpec:
    return replace(spec, steps=steps, tokens=steps * spec.batch_seqs * spec.model.seq_len, **fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cells(whole: Plan) -> list[RunSpec]:
    """A short run and a longer one, of two and seven logging intervals."""
    return [set_steps(whole.cells[2].spec, steps) for steps in (2 * SLOTS, 7 * SLOTS)]


@pytest.fixture(scope="module")
def family(whole: Plan) -> list[RunSpec]:
    """A trunk, and the shorter of its two branches."""
    spec = replace(whole.cells[2].spec, schedule="wsd", decay_steps=16, warmup_steps=4)
    trunk, branches = branch_off([set_steps(spec, 32), set_steps(spec, 40)])
    return [trunk, branches[0]]


def write_plan(folder: Path, whole: Plan, specs: list[RunSpec], **mesh: object) -> Path:
    """A study folder with these runs as its cells."""
    roles = {True: "trunk", False: "grid"}
    cells = tuple(replace(whole.cells[2], spec=spec, role=roles[bool(spec.keeps)]) for spec in specs)  # type: ignore[arg-type]
    config = whole.config | {"mesh": whole.config["mesh"] | mesh}
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(replace(whole, cells=cells, config=config).to_json())
    return folder


@pytest.fixture(scope="module")
def quiet(root: Path, whole: Plan, cells: list[RunSpec], family: list[RunSpec]) -> tuple[list[Path], list[str]]:
    """Folders of one gang of two processes, and what both said: two runs, one of them again, the trunk with its
    branch, and a run whose microbatch has no row for the second process."""
    refused = replace(cells[0], microbatch_seqs=1)
    work = {"two": cells, "again": cells[:1], "branches": family, "refused": [refused]}
    folders = [write_plan(root / name, whole, specs) for name, specs in work.items()]
    codes, said = launch(2, "-c", DRIVER, *map(str, folders)).join()
    assert codes == [0, 0], said
    return folders, said


@pytest.fixture(scope="module")
def stopped(root: Path, whole: Plan, cells: list[RunSpec]) -> tuple[Path, list[int], list[str]]:
    """The longer run, one of whose two processes got SIGTERM."""
    folder = write_plan(root / "stopped", whole, cells[1:])
    return folder, *launch_run(2, folder, cells[1], (signal.SIGTERM, 1, 1)).join()


def test_what_one_process_finds_all_hear(quiet: tuple[list[Path], list[str]]) -> None:
    told = [json.loads(next(line for line in said.splitlines() if line.startswith("[[0, 1]"))) for said in quiet[1]]
    for me, said in enumerate(told):
        assert said[:3] == [[0, 1], "from 0", [True, False]]
        assert said[3] == ["process 0: no: use yes" if me else "no: use yes", True]
        assert said[4] == ["no: use yes" if me else "process 1: no: use yes", True]
        assert said[5] == "yes"


def test_a_gang_ends_with_what_became_of_its_cells(quiet: tuple[list[Path], list[str]]) -> None:
    """Three folders done; a cell that all refuse, told once, by the first; a stop that one was asked for."""
    ends = [[line for line in said.splitlines() if line.startswith("gang")] for said in quiet[1]]
    refused = "gang 1 recipe.microbatch_seqs: 1 does not divide over 2 devices; use 2 or 4, or fewer devices"
    assert ends[0] == ["gang 0"] * 3 + [refused, "gang 75"]
    assert ends[1] == ["gang 0"] * 3 + ["gang 1", "gang 75"]


def test_two_processes_make_the_curve_of_one(root: Path, quiet: tuple[list[Path], list[str]], cells: list[RunSpec]
                                             ) -> None:  # fmt: skip
    """In one process on eight devices; the same rows in the same order, so each interval's loss agrees."""
    for spec in cells:
        alone = train_run(spec, root / "alone")
        assert_same_curve(lines(quiet[0][0], spec), lines(root / "alone", spec))
        together = result_of(quiet[0][0], spec)
        assert together.loss == pytest.approx(alone.loss, rel=LOSS_RTOL)
        assert (together.state, together.restarts, together.provenance["devices"]) == ("done", 0, 2)


def test_only_the_first_process_writes(quiet: tuple[list[Path], list[str]], cells: list[RunSpec]) -> None:
    for spec in cells:
        assert len((quiet[0][0] / spec.run_id / "attempts.jsonl").read_text().splitlines()) == 1
        assert steps_saved(quiet[0][0], spec) == [spec.steps]
        steps = [row["step"] for row in lines(quiet[0][0], spec)]
        assert steps == sorted(set(steps))


def test_the_same_processes_give_the_same_bits(quiet: tuple[list[Path], list[str]], cells: list[RunSpec]) -> None:
    first, again = quiet[0][:2]
    assert lines(first, cells[0]) == lines(again, cells[0])
    assert result_of(first, cells[0]).loss == result_of(again, cells[0]).loss


def test_a_branch_begins_from_the_state_that_several_processes_kept(
    root: Path, quiet: tuple[list[Path], list[str]], family: list[RunSpec]
) -> None:
    folder, (trunk, branch) = quiet[0][2], family
    assert result_of(folder, trunk).state == "done"
    whole = train_run(replace(branch, parent="", parent_step=0), root / "whole")
    assert result_of(folder, branch).loss == pytest.approx(whole.loss, rel=LOSS_RTOL)
    assert result_of(folder, branch).begun_step == branch.parent_step


def test_sigterm_to_one_process_saves_one_step_on_all(
    stopped: tuple[Path, list[int], list[str]], cells: list[RunSpec]
) -> None:
    folder, codes, said = stopped
    assert codes == [75, 75], said
    steps = [line.split("saved at step ")[1].split()[0] for own in said for line in own.splitlines() if "saved" in line]
    assert len(steps) == 2 and len(set(steps)) == 1
    assert steps_saved(folder, cells[1])[-1] == int(steps[0]) == lines(folder, cells[1])[-1]["step"]
    assert not (folder / cells[1].run_id / "result.json").exists()


def test_resumed_past_a_damaged_checkpoint_it_continues_to_the_same_bits(
    root: Path, stopped: tuple[Path, list[int], list[str]], quiet: tuple[list[Path], list[str]], cells: list[RunSpec]
) -> None:
    """Both processes leave the damaged step and go on from the one before."""
    folder, spec = root / "damaged", cells[1]
    shutil.copytree(stopped[0], folder)
    newest = steps_saved(folder, spec)[-1]
    for file in (folder / spec.run_id / "checkpoints" / str(newest)).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    codes, said = launch_run(2, folder, spec).join()
    assert codes == [0, 0], said
    result = result_of(folder, spec)
    assert [told.split(":")[0] for told in result.provenance["skipped_checkpoints"]] == [f"checkpoint {newest}"]
    assert lines(folder, spec) == lines(quiet[0][0], spec)
    assert (result.loss, result.restarts) == (result_of(quiet[0][0], spec).loss, 1)


def test_from_two_processes_to_four_on_another_mesh_one_of_which_is_killed_to_one(
    root: Path, whole: Plan, stopped: tuple[Path, list[int], list[str]], quiet: tuple[list[Path], list[str]],
    cells: list[RunSpec],
) -> None:  # fmt: skip
    """The others end in seconds, and the next start finishes the run on the curve that two processes made."""
    folder, spec = root / "moved", cells[1]
    shutil.copytree(stopped[0], folder)
    before = steps_saved(folder, spec)[-1]
    write_plan(folder, whole, [spec], fsdp=2)
    gang = launch_run(4, folder, spec, (signal.SIGKILL, 2, 2))
    gang.processes[2].wait(timeout=200)
    killed = time.monotonic()
    codes, said = gang.join()
    assert time.monotonic() - killed < DEATH_S, said
    assert codes[2] == -signal.SIGKILL and all(code in (1, -signal.SIGABRT) for code in codes[:2] + codes[3:]), said
    assert not (folder / spec.run_id / "result.json").exists()

    result = train_run(spec, folder, mesh=OFTEN)
    starts = [json.loads(line) for line in (folder / spec.run_id / "attempts.jsonl").read_text().splitlines()]
    assert starts[0]["step"] == 0 and starts[1]["step"] == before < starts[2]["step"]
    assert (result.state, result.restarts, result.provenance["devices"]) == ("done", 2, "2 then 4 then 8")
    assert_same_curve(lines(folder, spec), lines(quiet[0][0], spec))
    assert result.loss == pytest.approx(result_of(quiet[0][0], spec).loss, rel=LOSS_RTOL)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_rows_of_all_processes_are_the_global_batch(count: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 256, 4097).astype(np.uint16)
    whole = BatchSource(tokens, 16, 8, seed=3).read_steps(5, 3)
    parts = [BatchSource(tokens, 16, 8, 3, i, count).read_steps(5, 3) for i in range(count)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


ONE = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:4711", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


def test_the_environment_gives_a_process_its_place() -> None:
    assert find_seating({}) is None
    assert find_seating({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "2"}) is None, "eight cells, a task each"
    assert find_seating(ONE) == Seating("127.0.0.1:4711", 4, 3)
    srun = {"JAX_COORDINATOR_ADDRESS": "n1:4711", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    assert find_seating(srun) == Seating("n1:4711", 2, 1)
    assert find_seating(ONE | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES: 'two' is not a whole number"),
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES: 0 processes; use 1 or more"),
        ({"JAX_NUM_PROCESSES": ""}, "JAX_NUM_PROCESSES: not set beside .*srun"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID: 4 is not one of 4 processes; use 0 to 3"),
        ({"JAX_COORDINATOR_ADDRESS": "node1"}, "'node1' is not HOST:PORT; .* as in node1:45678"),
        ({"JAX_COORDINATOR_ADDRESS": "node1:99999"}, "is not HOST:PORT"),
        ({"JAXSCALE_DISTRIBUTED": "yes"}, "JAXSCALE_DISTRIBUTED: 'yes' is not known; use auto"),
        ({"JAX_COORDINATOR_ADDRESS": "", "JAXSCALE_DISTRIBUTED": "auto"}, "JAXSCALE_DISTRIBUTED: no platform"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(change: dict[str, str], words: str) -> None:
    with pytest.raises(MisuseError, match=words):
        find_seating(ONE | change)


def test_what_listens_does_so_at_the_address_that_is_needed() -> None:
    seating = Seating("localhost:4711", 2, 1)
    assert bind_address(seating, {}) == "127.0.0.1:4711" and own_address(seating) == "127.0.0.1"
    assert bind_address(seating, {"JAX_COORDINATOR_BIND_ADDRESS": "10.0.0.1:1"}) == "10.0.0.1:1"
    assert bind_address(Seating("[::1]:4711", 2, 0), {}) == "[::1]:4711"
    with pytest.raises(MisuseError, match=r"host 'no\.such\.host\.invalid' is not known here"):
        bind_address(Seating("no.such.host.invalid:4711", 2, 0), {})
