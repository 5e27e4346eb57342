"""The order of the data: a bijection per epoch, a pure function of the step, the same for any host count."""

import subprocess
import sys
from pathlib import Path

import grain
import numpy as np
import pytest
from grain.experimental import index_shuffle

from jaxscale.data.batches import (
    BatchSource,
    iterate_batches,
    make_dataset,
    permute_indices,
    validation_windows,
)
from jaxscale.data.permutation import shuffle_indices
from jaxscale.errors import MisuseError

TOKENS = np.arange(10_001, dtype=np.uint16)  # the value is the position
SOURCE = BatchSource(TOKENS, seq_len=16, batch_seqs=8, seed=3)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000, 1025])
def test_the_permutation_is_a_bijection(size: int) -> None:
    images = permute_indices(np.arange(size), size, seed=1, epoch=4)
    assert sorted(images.tolist()) == list(range(size))


def test_the_permutation_differs_by_seed_and_epoch() -> None:
    orders = {
        tuple(permute_indices(np.arange(100), 100, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)
    }
    assert len(orders) == 25


def test_the_permutation_leaves_no_trace_of_the_order() -> None:
    n = 20_000
    images = permute_indices(np.arange(n), n, seed=0, epoch=0)
    steps = np.diff(images)
    assert abs(np.corrcoef(images, np.arange(n))[0, 1]) < 4 / n**0.5
    assert abs(np.abs(steps).mean() / n - 1 / 3) < 0.01  # independent uniform places lie a third apart


def test_the_permutation_is_pinned_across_versions_of_grain() -> None:
    pinned = [300, 495, 264, 90, 906, 480, 393, 903]
    assert permute_indices(np.arange(8), 1000, seed=7, epoch=2).tolist() == pinned


@pytest.mark.parametrize("size", [4095, 4096, 5000, 65_536, 65_537, 65_538, 262_145, 10**7, 2**31 - 1, 2**40 + 1])
def test_images_are_those_of_grain(size: int) -> None:
    rng = np.random.default_rng(size)
    for key in [0, 2**32 - 1, *rng.integers(0, 2**32, 2).tolist()]:
        indices = np.r_[0, size - 1, rng.integers(0, size, 30)]
        grains = [index_shuffle(index, size - 1, key, 4) for index in indices.tolist()]
        assert shuffle_indices(indices, size, key, 4).tolist() == grains


def test_every_window_is_read_once_an_epoch_also_across_the_seam() -> None:
    source = BatchSource(TOKENS, seq_len=16, batch_seqs=7, seed=0)  # 625 windows, 7 does not divide them
    stream = source.find_windows(0, 300).ravel()
    for epoch in range(3):
        here = stream[epoch * 625 : (epoch + 1) * 625]
        assert sorted(here.tolist()) == list(range(625))


def test_rows_are_the_windows_of_the_text() -> None:
    windows = SOURCE.find_windows(5, 3)
    expected = windows[..., None] * 16 + np.arange(17)
    got = SOURCE.read_steps(5, 3)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, expected)


def test_each_token_but_the_first_is_a_target_once_an_epoch() -> None:
    steps = SOURCE.n_windows // 8
    source = BatchSource(TOKENS[: steps * 8 * 16 + 1], seq_len=16, batch_seqs=8, seed=1)
    targets = source.read_steps(0, steps)[..., 1:].ravel()
    assert sorted(targets.tolist()) == list(range(1, steps * 8 * 16 + 1))


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    again = BatchSource(TOKENS, seq_len=16, batch_seqs=8, seed=3)
    for step in (200, 0, 77, 1_000_000):
        np.testing.assert_array_equal(again.batch(step), SOURCE.batch(step))
    other = BatchSource(TOKENS, seq_len=16, batch_seqs=8, seed=4)
    assert (other.batch(0) != SOURCE.batch(0)).any()


@pytest.mark.parametrize("count", [2, 4, 8])
def test_processes_read_slices_of_the_same_global_batch(count: int) -> None:
    parts = [BatchSource(TOKENS, 16, 8, 3, index, count).read_steps(70, 20) for index in range(count)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), SOURCE.read_steps(70, 20))


@pytest.mark.parametrize("steps_per_item", [1, 4, 7])
def test_grain_serves_the_same_steps_in_order_from_anywhere(steps_per_item: int) -> None:
    items = list(iterate_batches(SOURCE, 11, 40, steps_per_item))
    np.testing.assert_array_equal(np.concatenate(items), SOURCE.read_steps(11, 29))
    dataset = make_dataset(SOURCE, 11, 40, steps_per_item)
    assert isinstance(dataset, grain.MapDataset)
    np.testing.assert_array_equal(dataset[1], SOURCE.read_steps(11 + steps_per_item, steps_per_item))
    assert list(iterate_batches(SOURCE, 40, 40)) == []


@pytest.mark.parametrize("n", [2, 17, 33, 100])
def test_each_validation_token_but_the_first_is_predicted_once(n: int) -> None:
    windows, mask = validation_windows(np.arange(1, n + 1, dtype=np.uint16), 16)
    assert windows.shape == (len(mask), 17)
    assert windows[:, 1:][mask].tolist() == list(range(2, n + 1))
    assert windows[:, :-1][mask].tolist() == list(range(1, n))
    assert not windows[:, 1:][~mask].any()


def test_misuse_is_named() -> None:
    with pytest.raises(MisuseError, match="10 tokens, fewer than one window"):
        BatchSource(TOKENS[:10], 16, 8, 0)
    with pytest.raises(MisuseError, match="batch of 8 sequences does not divide over 3 processes"):
        BatchSource(TOKENS, 16, 8, 0, 0, 3)
    with pytest.raises(MisuseError, match="seed -1"):
        BatchSource(TOKENS, 16, 8, -1)
    with pytest.raises(MisuseError, match="validation text has 1 tokens"):
        validation_windows(TOKENS[:1], 16)


def test_planning_imports_neither_jax_nor_grain() -> None:
    code = (
        "import sys, jaxscale.data.tokens, jaxscale.data.batches\n"
        "assert not {'jax', 'grain', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
