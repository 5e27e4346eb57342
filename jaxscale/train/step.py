"""The compiled programs of a model: many optimizer steps in one dispatch, and exact validation.

A `Program` holds what depends on shapes only. Batch (number of microbatches), rates, decay, horizon, seed and init
scale are runtime values, so all cells of one model shape run the same programs, on 1 device or many.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from jaxscale.config import MeshConfig, ModelConfig
from jaxscale.flops import VALIDATION_DRAWS
from jaxscale.model.decoder import Decoder, Stds, init_stds, make_decoder
from jaxscale.model.diffusion import HALVES, Draw, draw_training, draw_validation, find_rows, hide_tokens
from jaxscale.model.experts import Load
from jaxscale.model.lowering import Lowering, choose_lowering
from jaxscale.model.mup import forward_multipliers
from jaxscale.model.partition import place
from jaxscale.train.optimizer import Hyper, learning_rate, make_optimizer
from jaxscale.train.sharding import batch_sharding, local_rows, param_sharding, replicated, row_group

__all__ = ["Program", "StepMetrics", "TrainState", "make_program", "quick_compile", "strip_init"]


class TrainState(NamedTuple):
    """Everything that a resumed run needs: parameters, optimizer moments, steps done, and the mean of the weights.

    `average` is None where a run's result is its last weights, `mask_seed` where nothing is drawn while it trains.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    average: Any = None
    mask_seed: Any = None

    @property
    def answer(self) -> Any:
        """The weights that are validated."""
        return self.params if self.average is None else self.average


class StepMetrics(NamedTuple):
    """One value per slot of a dispatch, float32 [slots]; slots beyond the steps done hold 0."""

    loss: jax.Array
    grad_norm: jax.Array
    small_squared: Any = None
    """Mean over the step's microbatches of their gradients' squared norms; None where it is not measured."""


class Program:
    """Compiled training and validation for one model shape on one mesh.

    `slots` is the number of microbatches a dispatch holds; a dispatch makes whole optimizer steps.
    """

    def __init__(
        self, model: ModelConfig, schedule: str, slots: int, mesh: Mesh, dtype: Any, optimizer: str = "adamw",
        averages: bool = False, lowering: Lowering | None = None, measures: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.schedule, self.slots, self.mesh, self.dtype = model, schedule, slots, mesh, dtype
        self.optimizer, self.averages, self.measures = optimizer, averages, measures
        self.diffuses = model.objective == "masked_diffusion"
        self.row_groups = row_group(mesh)[1] if jax.process_count() > 1 else 1
        platform = mesh.devices.flat[0].platform
        lowering = (
            choose_lowering(MeshConfig(), model, platform, jnp.dtype(dtype).name) if lowering is None else lowering
        )
        self.lowering = replace(lowering, mesh=mesh if mesh.size > 1 else None)
        abstract = nnx.eval_shape(partial(make_decoder, model, 0, dtype, lowering=self.lowering))
        self.graphdef, self.abstract_params = nnx.split(abstract, nnx.Param)
        self.state_sharding = self._shard_state()
        batch = batch_sharding(mesh)
        whole = replicated(mesh)
        self.batch_sharding = batch
        self._jit_init = jax.jit(
            self.begin, out_shardings=self.state_sharding, compiler_options=quick_compile(platform)
        )
        self._jit_train = jax.jit(
            self.advance,
            in_shardings=(self.state_sharding, batch, whole, whole, whole),
            out_shardings=(self.state_sharding, whole),
            donate_argnums=0,
        )
        self.evaluate = jax.jit(
            self.sum_losses, in_shardings=(self.state_sharding.params, batch, batch), out_shardings=whole
        )

    def init(self, seed: jax.Array, stds: Stds | None = None) -> TrainState:
        """The state before the first step; `stds` (default the model's) scale the init."""
        return self._jit_init(seed, init_stds(self.model) if stds is None else dict(stds))

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, without its values."""
        shapes = jax.eval_shape(self.begin, jnp.uint32(0), init_stds(self.model))
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.state_sharding,
        )

    @lru_cache(maxsize=4)  # noqa: B019 - programs live as long as their process
    def train(self, microbatch_seqs: int) -> Any:
        """The compiled train program for microbatches of this many sequences.

        Called with (state, windows [slots, b, t + 1], steps, accumulate, hyper), it makes `steps` optimizer
        steps of `accumulate` microbatches each and gives the new state and `StepMetrics`; the old state is used up.
        """
        shape = (self.slots, microbatch_seqs, self.model.seq_len + 1)
        count, number = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32)
        windows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=self.batch_sharding)
        hyper: Any = Hyper(*[number] * len(Hyper._fields))  # type: ignore[arg-type]
        return self._jit_train.lower(self.abstract_state(), windows, count, count, hyper).compile()

    def _shard_state(self) -> TrainState:
        """Sharding of every leaf: parameters by their axes, moments as their parameters."""
        state = jax.eval_shape(self.begin, jnp.uint32(0), init_stds(self.model))
        flat = nnx.to_flat_state(self.abstract_params)
        names = {tuple(str(key) for key in path): tuple(param.axes) for path, param in flat}

        def shard(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
            keys = [getattr(key, "key", getattr(key, "name", None)) for key in path]
            strings = tuple(key for key in keys if isinstance(key, str))
            for name, axes in names.items():
                if len(axes) == leaf.ndim and _contains(strings, name):
                    return param_sharding(self.mesh, axes, leaf.shape)
            return replicated(self.mesh)

        return jax.tree.map_with_path(shard, state)

    def begin(self, seed: jax.Array, stds: Stds) -> TrainState:
        """The state before the first step, as a pure function."""
        _, params = nnx.split(make_decoder(self.model, seed, self.dtype, stds, self.lowering), nnx.Param)
        zero = Hyper(*(jnp.float32(0) for _ in Hyper._fields))
        opt_state = make_optimizer(self.model, params, zero, self.optimizer).init(params)
        average = jax.tree.map(jnp.zeros_like, params) if self.averages else None
        return TrainState(params, opt_state, jnp.int32(0), average, seed if self.diffuses else None)

    def apply(
        self, params: Any, windows_bt: jax.Array, hidden_bt: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Cross-entropy and log Z [b, t] of windows [b, t + 1]; a model that fills masks is told which are hidden."""
        return self.apply_with_load(params, windows_bt, hidden_bt)[:2]

    def apply_with_load(
        self, params: Any, windows_bt: jax.Array, hidden_bt: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, Load | None]:
        """`apply`, and how the tokens fell on experts, where there are any."""
        decoder: Decoder = nnx.merge(self.graphdef, params)
        return decoder.losses_and_load(*self.read(windows_bt, hidden_bt))

    def read(self, windows_bt: jax.Array, hidden_bt: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Inputs and targets [b, t] of windows [b, t + 1]; the targets are ids[:, 1:] under every objective."""
        if self.diffuses != (hidden_bt is not None):
            raise ValueError(f"objective {self.model.objective}: masks are {'needed' if self.diffuses else 'not read'}")
        shown = windows_bt[:, :-1]
        if hidden_bt is not None:
            shown = hide_tokens(windows_bt[:, 1:], hidden_bt, self.model.vocab_size)
        inputs, targets = (place(part, ("batch", "positions"), self.lowering.mesh) for part in
                           (shown, windows_bt[:, 1:]))  # fmt: skip
        return inputs, targets

    def _as_params(self, tree: Any) -> Any:
        """A tree like the parameters, lying as they do."""
        if self.lowering.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, self.state_sharding.params)

    def loss(
        self, params: Any, windows_bt: jax.Array, hyper: Hyper, draw: Draw | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """(what training descends, its nats a token alone) of a microbatch; `draw` are its masks under diffusion."""
        losses_bt, log_z_bt, load = self.apply_with_load(params, windows_bt, None if draw is None else draw.hidden)
        if draw is not None:
            loss, square = (jnp.mean(jnp.sum(draw.share * x, axis=1)) for x in (losses_bt, jnp.square(log_z_bt)))
            return self._with_balance(loss + hyper.z_loss * square, load, hyper), loss
        loss = jnp.mean(losses_bt)
        return self._with_balance(loss + hyper.z_loss * jnp.mean(jnp.square(log_z_bt)), load, hyper), loss

    def _with_balance(self, loss: jax.Array, load: Load | None, hyper: Hyper) -> jax.Array:
        """With the balancing losses of all layers, as the residual branches scaled with depth: then they keep their
        share of a router's gradient."""
        if load is None:
            return loss
        return loss + hyper.router_balance * forward_multipliers(self.model).residual * jnp.sum(load.balance)

    def draw(self, seed: Any, step: Any, microbatch: Any, accumulate: Any, rows: int) -> tuple[Draw, ...]:
        """The masks of a step's microbatch of `rows` sequences; none for a model that predicts the next token."""
        if not self.diffuses:
            return ()
        batch = accumulate * rows
        rows_b = find_rows(microbatch, rows, batch, self.row_groups)
        return (draw_training(seed, step, rows_b, batch, self.model.seq_len),)

    def advance(
        self, state: TrainState, windows_nbt: jax.Array, steps: jax.Array, accumulate: jax.Array, hyper: Hyper
    ) -> tuple[TrainState, StepMetrics]:
        """Make `steps` optimizer steps of `accumulate` microbatches each from windows [slots, b, t + 1]; pure.

        A program that `measures` also sums the squared norms of the microbatches' gradients (laws.batch).
        """
        optimizer = make_optimizer(self.model, state.params, hyper, self.optimizer)
        gradient = jax.value_and_grad(self.loss, has_aux=True)

        def add_microbatch(i: jax.Array, carry: tuple[Any, jax.Array, Any, Any]) -> tuple[Any, jax.Array, Any, Any]:
            total, loss_sum, squares, params_start = carry
            params, start, *step = params_start
            draw = self.draw(state.mask_seed, step[0], i, accumulate, windows_nbt.shape[1]) if step else ()
            (_, loss), grads = gradient(params, windows_nbt[start + i], hyper, *draw)
            if self.measures:
                squares = squares + optax.tree.norm(grads, squared=True)
            return jax.tree.map(jnp.add, total, grads), loss_sum + loss, squares, params_start

        def one_step(i: jax.Array, carry: tuple[TrainState, StepMetrics]) -> tuple[TrainState, StepMetrics]:
            (params, opt_state, step, average, mask_seed), metrics = carry
            zeros = self._as_params(jax.tree.map(jnp.zeros_like, params))
            sums = (zeros, jnp.float32(0), jnp.float32(0) if self.measures else None)
            start = (params, i * accumulate, *([step] if self.diffuses else []))
            total, loss, squares, _ = jax.lax.fori_loop(0, accumulate, add_microbatch, (*sums, start))
            grads = jax.tree.map(lambda g: g / accumulate, total)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            rate = learning_rate(step, hyper, self.schedule)
            params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
            average = _take_in(average, params, step, hyper) if self.averages else None
            small = metrics.small_squared.at[i].set(squares / accumulate) if self.measures else None
            filled = StepMetrics(
                metrics.loss.at[i].set(loss / accumulate), metrics.grad_norm.at[i].set(optax.tree.norm(grads)), small
            )
            return TrainState(params, opt_state, step + 1, average, mask_seed), filled

        empty = StepMetrics(*(jnp.zeros(self.slots) for _ in range(3 if self.measures else 2)))
        return jax.lax.fori_loop(0, steps, one_step, (state, empty))

    def sum_losses(self, params: Any, windows_nbt: jax.Array, mask_nbt: jax.Array) -> jax.Array:
        """Summed loss of every window, float32 [n, b], over targets where the mask is 1; pure.

        With several masks a window, mask [n, b, m, t], a sum for each, [n, b, m]. Under masked diffusion two
        independent estimates of each, along a last axis of 2.
        """
        if self.diffuses:
            return self._sum_bounds(params, windows_nbt, mask_nbt)

        def one(batch: tuple[jax.Array, jax.Array]) -> jax.Array:
            windows_bt, mask_bt = batch
            losses_bt, _ = self.apply(params, windows_bt)
            if mask_bt.ndim == 3:
                losses_bt = losses_bt[:, None]
            return jnp.sum(losses_bt * mask_bt, axis=-1)

        return jax.lax.map(one, (windows_nbt, mask_nbt))

    def _sum_bounds(self, params: Any, windows_nbt: jax.Array, mask_nbt: jax.Array) -> jax.Array:
        places_nb = jnp.arange(mask_nbt.shape[0] * mask_nbt.shape[1]).reshape(mask_nbt.shape[:2])

        def one(batch: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            places_b, windows_bt, mask = batch
            mask_bmt = mask if mask.ndim == 3 else mask[:, None]  # the first one is of all targets
            count_b1 = jnp.sum(mask_bmt[:, 0], axis=-1, keepdims=True)

            def see(number: jax.Array) -> jax.Array:
                draw = draw_validation(places_b, number, mask_bmt[:, 0] > 0)
                losses_bt, _ = self.apply(params, windows_bt, draw.hidden)
                return jnp.sum((losses_bt * draw.share)[:, None] * mask_bmt, axis=-1) * count_b1

            sums_kbm = jax.lax.map(see, jnp.arange(VALIDATION_DRAWS))
            sums_bmh = jnp.moveaxis(jnp.mean(sums_kbm.reshape(HALVES, -1, *sums_kbm.shape[1:]), axis=1), 0, -1)
            return sums_bmh if mask.ndim == 3 else sums_bmh[:, 0]

        return jax.lax.map(one, (places_nb, windows_nbt, mask_nbt))

    def put_batch(self, windows: np.ndarray, rows: int | None = None) -> jax.Array:
        """This process's rows [n, local_rows, ...] as one global array split over the batch axes."""
        shape = None if rows is None else (windows.shape[0], rows, *windows.shape[2:])
        return jax.make_array_from_process_local_data(self.batch_sharding, windows, shape)

    def local_rows(self, rows: int) -> tuple[int, int]:
        """(first, end) of the rows of a batch that this process feeds to `put_batch`."""
        return local_rows(self.mesh, rows)


def quick_compile(platform: str) -> dict[str, Any] | None:
    """Options for a program that runs once: on CPU half of the compile time of LLVM's best, and the same bits."""
    return {"xla_backend_optimization_level": 1} if platform == "cpu" else None


def _take_in(average: Any, params: Any, step: jax.Array, hyper: Hyper) -> Any:
    """The mean over the last `average_steps` weights, after update number `step` (0-based) gave `params`."""
    count = step + 1.0 - (hyper.steps - hyper.average_steps)
    weight = jnp.where(count >= 1, 1 / jnp.maximum(count, 1), 0)
    return jax.tree.map(lambda mean, p: mean + weight * (p - mean), average, params)


def _contains(keys: tuple[str, ...], name: tuple[str, ...]) -> bool:
    return any(keys[i : i + len(name)] == name for i in range(len(keys) - len(name) + 1))


@lru_cache(maxsize=64)
def make_program(
    model: ModelConfig, schedule: str, slots: int, mesh: Mesh, dtype: Any, optimizer: str = "adamw",
    averages: bool = False, lowering: Lowering | None = None, measures: bool = False,
) -> Program:  # fmt: skip
    """The program for these shapes and this optimizer, made once a process.

    Give `model` without its init scales (`strip_init`) where models of several are to share it.
    """
    return Program(model, schedule, slots, mesh, dtype, optimizer, averages, lowering, measures)


def strip_init(model: ModelConfig) -> ModelConfig:
    """The model without its init scales, which `Program.init` takes at run time."""
    return replace(model, embed_std=1.0, hidden_std=None, head_std=1.0, init_scale=1.0)
