"""How the runs of one shape go through the machine: each alone, all at once, or in turn inside one program.

    process   one run, the program over the whole mesh; another run is another dispatch
    pack      m runs at once, jax.vmap over them: each matrix product becomes a batched one
    turn      m runs one after another inside one dispatch, jax.lax.map over them

Rate, decay, seed, init scale and horizon of each run are runtime arrays. Several devices share the runs of a pack
(shard_map, no communication); lanes that fill the last device up repeat the last run and are never read. What a
run computes depends on no other: a loss that is not finite stays in its lane. In turn, a run that has ended takes
no steps; at once, its lane goes on unread.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache, partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxscale.config import MeshConfig
from jaxscale.errors import MisuseError
from jaxscale.model.decoder import init_stds
from jaxscale.model.lowering import Lowering, choose_lowering
from jaxscale.runs import RunSpec
from jaxscale.sweep import Way
from jaxscale.train.execution import Execution, apply_precision, choose_execution, choose_microbatch
from jaxscale.train.optimizer import Hyper
from jaxscale.train.sharding import make_mesh, row_group
from jaxscale.train.step import Program, StepMetrics, TrainState, make_program, quick_compile, strip_init

__all__ = ["WAYS", "Engine", "Packed", "Single", "make_engine", "splits_runs"]

WAYS: tuple[Way, ...] = ("process", "pack", "turn")

MEMBER = "member"
EACH, SAME = PartitionSpec(MEMBER), PartitionSpec()


class Engine(Protocol):
    """m runs of one shape on this process's devices. Arrays that go in and out have a leading member axis [m]."""

    slots: int
    """Microbatches a dispatch holds, for each member."""
    replicas: int
    """Devices over which a validation batch is split."""
    row_group: tuple[int, int]
    """(index, count): which of how many equal parts of every batch this process feeds."""
    microbatch_seqs: int
    """Sequences in one forward pass of all devices that share a run."""
    mesh: Mesh
    """Devices over which `member` lays a run's own state."""

    def compile(self) -> None:
        """Compile training, so that the clock can start after it."""

    def abstract_state(self) -> TrainState:
        """Shapes of what `begin` gives and checkpoints hold."""

    def begin(self) -> TrainState:
        """The state before the first step."""

    def place(self, saved: TrainState) -> TrainState:
        """A restored state on the devices."""

    def to_save(self, state: TrainState) -> TrainState:
        """The state as checkpoints hold it."""

    def member(self, state: TrainState, i: int) -> TrainState:
        """One run's own state."""

    def stage(self, windows_mnbt: np.ndarray) -> Any:
        """A dispatch's microbatches [m, slots, b, t + 1] on the devices; does not wait."""

    def step(self, state: TrainState, staged: Any, live: np.ndarray, steps: int) -> Any:
        """`steps` optimizer steps of every live member: the new state, and metrics for `fetch`; does not wait."""

    def fetch(self, metrics: StepMetrics, steps: int) -> tuple[np.ndarray, ...]:
        """Losses, gradient norms and, where they are measured, the microbatches' mean squared ones, of a dispatch,
        float32 [m, steps] each; waits for them."""

    def evaluate(self, state: TrainState, windows: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Summed loss of every window [m, n, b], from windows [n, b, t + 1] and mask [n, b, t].

        Of several masks a window, [n, b, k, t], a sum for each, [m, n, b, k].
        """


class Single:
    """One run over the whole mesh."""

    def __init__(self, spec: RunSpec, slots: int, execution: Execution, dtype: Any, measures: bool = False) -> None:
        self.spec, self.slots = spec, slots
        mesh, self.microbatch_seqs = execution.mesh, execution.microbatch_seqs
        self.mesh = mesh
        self.program = _program(spec, slots, mesh, dtype, execution.lowering, measures)
        self.replicas, self.row_group = mesh.shape["data"] * mesh.shape["fsdp"], row_group(mesh)
        self.hyper = Hyper.from_spec(spec)
        self.accumulate = np.int32(spec.batch_seqs // self.microbatch_seqs)

    def compile(self) -> None:
        self.program.train(self.microbatch_seqs)

    def abstract_state(self) -> TrainState:
        return self.program.abstract_state()

    def begin(self) -> TrainState:
        return self.program.init(jnp.uint32(self.spec.seed), init_stds(self.spec.model))

    def place(self, saved: TrainState) -> TrainState:
        return saved

    def to_save(self, state: TrainState) -> TrainState:
        return state

    def member(self, state: TrainState, i: int) -> TrainState:
        return state

    def stage(self, windows_mnbt: np.ndarray) -> Any:
        return self.program.put_batch(windows_mnbt[0], self.microbatch_seqs)

    def step(self, state: TrainState, staged: Any, live: np.ndarray, steps: int) -> Any:
        train = self.program.train(self.microbatch_seqs)
        return train(state, staged, np.int32(steps), self.accumulate, self.hyper)

    def fetch(self, metrics: StepMetrics, steps: int) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(part)[None, :steps] for part in metrics if part is not None)

    def evaluate(self, state: TrainState, windows: np.ndarray, mask: np.ndarray) -> np.ndarray:
        rows = windows.shape[1]
        first, end = self.program.local_rows(rows)
        own = (self.program.put_batch(part[:, first:end], rows) for part in (windows, mask))
        return np.asarray(self.program.evaluate(state.answer, *own))[None]


class PackProgram:
    """The compiled programs of `lanes` runs of one shape on these devices; what differs between runs is an argument."""

    def __init__(self, program: Program, lanes: int, way: Way, microbatch_seqs: int, devices: tuple[Any, ...]) -> None:
        self.program, self.lanes, self.way, self.microbatch_seqs = program, lanes, way, microbatch_seqs
        mesh = Mesh(np.array(devices), (MEMBER,), axis_types=(AxisType.Auto,))
        self.each, self.same = NamedSharding(mesh, EACH), NamedSharding(mesh, SAME)
        share = partial(jax.shard_map, mesh=mesh, out_specs=EACH, check_vma=False)
        self._train = jax.jit(share(self._advance, in_specs=(EACH, EACH, EACH, SAME, EACH)), donate_argnums=0)
        self.sums = jax.jit(share(self._sum_losses, in_specs=(EACH, SAME, SAME)))
        begin, options = share(jax.vmap(program.begin), in_specs=(EACH, EACH)), quick_compile(devices[0].platform)
        self.begin = jax.jit(begin, compiler_options=options)

    @cached_property
    def train(self) -> Any:
        """Compiled (state, windows [lanes, slots, b, t + 1], steps [lanes], accumulate, hyper) -> state, metrics."""
        spec, lanes = self.program, self.lanes
        shape = (lanes, spec.slots, self.microbatch_seqs, spec.model.seq_len + 1)
        each = partial(jax.ShapeDtypeStruct, sharding=self.each)
        state = jax.tree.map(lambda leaf: each((lanes, *leaf.shape), leaf.dtype), spec.abstract_state())
        hyper: Any = Hyper(*[each((lanes,), jnp.float32)] * len(Hyper._fields))  # type: ignore[arg-type]
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=self.same)
        return self._train.lower(state, each(shape, jnp.int32), each((lanes,), jnp.int32), count, hyper).compile()

    def _advance(self, state: Any, windows: Any, steps: Any, accumulate: Any, hyper: Any) -> Any:
        """Each lane's dispatch; at once all lanes take as many steps as the first."""
        if self.way == "pack":
            advance = jax.vmap(self.program.advance, in_axes=(0, 0, None, None, 0))
            return advance(state, windows, steps[0], accumulate, hyper)

        def one(lane: Any) -> Any:
            lane_state, lane_windows, lane_steps, lane_hyper = lane
            return self.program.advance(lane_state, lane_windows, lane_steps, accumulate, lane_hyper)

        return jax.lax.map(one, (state, windows, steps, hyper))

    def _sum_losses(self, params: Any, windows: Any, mask: Any) -> Any:
        def one(lane: Any) -> Any:
            return self.program.sum_losses(lane, windows, mask)

        return jax.vmap(one)(params) if self.way == "pack" else jax.lax.map(one, params)


make_pack = lru_cache(maxsize=64)(PackProgram)
"""The programs for these shapes, made once a process."""


class Packed:
    """m runs of one shape, batch and length in one program, at once (`pack`) or in turn."""

    def __init__(
        self, specs: Sequence[RunSpec], slots: int, way: Way, dtype: Any, devices: Sequence[Any] | None = None,
        config: MeshConfig | None = None, measures: bool = False,
    ) -> None:  # fmt: skip
        first, devices = specs[0], list(jax.devices() if devices is None else devices)
        self.specs, self.slots, self.replicas, self.way = tuple(specs), slots, 1, way
        self.devices, self.row_group, config = tuple(devices[: len(specs)]), (0, 1), config or MeshConfig()
        self.microbatch_seqs = choose_microbatch(first, config)
        self.accumulate = first.batch_seqs // self.microbatch_seqs
        lanes = -(-len(specs) // len(self.devices)) * len(self.devices)
        self.fill = lanes - len(specs)
        self.mesh = alone = make_mesh(MeshConfig(), devices[:1])
        lowering = choose_lowering(config, first.model, devices[0].platform, jnp.dtype(dtype).name)
        program = _program(first, slots, alone, dtype, lowering, measures)
        self.program: PackProgram = make_pack(program, lanes, way, self.microbatch_seqs, self.devices)
        self.hyper = self._place(_stack([Hyper.from_spec(spec) for spec in specs]))

    def _place(self, tree: Any) -> Any:
        """Members onto the devices, the last one repeated to fill the lanes up."""
        filled = jax.tree.map(lambda x: jnp.concatenate([x, *[x[-1:]] * self.fill]) if self.fill else x, tree)
        return jax.device_put(filled, self.program.each)

    def compile(self) -> None:
        assert self.program.train

    def abstract_state(self) -> TrainState:
        one = jax.sharding.SingleDeviceSharding(self.devices[0])
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((len(self.specs), *leaf.shape), leaf.dtype, sharding=one),
            self.program.program.abstract_state(),
        )

    def begin(self) -> TrainState:
        seeds = jnp.array([spec.seed for spec in self.specs], jnp.uint32)
        stds = _stack([init_stds(spec.model) for spec in self.specs])
        begun: TrainState = self.program.begin(self._place(seeds), self._place(stds))
        return begun

    def place(self, saved: TrainState) -> TrainState:
        placed: TrainState = self._place(saved)
        return placed

    def to_save(self, state: TrainState) -> TrainState:
        """Without the lanes that only fill up, on one device: the next start may have more devices or fewer."""
        whole = jax.device_put(state, self.devices[0])
        return jax.tree.map(lambda leaf: leaf[: len(self.specs)], whole) if self.fill else whole

    def member(self, state: TrainState, i: int) -> TrainState:
        own: TrainState = jax.tree.map(lambda leaf: leaf[i], jax.device_put(state, self.devices[0]))
        return own

    def stage(self, windows_mnbt: np.ndarray) -> Any:
        return jax.device_put(np.concatenate([windows_mnbt, *[windows_mnbt[-1:]] * self.fill]), self.program.each)

    def step(self, state: TrainState, staged: Any, live: np.ndarray, steps: int) -> Any:
        counts = np.concatenate([np.where(live, steps, 0), np.zeros(self.fill)])
        counts = np.full_like(counts, steps) if self.way == "pack" else counts
        put, each, same = jax.device_put, self.program.each, self.program.same
        return self.program.train(
            state, staged, put(counts.astype(np.int32), each),
            put(np.int32(self.accumulate), same), self.hyper,
        )  # fmt: skip

    def fetch(self, metrics: StepMetrics, steps: int) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(part)[: len(self.specs), :steps] for part in metrics if part is not None)

    def evaluate(self, state: TrainState, windows: np.ndarray, mask: np.ndarray) -> np.ndarray:
        put, same = jax.device_put, self.program.same
        return np.asarray(self.program.sums(state.answer, put(windows, same), put(mask, same)))[: len(self.specs)]


def _program(spec: RunSpec, slots: int, mesh: Mesh, dtype: Any, lowering: Lowering, measures: bool) -> Program:
    model, averages = strip_init(spec.model), spec.average_steps > 0
    lowering = apply_precision(lowering, spec.precision)
    return make_program(model, spec.schedule, slots, mesh, dtype, spec.optimizer, averages, lowering, measures)


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *values: jnp.stack([jnp.float32(value) for value in values]), *trees)


def splits_runs(mesh: MeshConfig) -> bool:
    """Whether this mesh splits one run: then runs are not packed."""
    return max(mesh.fsdp, mesh.tensor, mesh.context) > 1 or jax.process_count() > 1


def make_engine(
    specs: Sequence[RunSpec], slots: int, way: Way, mesh: MeshConfig, dtype: Any, measures: bool = False
) -> Engine:
    """The engine for these runs; `process` takes one. One that `measures` gives the squared norms that the gradient
    noise scale is made of."""
    if way == "process":
        return Single(specs[0], slots, choose_execution(specs[0], mesh, dtype), dtype, measures)
    if splits_runs(mesh):
        raise MisuseError(f"mesh.packs: {way} spreads whole runs over the devices of one process and cannot split one "
                          f"(mesh.fsdp {mesh.fsdp}, mesh.tensor {mesh.tensor}, {jax.process_count()} processes); use "
                          f"--mesh.packs process")  # fmt: skip
    return Packed(specs, slots, way, dtype, config=mesh, measures=measures)
