"""Trackers: the same numbers as metrics.jsonl, one id over restarts, offline, and never a reason to stop."""

from pathlib import Path

import pytest
from tiny import make_study

from jaxscale.config import LaunchConfig
from jaxscale.errors import MisuseError
from jaxscale.plain import read_lines
from jaxscale.plan import plan_isoflop
from jaxscale.runs import METRIC_FIELDS, RunSpec
from jaxscale.train import track
from jaxscale.train.loop import Preempted, train_run
from jaxscale.train.track import Trackers, check_trackers

BOTH = LaunchConfig(trackers=("tensorboard", "wandb"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("track")


@pytest.fixture(scope="module")
def spec(root: Path) -> RunSpec:
    return plan_isoflop(make_study(root), train_tokens=1e5).cells[2].spec


def read_scalars(folder: Path, name: str) -> dict[int, float]:
    """Step -> value over all event files, the later start's where both have one."""
    from tensorboardX.event_file_writer import EventsWriter  # noqa: F401, the package is there
    from tensorboardX.proto.event_pb2 import Event

    found: dict[int, float] = {}
    for file in sorted(folder.glob("events.*"), key=lambda each: each.stat().st_mtime_ns):
        data, place = file.read_bytes(), 0
        while place < len(data):
            size = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + size])
            for value in event.summary.value:
                if value.tag == name:
                    found[event.step] = value.simple_value
            place += 12 + size + 4
    return found


def test_curves_go_to_both_under_one_id_over_a_restart_and_nothing_secret_is_written(
    root: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboardX")
    pytest.importorskip("wandb")
    secret = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", secret)
    calls = iter(range(100))
    with pytest.raises(Preempted):
        train_run(spec, root / "both", launch=BOTH, should_stop=lambda: next(calls) >= 3)
    assert train_run(spec, root / "both", launch=BOTH).restarts == 1
    lines = read_lines(root / "both" / spec.run_id / "metrics.jsonl", METRIC_FIELDS)
    told = read_scalars(root / "both" / spec.run_id / "tensorboard", "train/loss")
    assert told == pytest.approx({line["step"]: line["loss"] for line in lines}, rel=1e-6)
    starts = sorted(path.name for path in (root / "both" / "wandb").glob(f"offline-run-*-{spec.run_id}*"))
    assert len(starts) == 2
    for file in (root / "both").rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes()


def test_a_tracker_that_fails_is_told_once_and_training_goes_on(
    root: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(line: object) -> None:
        raise OSError("the server is gone")

    monkeypatch.setattr(track, "check_trackers", lambda _: None)
    monkeypatch.setattr("jaxscale.train.member.open_trackers", lambda *_: Trackers([(fail, lambda: None)]))
    assert train_run(spec, root / "failing").state == "done"
    assert capfd.readouterr().err.count("the server is gone") == 1


def test_a_tracker_without_its_package_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(track.PACKAGES, "wandb", "no_such_package")
    with pytest.raises(MisuseError, match=r"launch.trackers: wandb needs .* pip install 'jaxscale\[track\]'"):
        check_trackers(LaunchConfig(trackers=("wandb",)))
