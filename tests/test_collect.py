"""The declared exclusion rule by its closed form, and curves read as they were written."""

import json
from pathlib import Path

import pytest

from jaxscale.collect import measure_spike


def write_curve(file: Path, losses: list[float]) -> Path:
    lines = [json.dumps({"step": i + 1, "loss": loss, "seconds": i}) for i, loss in enumerate(losses)]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_falling_curve_has_no_spike(tmp_path: Path) -> None:
    assert measure_spike(write_curve(tmp_path / "m.jsonl", [5 - 0.02 * i for i in range(100)])) == 0.0


def test_spike_without_recovery_is_its_height_above_the_best_stretch(tmp_path: Path) -> None:
    curve = [3.0] * 50 + [2.0] * 40 + [2.75] * 10
    assert measure_spike(write_curve(tmp_path / "m.jsonl", curve)) == pytest.approx(0.75)


def test_spike_that_recovers_is_forgiven(tmp_path: Path) -> None:
    curve = [3.0] * 30 + [9.0] * 10 + [2.5] * 60
    assert measure_spike(write_curve(tmp_path / "m.jsonl", curve)) == pytest.approx(0.0)


def test_no_curve_is_not_a_calm_curve(tmp_path: Path) -> None:
    assert measure_spike(tmp_path / "absent.jsonl") is None
