"""Checkpoints tell their own damage: the fingerprint sees every flipped bit, and a damaged state is not used."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxscale.train import checkpoint
from jaxscale.train import fingerprint as fingerprints
from jaxscale.train.checkpoint import Checkpoints, Damaged, keep_state, read_state, unseal_state
from jaxscale.train.fingerprint import fingerprint
from jaxscale.train.step import TrainState


def make_leaves(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        "matrix": jnp.asarray(rng.normal(size=(8, 6)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=(3, 4, 8)), jnp.bfloat16),
        "bytes": jnp.asarray(rng.integers(0, 255, 16), jnp.uint8),
        "step": jnp.int32(12345),
    }


def test_it_is_the_formula() -> None:
    words = make_leaves()["matrix"]
    x = np.asarray(words).view(np.uint32).ravel().astype(object)
    i = range(len(x))
    first = sum(int(a) * (2 * k + 1) for k, a in zip(i, x, strict=True)) % 2**32
    second = sum((int(a) ^ k) * ((2654435761 * k) % 2**32 | 1) for k, a in zip(i, x, strict=True)) % 2**32
    assert fingerprint({"matrix": words}).tolist() == [[first, second]]


def test_on_devices_of_any_mesh_it_is_the_same_as_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = make_leaves()
    host = fingerprint(leaves)
    monkeypatch.setattr(fingerprints, "_is_here", lambda _: False)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    cuts = {"matrix": ("a", "b"), "half": (None, "b", "a"), "bytes": (("a", "b"),), "step": ()}
    for places in ({}, cuts):
        put = {name: jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*places.get(name, ()))))
               for name, leaf in leaves.items()}  # fmt: skip
        assert np.array_equal(fingerprint(put), host)


@pytest.mark.parametrize("name", ["matrix", "half", "bytes", "step"])
def test_every_flipped_bit_and_every_swap_changes_it(name: str) -> None:
    leaves = make_leaves()
    host = np.asarray(leaves[name])
    whole = fingerprint({name: host})
    raw = host.tobytes()
    for place in range(len(raw)):
        for bit in range(8):
            flipped = raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :]
            assert not np.array_equal(
                fingerprint({name: np.frombuffer(flipped, host.dtype).reshape(host.shape)}), whole
            )
    if host.ndim:
        assert not np.array_equal(fingerprint({name: host[::-1]}), whole)


def state_of(seed: int) -> TrainState:
    return TrainState(make_leaves(seed), {"moment": jnp.ones(3)}, jnp.int32(7))


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def plant(state: TrainState) -> TrainState:
    """One bit of one weight."""
    words = np.array(state.params["matrix"])
    words.view(np.uint32)[3, 3] ^= 1
    return state._replace(params={**state.params, "matrix": jnp.asarray(words)})


def test_a_bit_flipped_after_the_seal_is_seen_and_the_step_before_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flip is planted between fingerprint and disk, where the storage's own checks cannot see it."""
    good, bad = state_of(1), state_of(2)
    keeper = Checkpoints(tmp_path / "checkpoints")
    keeper.save(good, 10, wait=True)
    with monkeypatch.context() as corrupt:
        told = fingerprint(checkpoint._by_name(bad))
        corrupt.setattr(checkpoint, "fingerprint", lambda _: told)
        keeper.save(plant(bad), 20, wait=True)
        keep_state(tmp_path / "kept", plant(bad))
    restored = keeper.restore(abstract(good))
    keeper.close()
    assert restored is not None and jax.tree.all(jax.tree.map(jnp.array_equal, restored, good))
    assert len(keeper.skipped) == 1 and "checkpoint 20: 1 of 6 arrays" in keeper.skipped[0]
    assert "matrix" in keeper.skipped[0]
    with pytest.raises(Damaged, match="are not as they were saved"):
        unseal_state(read_state(tmp_path / "kept", abstract(bad)), abstract(bad))


def test_states_beyond_what_the_curve_tells_are_set_aside(tmp_path: Path) -> None:
    keeper = Checkpoints(tmp_path / "checkpoints")
    for step in (10, 20):
        keeper.save(state_of(step), step, wait=True)
    restored = keeper.restore(abstract(state_of(0)), at_most=15)
    assert restored is not None and jnp.array_equal(restored.params["matrix"], make_leaves(10)["matrix"])
    keeper.save(state_of(30), 20, wait=True)  # in the place of the one that was set aside
    keeper.close()
    assert "damaged after step 15" in keeper.skipped[0]
    assert len(list((tmp_path / "damaged_checkpoints").iterdir())) == 1


def test_states_of_before_the_fingerprint_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Checkpoints(tmp_path / "checkpoints")
    with monkeypatch.context() as old:
        old.setattr(checkpoint, "_seal", checkpoint._by_name)
        keeper.save(state_of(1), 10, wait=True)
    restored = keeper.restore(abstract(state_of(0)))
    keeper.save(state_of(2), 20, wait=True)
    again = keeper.restore(abstract(state_of(0)))
    keeper.close()
    for found, seed in ((restored, 1), (again, 2)):
        assert found is not None and jnp.array_equal(found.params["matrix"], make_leaves(seed)["matrix"])
    assert keeper.skipped == []
