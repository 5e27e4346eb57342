"""Windows of tokens to log-likelihoods: batched, sharded over all devices, one compiled program a length.

Windows are padded on the right to the next of a few lengths, seq_len / 2^k: attention is causal, so that what stands
behind a token does not change its loss. Each length has one program of a fixed number of rows, split over the batch
axes of the mesh; rows that nobody needs are padding. Equal windows are scored once, so that equal choices tie exactly.
What a window gets depends on nothing but its ids, beyond rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from jaxscale.axes import BATCH
from jaxscale.config import MeshConfig, ModelConfig
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import MisuseError
from jaxscale.evals.encode import Window
from jaxscale.layout import choose_chunks
from jaxscale.model.decoder import Decoder, make_decoder
from jaxscale.model.loss import token_losses
from jaxscale.model.lowering import Lowering, choose_lowering
from jaxscale.model.partition import place

__all__ = ["LoadedModel", "Scorer", "list_lengths", "make_scorer"]

Kind = Literal["nll", "greedy", "next"]

MIN_LENGTH = 16
"""Shorter windows are padded to about this."""
BATCH_TOKENS = {"cpu": 4096}
MANY_TOKENS = 32_768
"""Tokens in one forward pass of all devices: on CPU as many as stay near the caches, on accelerators more."""
LOGITS_BYTES = 1 << 30
"""Most float32 logits of a device at once, where all of them are looked at."""
AHEAD = 32
"""Batches that the devices are given before the first of them is read."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A trained model ready to be asked: its programs, its weights, its tokenizer."""

    scorer: Scorer
    params: Any
    tokenizer: Tokenizer


class Scorer:
    """The programs of one model shape on one mesh; weights are an argument."""

    def __init__(self, model: ModelConfig, mesh: Mesh, config: MeshConfig, dtype: Any, int8: bool = False) -> None:
        """MisuseError where no attention that `config` allows can serve whole windows, or there are no next tokens.

        `int8`: as it was trained.
        """
        if model.objective != "autoregressive":
            raise MisuseError(f"model.objective: a model of {model.objective} fills in hidden tokens and has no "
                              f"likelihood of the next ones to score tasks or texts by; ask another run")  # fmt: skip
        self.model, self.mesh, self.config, self.dtype, self.int8 = model, mesh, config, dtype, int8
        self.platform = mesh.devices.flat[0].platform
        self.replicas = mesh.shape["data"] * mesh.shape["fsdp"]
        self.seq_len = model.seq_len
        self._lower(self.seq_len)
        self.lengths = [n for n in list_lengths(self.seq_len, mesh.shape["context"]) if self._serves(n)]
        self.split = NamedSharding(mesh, PartitionSpec(BATCH))
        self.programs: dict[tuple[Kind, int], Any] = {}

    def _serves(self, length: int) -> bool:
        try:
            return self._lower(length) is not None
        except MisuseError:
            return length == self.seq_len

    def _lower(self, length: int) -> Lowering:
        """How windows of this length are computed."""
        model, mesh = replace(self.model, seq_len=length), self.mesh.shape
        chunks = choose_chunks(self.count_rows(length) // self.replicas, length, model.vocab_size)
        config = replace(self.config, tensor=mesh["tensor"], context=mesh["context"], remat="none", head_chunks=chunks)
        lowering = choose_lowering(config, model, self.platform, jnp.dtype(self.dtype).name)
        return replace(lowering, mesh=self.mesh if self.mesh.size > 1 else None, int8=self.int8)

    def count_rows(self, length: int, kind: Kind = "nll") -> int:
        """Windows of this length in one forward pass of all devices; fewer where whole logits are held."""
        wanted = max(1, BATCH_TOKENS.get(self.platform, MANY_TOKENS) // length)
        if kind == "greedy":
            wanted = max(1, min(wanted, LOGITS_BYTES // (4 * length * self.model.vocab_size) * self.replicas))
        return -(-wanted // self.replicas) * self.replicas

    def score(self, params: Any, windows: Sequence[Window]) -> NDArray[np.float64]:
        """NLL in nats [n] of the scored tokens of each window."""
        return self._ask("nll", params, windows)[:, 0].astype(np.float64)

    def score_greedy(self, params: Any, windows: Sequence[Window]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """NLL [n], and whether every scored token is the likeliest where it stands [n]."""
        told = self._ask("greedy", params, windows)
        return told[:, 0].astype(np.float64), told[:, 1] == 0

    def predict_next(self, params: Any, contexts: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
        """The likeliest next id [n] after the last seq_len ids of each context."""
        cut = [ids[-self.seq_len :] for ids in contexts]
        return self._ask("next", params, [Window(np.append(ids, 0), len(ids)) for ids in cut])[:, 0].astype(np.int64)

    def compile(self, params: Any, windows: Sequence[Window]) -> None:
        """Compile what `score` needs for windows of these lengths, by a forward pass of each that is new."""
        for length in sorted({self._find_length(window) for window in windows}):
            if ("nll", length) not in self.programs:
                jax.block_until_ready(self._send("nll", params, length, []))

    def _find_length(self, window: Window) -> int:
        inputs = len(window.ids) - 1
        return min(length for length in self.lengths if length >= inputs)

    def _ask(self, kind: Kind, params: Any, windows: Sequence[Window]) -> NDArray[np.float32]:
        """What a program says of each window, float32 [n, 2]; the devices are some batches ahead of the reading."""
        unique, inverse = _find_unique(windows)
        told, sent = np.zeros((len(unique), 2), np.float32), deque[tuple[list[int], jax.Array]]()

        def read(most: int) -> None:
            while len(sent) > most:
                places, answer = sent.popleft()
                told[places] = np.asarray(answer)[: len(places)]

        for length, places in self._batches(kind, unique):
            sent.append((places, self._send(kind, params, length, [unique[i] for i in places])))
            read(AHEAD)
        read(0)
        return told[inverse]

    def _batches(self, kind: Kind, windows: Sequence[Window]) -> Iterator[tuple[int, list[int]]]:
        """(length, places of the windows) of every batch."""
        by_length: dict[int, list[int]] = {}
        for i, window in enumerate(windows):
            by_length.setdefault(self._find_length(window), []).append(i)
        for length, places in sorted(by_length.items()):
            rows = self.count_rows(length, kind)
            yield from ((length, places[i : i + rows]) for i in range(0, len(places), rows))

    def _send(self, kind: Kind, params: Any, length: int, windows: Sequence[Window]) -> jax.Array:
        ids_bt = np.zeros((self.count_rows(length, kind), length + 1), np.int32)
        span_b2 = np.ones((len(ids_bt), 2), np.int32)
        for row, window in enumerate(windows):
            ids_bt[row, : len(window.ids)] = window.ids
            span_b2[row] = window.first, len(window.ids)
        answer: jax.Array = self._program(kind, length)(params, self._put(ids_bt), self._put(span_b2))
        return answer

    def _put(self, rows: np.ndarray) -> jax.Array:
        """Rows over the devices; every process has them all and gives its own."""
        return jax.make_array_from_callback(rows.shape, self.split, lambda place: rows[place])

    def _program(self, kind: Kind, length: int) -> Any:
        """(params, ids [b, t + 1], span [b, 2]) -> float32 [b, 2], the same on every device."""
        if (kind, length) not in self.programs:
            lowering = self._lower(length)
            abstract = nnx.eval_shape(partial(make_decoder, self.model, 0, self.dtype, lowering=lowering))
            graphdef, _ = nnx.split(abstract, nnx.Param)
            answer = partial(ANSWERS[kind], graphdef, lowering.mesh)
            whole = NamedSharding(self.mesh, PartitionSpec())
            self.programs[kind, length] = jax.jit(answer, out_shardings=whole)
        return self.programs[kind, length]


make_scorer = lru_cache(maxsize=64)(Scorer)
"""The scorer of a shape, made once a process; give `model` without its init scales."""


def list_lengths(seq_len: int, context: int = 1) -> list[int]:
    """Lengths that windows are padded to: halves of seq_len while they are whole, and `context` devices share them.

    >>> list_lengths(96), list_lengths(8)
    ([24, 48, 96], [8])
    """
    lengths = [seq_len]
    while lengths[0] % (2 * context) == 0 and lengths[0] // 2 >= MIN_LENGTH:
        lengths.insert(0, lengths[0] // 2)
    return lengths


def _find_unique(windows: Sequence[Window]) -> tuple[list[Window], NDArray[np.int64]]:
    """Every window once, and the place of each among them."""
    places: dict[tuple[bytes, int], int] = {}
    keys = [(window.ids.tobytes(), window.first) for window in windows]
    inverse = [places.setdefault(key, len(places)) for key in keys]
    first = dict(zip(keys, windows, strict=True))
    return [first[key] for key in places], np.array(inverse, np.int64)


def _mask(ids_bt: jax.Array, span_b2: jax.Array) -> jax.Array:
    """Which targets ids[:, 1:] are scored, bool [b, t]."""
    place_t = jnp.arange(1, ids_bt.shape[1])
    return (place_t >= span_b2[:, :1]) & (place_t < span_b2[:, 1:])


def _inputs(ids_bt: jax.Array, mesh: Mesh | None) -> tuple[jax.Array, jax.Array]:
    axes = ("batch", "positions")
    return place(ids_bt[:, :-1], axes, mesh), place(ids_bt[:, 1:], axes, mesh)


def _answer_nll(graphdef: Any, mesh: Mesh | None, params: Any, ids_bt: jax.Array, span_b2: jax.Array) -> jax.Array:
    """(NLL, 0)"""
    decoder: Decoder = nnx.merge(graphdef, params)
    losses_bt, _ = decoder.losses(*_inputs(ids_bt, mesh))
    nll_b = jnp.sum(jnp.where(_mask(ids_bt, span_b2), losses_bt, 0), axis=1)
    return jnp.stack([nll_b, jnp.zeros_like(nll_b)], axis=1)


def _answer_greedy(graphdef: Any, mesh: Mesh | None, params: Any, ids_bt: jax.Array, span_b2: jax.Array) -> jax.Array:
    """(NLL, how many scored tokens are not the likeliest)"""
    decoder: Decoder = nnx.merge(graphdef, params)
    inputs, targets = _inputs(ids_bt, mesh)
    logits_btv, mask = decoder(inputs), _mask(ids_bt, span_b2)
    losses_bt, _ = token_losses(logits_btv, targets)
    missed = mask & (jnp.argmax(logits_btv, axis=-1) != targets)
    return jnp.stack([jnp.sum(jnp.where(mask, losses_bt, 0), axis=1), jnp.sum(missed, axis=1, dtype=jnp.float32)], 1)


def _answer_next(graphdef: Any, mesh: Mesh | None, params: Any, ids_bt: jax.Array, span_b2: jax.Array) -> jax.Array:
    """(likeliest id after the first `span[:, 0]` ids, 0)"""
    decoder: Decoder = nnx.merge(graphdef, params)
    logits_bv = decoder.logits_at(_inputs(ids_bt, mesh)[0], span_b2[:, 0] - 1)
    next_b = jnp.argmax(logits_bv, axis=-1).astype(jnp.float32)
    return jnp.stack([next_b, jnp.zeros_like(next_b)], axis=1)


ANSWERS: dict[Kind, Callable[..., jax.Array]] = {
    "nll": _answer_nll,
    "greedy": _answer_greedy,
    "next": _answer_next,
}
