"""The peers, each the program of one child process, and the protocol that every contestant speaks.

Run by its path, so that the interpreter need not know jaxscale: `python peers.py NAME ORDER`, NAME one of MAKERS,
ORDER a JSON object with D, L, H, B, T, V, `checkout`, `dtype` (float32, bfloat16) and `threads`; for nanodo_grid
`cells`, each with these letters, `steps`, `warmup`, `seed`, and the token files `train` and `val`. The child builds and
warms up, then answers on stdout, a JSON line each:

    {"ready": {"device": .., "compile_s": .., ...}}         once, or {"error": SENTENCE} and exit code 2
    {"turn": "step", "steps": n}   ->   {"steps": n or a little more, "seconds": .., "loss": ..}     until stdin closes

A turn ends when its last result is there. What a child prints besides goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from typing import Any

Turns = dict[str, Callable[[int], dict[str, Any]]]
"""What a contestant can be asked: a turn's name -> (steps -> answer)."""

BATCHES = 8
"""Batches made beforehand and used in turn, so that no contestant waits for data."""


EVAL_SEQS = 32
"""Sequences in one forward pass of a peer's validation, as in ours."""


class Unable(Exception):
    """Why this contestant cannot take part, as a sentence for the user."""


def serve(make: Callable[[dict[str, Any]], tuple[dict[str, Any], Turns]], order: dict[str, Any]) -> int:
    """Build a contestant and answer until stdin closes; an exit code."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # nobody's prints may come between the answers

        def tell(answer: dict[str, Any]) -> None:
            out.write(json.dumps(answer) + "\n")
            out.flush()

        try:
            about, turns = make(order)
        except Unable as error:
            tell({"error": str(error)})
            return 2
        tell({"ready": about})
        for line in sys.stdin:
            asked = json.loads(line)
            tell(turns[asked["turn"]](int(asked["steps"])))
    return 0


def timed(steps: int, run: Callable[[int], float]) -> dict[str, Any]:
    """The answer to a turn: `run` makes the steps, waits for them, and gives the last loss."""
    start = time.perf_counter()
    loss = run(steps)
    return {"steps": steps, "seconds": time.perf_counter() - start, "loss": loss if math.isfinite(loss) else None}


def make_nanodo(order: dict[str, Any]) -> tuple[dict[str, Any], Turns]:
    """NanoDO's TransformerDo and loss from its checkout, optax.adamw, one jitted step with donated state."""
    import jax
    import numpy as np
    import optax

    begin, advance, _ = build_nanodo(order, optax.adamw(1e-3))
    shape = (BATCHES, order["B"], order["T"])
    drawn = np.random.default_rng(0).integers(1, order["V"], shape, dtype=np.int32)  # 0 is its padding
    batches = [jax.device_put(batch) for batch in drawn]
    start = time.perf_counter()
    state = begin(jax.random.key(0))
    train = advance.lower(state, batches[0]).compile()
    compile_s = time.perf_counter() - start
    held = [state]

    def run(steps: int) -> float:
        loss: Any = None
        for i in range(steps):
            held[0], loss = train(held[0], batches[i % BATCHES])
        jax.block_until_ready(held[0])
        return float(loss)

    run(2)
    about = {"device": jax.devices()[0].device_kind, "compile_s": compile_s, "version": f"jax {jax.__version__}"}
    return about, {"step": lambda steps: timed(steps, run)}


def build_nanodo(order: dict[str, Any], optimizer: Any) -> tuple[Any, Any, Any]:
    """Jitted: key -> state, (state, tokens [B, T]) -> (state, loss), and (state, tokens [B, T]) -> loss alone."""
    import jax
    import jax.numpy as jnp
    import optax

    losses, models = _import_nanodo(order["checkout"])
    D, H, T, L, V = (order[letter] for letter in "DHTLV")
    config = models.DoConfig(D=D, H=H, L=T, N=L, V=V, F=4 * D, dtype=jnp.dtype(order["dtype"]), fsdp_enabled=False)
    module = models.TransformerDo(config)

    @jax.jit
    def begin(key: Any) -> Any:
        params = module.init(key, jnp.zeros((1, T), jnp.int32))["params"]
        return params, optimizer.init(params)

    @partial(jax.jit, donate_argnums=0)
    def advance(state: Any, tokens: Any) -> Any:
        params, moments = state
        objective = losses.get_default_loss_fn(tokens, module.apply, {})
        (loss, _), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    @jax.jit
    def evaluate(state: Any, tokens: Any) -> Any:
        return losses.get_default_loss_fn(tokens, module.apply, {})(state[0])[0]

    return begin, advance, evaluate


def _import_nanodo(checkout: str) -> tuple[Any, Any]:
    """Its modules loss and model; the libraries of its text pipeline, which nothing here calls, may be missing."""
    for name in ("tensorflow_datasets", "sentencepiece"):
        with contextlib.suppress(ImportError):
            __import__(name)
        sys.modules.setdefault(name, _Absent(name))
    if checkout not in sys.path:
        sys.path.insert(0, checkout)
    from nanodo import loss, model

    return loss, model


def make_nanodo_grid(order: dict[str, Any]) -> tuple[dict[str, Any], Turns]:
    """A plain loop over NanoDO: asked for cell number i, it builds, compiles, trains and validates it."""
    import jax
    import numpy as np
    import optax

    tokens, val = (np.load(order[name], mmap_mode="r") for name in ("train", "val"))

    def train(number: int) -> dict[str, Any]:
        cell = order["cells"][number]
        T, steps, places = cell["T"], cell["steps"], np.arange(cell["T"])
        rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, cell["warmup"], max(steps, cell["warmup"] + 1))
        rng, start = np.random.default_rng(cell["seed"]), time.perf_counter()
        begin, advance, evaluate = build_nanodo({**order, **cell}, optax.adamw(rate))
        state, loss = begin(jax.random.key(cell["seed"])), None
        jax.block_until_ready(state)
        train_step = advance.lower(state, np.zeros((cell["B"], T), np.int32)).compile()
        held_out = val[: len(val) // T // EVAL_SEQS * T * EVAL_SEQS].reshape(-1, EVAL_SEQS, T).astype(np.int32)
        judge = evaluate.lower(state, held_out[0]).compile()
        compile_s = time.perf_counter() - start
        for step in range(steps):
            windows = tokens[rng.integers(0, len(tokens) - T, cell["B"])[:, None] + places]
            state, loss = train_step(state, windows.astype(np.int32))
            if step % 100 == 99:
                float(loss)  # as its log does, which keeps the queue short
        found = float(np.mean([float(judge(state, batch)) for batch in held_out]))
        return {"steps": steps, "seconds": time.perf_counter() - start, "loss": found, "compile_s": compile_s}

    return {"device": jax.devices()[0].device_kind}, {"cell": train}


class _Absent(types.ModuleType):
    """Stands for a library that is imported for its names only."""

    def __getattr__(self, name: str) -> Any:
        return object


def make_nanogpt(order: dict[str, Any]) -> tuple[dict[str, Any], Turns]:
    """nanoGPT's GPT and AdamW from its checkout: forward, backward, step, as its bench.py does; eager on CPU."""
    try:
        import torch
    except ImportError:
        raise Unable(f"--nanogpt: {sys.executable} has no torch; name one that has with --torch-python PATH, or "
                     f"leave --nanogpt out") from None  # fmt: skip
    sys.path.insert(0, order["checkout"])
    from model import GPT, GPTConfig

    device = "cuda" if torch.cuda.is_available() and order["dtype"] == "bfloat16" else "cpu"
    torch.manual_seed(0)
    if device == "cpu":
        torch.set_num_threads(order["threads"])
    else:
        torch.set_float32_matmul_precision("high")
    model = GPT(GPTConfig(block_size=order["T"], vocab_size=order["V"], n_layer=order["L"], n_head=order["H"],
                          n_embd=order["D"], dropout=0.0, bias=False)).to(device)  # fmt: skip
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device)
    forward: Any = torch.compile(model) if device == "cuda" else model
    low = partial(torch.autocast, device_type=device, dtype=torch.bfloat16)
    precision = low if order["dtype"] == "bfloat16" else contextlib.nullcontext
    windows = torch.randint(order["V"], (BATCHES, order["B"], order["T"] + 1)).to(device)

    def run(steps: int) -> float:
        loss: Any = None
        for i in range(steps):
            window = windows[i % BATCHES]
            with precision():
                _, loss = forward(window[:, :-1].contiguous(), window[:, 1:].contiguous())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return float(loss)

    start = time.perf_counter()
    run(3)
    about = {"device": device, "compile_s": time.perf_counter() - start if device == "cuda" else 0.0,
             "version": f"torch {torch.__version__}", "threads": torch.get_num_threads()}  # fmt: skip
    return about, {"step": lambda steps: timed(steps, run)}


MAKERS = {"nanodo": make_nanodo, "nanodo_grid": make_nanodo_grid, "nanogpt": make_nanogpt}

if __name__ == "__main__":
    sys.path.pop(0)  # this folder's own modules are not to hide anybody else's
    sys.exit(serve(MAKERS[sys.argv[1]], json.loads(sys.argv[2])))
