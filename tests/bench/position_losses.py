"""What a trained model makes of its context: validation loss by position in the window, and of a repeated string.

Command: `python tests/bench/position_losses.py DIR ..`; of each budget of these study folders the run of lowest loss.
Columns: mean loss, nats a token, at the first 4 positions, 5 to 16, 17 to 32 and from 33 on, over 1,024 windows; then
of 32 random lower-case letters, and of the same 32 repeated (lower where a model copies). Results:
docs/studies/proof.md.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.config import MeshConfig
from jaxscale.data.batches import validation_windows
from jaxscale.data.tokens import build_tokens
from jaxscale.runs import RunSpec, run_dir
from jaxscale.sweep import read_plan, read_status
from jaxscale.train.checkpoint import Checkpoints
from jaxscale.train.sharding import make_mesh
from jaxscale.train.step import make_program, strip_init

WINDOWS, ROWS = 1024, 64
PARTS = (slice(0, 4), slice(4, 16), slice(16, 32), slice(32, None))


def best_runs(folder: Path) -> list[RunSpec]:
    """Of each budget the run with the lowest validation loss."""
    best: dict[float, tuple[float, RunSpec]] = {}
    for status in read_status(folder, read_plan(folder).cells):
        spec = status.cell.spec
        if status.state == "done" and status.loss is not None:
            best[spec.budget_flops] = min(best.get(spec.budget_flops, (np.inf, spec)), (status.loss, spec),
                                          key=lambda pair: pair[0])  # fmt: skip
    return [spec for _, (_, spec) in sorted(best.items())]


def losses(spec: RunSpec, folder: Path, windows: np.ndarray, strings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss at every position of the windows, and of the strings."""
    program = make_program(strip_init(spec.model), spec.schedule, 1, make_mesh(MeshConfig()), jnp.float32,
                           spec.optimizer, spec.average_steps > 0)  # fmt: skip
    state = Checkpoints(run_dir(folder, spec.run_id) / "checkpoints").restore(program.abstract_state())
    if state is None:
        sys.exit(f"{spec.run_id}: its weights are not kept; train it with them")
    weights, apply = state.answer, jax.jit(lambda params, rows: program.apply(params, rows)[0])
    parts = [np.asarray(apply(weights, jnp.asarray(windows[i : i + ROWS]))) for i in range(0, len(windows), ROWS)]
    return np.concatenate(parts).mean(0), np.asarray(apply(weights, jnp.asarray(strings))).mean(0)


def main(folders: list[Path]) -> None:
    letters = np.random.default_rng(0).integers(97, 123, (256, 33)).astype(np.int32)
    strings = np.concatenate([letters[:, :32], letters], axis=1)
    print("| C | d | positions 1-4 | 5-16 | 17-32 | 33-64 | random letters | repeated |\n" + "| --- " * 8 + "|")
    for folder in folders:
        for spec in best_runs(folder):
            windows = validation_windows(build_tokens(spec.data).val, spec.model.seq_len)[0][:WINDOWS]
            by_position, string = losses(spec, folder, windows, strings)
            cells = [f"{by_position[part].mean():.3f}" for part in PARTS]
            cells += [f"{string[4:31].mean():.2f}", f"{string[36:].mean():.2f}"]
            print(f"| {spec.budget_flops:.3g} | {spec.model.d_model} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
