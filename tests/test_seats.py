"""Seats: who gets which cores, and as how many devices."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_study

from jaxscale.config import MeshConfig, ModelConfig
from jaxscale.flops import flops_per_token
from jaxscale.plan import plan_isoflop
from jaxscale.runs import Cell
from jaxscale.train.seats import DEVICE_FLOPS, Seat, seat_worker

LARGE = ModelConfig(d_model=256, n_layers=4, seq_len=256)


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A tiny cell, on a machine where this process has cores 2 to 5."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 4, 5})
    return plan_isoflop(make_study(tmp_path), train_tokens=1e5).cells[0]


def enlarge(cell: Cell, seqs: int, model: ModelConfig = LARGE) -> Cell:
    return replace(cell, spec=replace(cell.spec, model=model, microbatch_seqs=seqs))


def test_a_tiny_run_stays_on_one_core(cell: Cell) -> None:
    assert [seat_worker(i, 2, MeshConfig(), [cell]).cores for i in range(2)] == [(2,), (4,)]
    assert [seat_worker(i, 4, MeshConfig(), [enlarge(cell, 8)]).cores for i in range(4)] == [(2,), (3,), (4,), (5,)]


def test_large_microbatches_are_shared_by_as_many_cores_as_they_divide_over(cell: Cell) -> None:
    cores = {seqs: len(seat_worker(0, 1, MeshConfig(), [enlarge(cell, seqs)]).cores) for seqs in (8, 6, 2, 1, 7)}
    assert cores == {8: 4, 6: 3, 2: 2, 1: 1, 7: 1}
    assert seat_worker(1, 2, MeshConfig(), [enlarge(cell, 8)]).cores == (4, 5)
    assert seat_worker(0, 1, MeshConfig(), [enlarge(cell, 8), cell]).cores == (2,)


def test_the_bar_is_a_devices_share_of_a_microbatch(cell: Cell) -> None:
    model = ModelConfig(d_model=64, n_layers=3, seq_len=128)
    enough = DEVICE_FLOPS * 2 / flops_per_token(model) / model.seq_len
    below, above = 2 * int(enough / 2), 2 * int(enough / 2) + 2
    assert len(seat_worker(0, 2, MeshConfig(), [enlarge(cell, below, model)]).cores) == 1
    assert len(seat_worker(0, 2, MeshConfig(), [enlarge(cell, above, model)]).cores) == 2


def test_a_mesh_that_asks_for_devices_gets_them(cell: Cell) -> None:
    assert len(seat_worker(0, 1, MeshConfig(fsdp=4), [cell]).cores) == 4
    assert len(seat_worker(0, 1, MeshConfig(tensor=2, data=1), [cell]).cores) == 2
    assert len(seat_worker(0, 1, MeshConfig(data=1), [enlarge(cell, 8)]).cores) == 1


def test_the_microbatch_of_the_execution_decides(cell: Cell) -> None:
    cores = {
        seqs: len(seat_worker(0, 1, MeshConfig(microbatch_seqs=seqs), [enlarge(cell, 8)]).cores) for seqs in (1, 2, 4)
    }
    assert cores == {1: 1, 2: 2, 4: 4}


def test_the_environment_names_the_devices_and_keeps_the_users_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_dump_to=/tmp/x")
    two, one = Seat((0, 1)), Seat((3,))
    assert two.environment()["XLA_FLAGS"].split() == [
        "--xla_dump_to=/tmp/x", "--xla_force_host_platform_device_count=2", "--xla_cpu_multi_thread_eigen=false"
    ]  # fmt: skip
    assert "device_count" not in one.environment()["XLA_FLAGS"]
    assert (two.listed, one.listed) == ("0,1", "3")
    assert one.environment()["MALLOC_MMAP_MAX_"] == "0"
