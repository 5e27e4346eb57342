"""The thin files of launch/: shell that parses and checks its arguments, task files that say what they should."""

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"


@pytest.mark.parametrize("file", sorted(LAUNCH.glob("*.sh")), ids=lambda file: file.name)
def test_every_script_parses(file: Path) -> None:
    subprocess.run(["bash", "-n", str(file)], check=True)


def call_tpu_pod(folder: Path, *words: str) -> tuple[int, str, list[str]]:
    """(exit code, stderr, what gcloud was asked), with a stand-in for gcloud."""
    (folder / "bin").mkdir(exist_ok=True)
    gcloud = folder / "bin" / "gcloud"
    gcloud.write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    gcloud.chmod(0o755)
    done = subprocess.run(
        ["bash", str(LAUNCH / "tpu_pod.sh"), *words], capture_output=True, text=True,
        env={**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"},
    )  # fmt: skip
    return done.returncode, done.stderr, done.stdout.split("\0")[:-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pod", "us-central2-b"], "NAME ZONE DIR"),
        (["pod; reboot", "us-central2-b", "/runs/x"], "NAME: "),
        (["pod", "--zone=x", "/runs/x"], "ZONE: "),
        (["pod", "us-central2-b", "runs/x"], "is not absolute"),
        (["pod", "us-central2-b", "/runs/x\nreboot"], "line break"),
        (["pod", "us-central2-b", "/runs/x", "My Project"], "PROJECT: "),
    ],
)
def test_tpu_pod_refuses_what_it_cannot_use(tmp_path: Path, words: list[str], said: str) -> None:
    code, err, asked = call_tpu_pod(tmp_path, *words)
    assert (code, asked) == (2, [])
    assert said in err


def test_tpu_pod_runs_one_worker_on_every_host(tmp_path: Path) -> None:
    code, _, asked = call_tpu_pod(tmp_path, "pod", "us-central2-b", "/runs/it's; reboot", "my-project")
    assert code == 0
    assert asked[:-1] == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone", "us-central2-b", "--project",
                          "my-project", "--worker=all", "--command"]  # fmt: skip
    shell = shlex.split(subprocess.run(["bash", "-c", f"printf '%q ' {asked[-1]}"], capture_output=True, text=True,
                                       check=True).stdout)  # fmt: skip
    assert shell[:2] == ["bash", "-c"]
    assert "export JAXSCALE_DISTRIBUTED=auto; exec " in shell[2]
    assert shlex.split(shell[2])[-3:] == [".venv/bin/jaxscale", "work", "/runs/it's; reboot"]


def read(name: str) -> Any:
    return yaml.safe_load((LAUNCH / name).read_text())


def test_the_skypilot_task_runs_the_pull_worker_and_recovers() -> None:
    task = read("skypilot.yaml")
    assert task["run"].split() == ["exec", ".venv/bin/jaxscale", "work", '"/runs/$STUDY"']
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert task["resources"]["use_spot"] is True
    assert list(task["volumes"]) == ["/runs"]
    assert list(task["envs"]) == ["STUDY"]
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)


@pytest.mark.skipif(importlib.util.find_spec("sky") is None, reason="skypilot is not installed (pip install skypilot)")
def test_skypilot_takes_its_task(tmp_path: Path) -> None:
    code = f"import sky; task = sky.Task.from_yaml({str(LAUNCH / 'skypilot.yaml')!r}); print(task.name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "HOME": str(tmp_path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "jaxscale-work"


def test_the_job_of_kubernetes_runs_the_pull_worker_and_goes_on_after_a_preemption() -> None:
    job = read("gke.yaml")
    assert (job["kind"], job["spec"]["completionMode"]) == ("Job", "Indexed")
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["command"][:2] == ["jaxscale", "work"]
    rules = job["spec"]["podFailurePolicy"]["rules"]
    codes = {tuple(rule["onExitCodes"]["values"]): rule["action"] for rule in rules if "onExitCodes" in rule}
    assert codes == {(75,): "Ignore", (1, 2): "FailJob"}
    assert all(rule["onExitCodes"]["containerName"] == container["name"] for rule in rules if "onExitCodes" in rule)
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]}
