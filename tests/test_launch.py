"""What is sent to a cluster: settings that cannot break a script, tasks that fit, a script that does what it should."""

import os
import re
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from fake_slurm import fake_slurm
from tiny import make_study

from jaxscale.cli import dispatch
from jaxscale.errors import MisuseError
from jaxscale.launch import SlurmSettings, load_settings
from jaxscale.launch.groups import group_tasks, list_units
from jaxscale.launch.script import render_script
from jaxscale.plain import write_json
from jaxscale.plan import plan_isoflop
from jaxscale.runs import Cell, Plan
from jaxscale.sweep import pack_key

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Ten cells with two seeds each, so that two and two can train together."""
    return plan_isoflop(make_study(tmp_path_factory.mktemp("launch"), seeds=(2,)), train_tokens=1e5)


@pytest.fixture(scope="module")
def branched(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    study = make_study(tmp_path_factory.mktemp("branched"), schedule="wsd-branches")
    return plan_isoflop(replace(study, recipe=replace(study.recipe, schedule="wsd")), train_tokens=1e5)


def load(cells: tuple[Cell, ...]) -> float:
    return sum(cell.seconds for cell in cells)


# settings


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("partition", "gpu\n#SBATCH --uid=0", "#SBATCH line cannot hold"),
        ("account", "a b", "#SBATCH line cannot hold"),
        ("constraint", 'a"b', "#SBATCH line cannot hold"),
        ("qos", "x;reboot", "#SBATCH line cannot hold"),
        ("mem", "64 GB", "write for example 64G"),
        ("time_limit", "1h", "minutes, HH:MM:SS or D-HH:MM:SS"),
        ("time_limit", "00:01:00", "raise it or lower slurm.notice_s"),
        ("notice_s", 70_000, "at most 65535"),
        ("nodes_per_cell", 0, "use 1 or more"),
        ("throttle", -1, "use 0 or more"),
        ("task_minutes", float("nan"), "use 1 or more"),
        ("ports", (80, 90), "two from 1024 to 65535"),
        ("ports", (30_000, 20_000), "two from 1024 to 65535"),
        ("setup", ("module load a\nrm -rf /",), "one line each"),
        ("command", ("",), "one line each"),
        ("setup", ("export WANDB_API_KEY=0123456789",), "write a secret"),
        ("sbatch_args", ("--comment=two words",), "option of one word"),
        ("sbatch_args", ("-p gpu",), "option of one word"),
        ("sbatch_args", ("--array=0-9",), "set by the launch itself"),
        ("srun_args", ("--kill-on-bad-exit=1",), "set by the launch itself"),
    ],
)
def test_a_setting_that_could_break_the_script_is_refused_by_name(field: str, value: object, words: str) -> None:
    with pytest.raises(MisuseError, match=re.escape(words)) as error:
        SlurmSettings(**{field: value})  # type: ignore[arg-type]
    assert str(error.value).startswith(f"slurm.{field}: ")
    assert "\n" not in str(error.value)


def test_a_secret_is_not_repeated_in_its_refusal_and_may_come_from_a_file() -> None:
    with pytest.raises(MisuseError) as error:
        SlurmSettings(setup=("export WANDB_API_KEY=0123456789",))
    assert "0123" not in str(error.value)
    SlurmSettings(setup=("export WANDB_API_KEY=$(cat ~/.wandb)", "export HF_TOKEN_PATH=/home/me/token"))


def test_workers_share_a_node_of_cells_that_are_one_process() -> None:
    with pytest.raises(MisuseError, match="do not go with cells of 4 processes"):
        SlurmSettings(nodes_per_cell=2, tasks_per_node=2, workers_per_node=2)
    with pytest.raises(MisuseError, match="8 GPUs do not divide over 3 workers"):
        SlurmSettings(gpus_per_node=8, workers_per_node=3)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def get_settings(): return 3", "returned int"),
        ("raise RuntimeError('no')", "RuntimeError: no"),
        ("from jaxscale.launch import SlurmSettings\ndef get_settings(): return SlurmSettings(nodes_per_cell=2.0)",
         "slurm.nodes_per_cell: 2.0 is a float"),
        ("from jaxscale.launch import SlurmSettings\ndef get_settings(): return SlurmSettings(setup='a')",
         "slurm.setup: 'a' is a str"),
        ("from jaxscale.launch import SlurmSettings\ndef get_settings(): return SlurmSettings(mem='many')",
         "slurm.mem"),
    ],
)  # fmt: skip
def test_a_settings_file_that_is_none_is_named(tmp_path: Path, body: str, words: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(body)
    with pytest.raises(MisuseError, match=re.escape(words)) as error:
        load_settings(file)
    assert str(file) in str(error.value) or "slurm." in str(error.value)


def test_the_shipped_settings_load() -> None:
    settings = load_settings(ROOT / "launch" / "slurm.py")
    assert settings.most_seconds == 4 * 3600 - settings.notice_s


# tasks


@pytest.mark.parametrize("most", [1e-4, 0.05, 0.2, 1e9])
def test_every_cell_is_in_one_task_and_tasks_fit_their_time(plan: Plan, most: float) -> None:
    tasks = group_tasks(plan.cells, most)
    assert sorted(cell.run_id for task in tasks for cell in task) == sorted(cell.run_id for cell in plan.cells)
    assert all(load(task) <= most or len(task) == 1 for task in tasks)
    assert [load(task) for task in tasks] == sorted(map(load, tasks), reverse=True)
    assert all(a.seconds >= b.seconds for task in tasks for a, b in pairwise(task))


def test_tasks_are_as_few_as_their_time_allows_and_balanced(plan: Plan) -> None:
    total = load(plan.cells)
    tasks = group_tasks(plan.cells, total / 2.5)
    assert len(tasks) in (3, 4)
    assert load(tasks[0]) - load(tasks[-1]) <= max(cell.seconds for cell in plan.cells) * 2


def test_cells_that_can_train_together_share_a_task(plan: Plan) -> None:
    pair = max(plan.cells, key=lambda cell: cell.seconds).seconds * 2.01
    for task in group_tasks(plan.cells, pair):
        keys = [pack_key(cell.spec) for cell in task]
        assert all(keys.count(key) == 2 for key in keys)


def test_a_trunk_and_its_branches_are_one_task_trunk_first(branched: Plan) -> None:
    for most in (1e-6, 1e9):
        for task in group_tasks(branched.cells, most):
            ids = [cell.run_id for cell in task]
            assert all(cell.spec.parent in ids for cell in task if cell.spec.parent)
            assert [bool(cell.spec.keeps) for cell in task] == sorted((bool(c.spec.keeps) for c in task), reverse=True)


def test_branches_whose_trunk_has_ended_are_units_of_their_own(branched: Plan) -> None:
    branches = [cell for cell in branched.cells if cell.spec.parent]
    assert [len(unit) for unit in list_units(branches)] == [1] * len(branches)


# the script


def render(settings: SlurmSettings, folder: Path) -> str:
    return render_script(settings, folder, 3, 12, "jaxscale-tiny-3-0a1b2c3d")


def test_the_script_is_shell_and_says_each_setting_once(tmp_path: Path) -> None:
    settings = SlurmSettings(
        partition="a,b", account="me", qos="low", constraint="[x|y]", reservation="r", mem="64G", throttle=4,
        gpus_per_node=8, workers_per_node=8, cpus_per_task=2, time_limit="1-00:00:00", setup=("module load a b",),
        prefix=("apptainer", "exec", "my image.sif"), command=("jaxscale",), srun_args=("--gpu-bind=none",),
        sbatch_args=("--mail-type=FAIL",),
    )  # fmt: skip
    script = render(settings, tmp_path)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE))
    assert options == {
        "job-name": "jaxscale-tiny-3-0a1b2c3d", "array": "0-11%4", "output": f'"{tmp_path}/logs/slurm-%A_%a.out"',
        "open-mode": "append", "requeue": "", "signal": "TERM@120", "partition": "a,b", "account": "me", "qos": "low",
        "constraint": "[x|y]", "reservation": "r", "mem": "64G", "time": "1-00:00:00", "nodes": "1",
        "ntasks-per-node": "8", "cpus-per-task": "2", "gpus-per-node": "8", "mail-type": "FAIL",
    }  # fmt: skip
    step = script[script.index("\nsrun ") : script.index("\ncode=")]
    assert "--ntasks=8 --cpus-per-task=2 --gpus-per-task=1 --gpu-bind=none" in step
    assert f"apptainer exec 'my image.sif' jaxscale work {tmp_path} --launch 3 --task \"$task\"" in step
    assert script.index("module load a b") < script.index("set -u") < script.index("srun ")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_path_that_sbatch_reads_otherwise_is_refused(tmp_path: Path) -> None:
    for name in ("50%", 'a"b', "a'b", "a#b", "a\nb", "a\\b"):
        with pytest.raises(MisuseError, match="move or rename"):
            render(SlurmSettings(), tmp_path / name)
    assert f"'{tmp_path}/a b/launches'/3-$task.deaths" in render(SlurmSettings(), tmp_path / "a b")


def run_script(folder: Path, fake: Path, code: int, settings: SlurmSettings, **environment: str) -> tuple[int, str]:
    """The script's own exit code and what it asked of scontrol, where its work ends with `code`."""
    (folder / "launches").mkdir(exist_ok=True)
    (fake / "code").write_text(str(code))
    (fake / "state").write_text(environment.pop("state", "RUNNING"))
    (fake / "scontrol").unlink(missing_ok=True)
    (fake / "srun").unlink(missing_ok=True)
    done = subprocess.run(
        ["bash"], input=render(settings, folder), text=True, capture_output=True,
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_JOB_ID": "40", "SLURM_JOB_ID": "47",
             "SLURM_JOB_NODELIST": "rack-a[01-02]-n1", **environment},
    )  # fmt: skip
    asked = (fake / "scontrol").read_text().strip() if (fake / "scontrol").exists() else ""
    return done.returncode, asked


@pytest.mark.parametrize(
    ("code", "again"),
    [(0, False), (1, False), (2, False), (130, False), *((code, True) for code in (75, 143, 134, 137, 139, 125, 127))],
)
def test_what_comes_back_is_tried_again_only_where_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, again: bool
) -> None:
    fake = fake_slurm(tmp_path / "fake", monkeypatch)
    assert run_script(tmp_path, fake, code, SlurmSettings()) == (code, "requeue 40_7" if again else "")


def test_a_cancelled_job_is_not_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_slurm(tmp_path / "fake", monkeypatch)
    assert run_script(tmp_path, fake, 75, SlurmSettings(), state="COMPLETING") == (75, "")


def test_deaths_are_capped_apart_from_preemptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_slurm(tmp_path / "fake", monkeypatch)
    settings = SlurmSettings(max_deaths=3, max_requeues=50)
    asked = [run_script(tmp_path, fake, code, settings, SLURM_RESTART_COUNT="9")[1] for code in (137, 75, 75, 137, 137)]
    assert [bool(one) for one in asked] == [True, True, True, True, False]
    assert [line.split()[0] for line in (tmp_path / "launches/3-7.deaths").read_text().splitlines()] == ["137"] * 3
    assert run_script(tmp_path, fake, 75, settings, SLURM_RESTART_COUNT="50") == (75, "")


def test_processes_of_one_cell_meet_on_the_first_node_at_a_port_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_slurm(tmp_path / "fake", monkeypatch)
    run_script(tmp_path, fake, 0, SlurmSettings(nodes_per_cell=2, ports=(15_000, 15_009)))
    said = (fake / "srun").read_text().splitlines()
    assert "--nodes=2 --ntasks=2" in said[0]
    assert sorted(said[1:]) == [f"JAX_COORDINATOR_{name}=rack-a01-n1:15007" for name in ("ADDRESS", "BIND_ADDRESS")]
    run_script(tmp_path, fake, 0, SlurmSettings(tasks_per_node=2, ports=(15_000, 15_009)))
    said = (fake / "srun").read_text().splitlines()
    assert sorted(said[1:]) == [f"JAX_COORDINATOR_{name}=127.0.0.1:15007" for name in ("ADDRESS", "BIND_ADDRESS")]
    run_script(tmp_path, fake, 0, SlurmSettings(workers_per_node=2), JAX_COORDINATOR_ADDRESS="elsewhere:1",
               JAX_NUM_PROCESSES="4")  # fmt: skip
    assert len((fake / "srun").read_text().splitlines()) == 1


# the verb


@pytest.fixture
def folder(tmp_path: Path, plan: Plan) -> Path:
    write_json(tmp_path / "run" / "plan.json", plan.to_json())
    return tmp_path / "run"


def test_a_dry_run_needs_no_slurm_and_writes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(folder)
    assert dispatch(["launch", str(folder), "--on", "slurm", "--dry-run", "--slurm.partition", "x"]) == 0
    said = capsys.readouterr().out
    assert "#SBATCH --partition=x" in said
    assert "dry run: 20 cells in 1 task, nothing was submitted" in said
    assert sorted(folder.iterdir()) == [folder / "plan.json"]
    assert dispatch(["launch", str(folder), "--on", "slurm"]) == 1
    assert "squeue: no such command here" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == [folder / "plan.json"]


def test_options_override_the_settings_file_and_unknown_ones_propose_the_nearest(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    file = folder.parent / "mine.py"
    file.write_text("from jaxscale.launch import SlurmSettings\n"
                    "def get_settings(): return SlurmSettings(partition='a', account='b')\n")  # fmt: skip
    words = ["launch", str(folder), "--on", "slurm", "--dry-run", "--settings", str(file)]
    assert dispatch([*words, "--slurm.partition", "c"]) == 0
    said = capsys.readouterr().out
    assert "#SBATCH --partition=c" in said
    assert "#SBATCH --account=b" in said
    with pytest.raises(SystemExit) as left:
        dispatch([*words, "--slurm.partitin", "c"])
    assert left.value.code == 2
    assert "--slurm.partition" in capsys.readouterr().err
    assert dispatch([*words[:-1], "nowhere.py"]) == 2
    assert "no such file" in capsys.readouterr().err
