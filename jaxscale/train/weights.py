"""A finished run's weights, read back from its last checkpoint to be asked: for tasks, texts, and lm-eval.

    from jaxscale.train.weights import load_model
    model = load_model("runs/quickstart", "3f2a91")

The run is laid out over the devices that are here, whatever it was trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.config import MeshConfig, Study
from jaxscale.data.tokens import build_tokens
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.evals.encode import open_tokenizer
from jaxscale.evals.score import LoadedModel, make_scorer
from jaxscale.model.lowering import choose_lowering
from jaxscale.plain import from_plain
from jaxscale.runs import RunSpec, run_dir
from jaxscale.sweep import read_plan
from jaxscale.train.checkpoint import Checkpoints
from jaxscale.train.execution import Execution, choose_execution, compute_dtype
from jaxscale.train.sharding import make_mesh
from jaxscale.train.step import make_program, strip_init

__all__ = ["load_model", "read_weights"]


def load_model(study_dir: str | Path, run_id: str) -> LoadedModel:
    """The final model of a run, by its id or the beginning of it; MisuseError where it has no weights."""
    plan = read_plan(Path(study_dir))
    cell = plan.find_cell(run_id)
    return read_weights(Path(study_dir), cell.spec, from_plain(plan.config, Study).mesh)


def read_weights(study_dir: Path, spec: RunSpec, mesh: MeshConfig) -> LoadedModel:
    """The final model of a run.

    MisuseError where its folder keeps none (a run that has not ended, or whose weights are not kept), VerdictError
    where they cannot be read.
    """
    folder = run_dir(study_dir, spec.run_id) / "checkpoints"
    if not (folder / str(spec.steps)).is_dir():
        raise MisuseError(f"run {spec.run_id}: no weights of its last step {spec.steps} in {folder}; only runs that "
                          f"are done keep them (sweeps and trunks do not)")  # fmt: skip
    dtype = compute_dtype(mesh, spec.precision)
    execution = _find_execution(spec, mesh, dtype)
    model, averages = strip_init(spec.model), spec.average_steps > 0
    program = make_program(model, spec.schedule, 1, execution.mesh, dtype, spec.optimizer, averages, execution.lowering)
    checkpoints = Checkpoints(folder)
    try:
        state = checkpoints.restore(program.abstract_state())
    finally:
        checkpoints.close()
    if state is None:
        raise VerdictError(f"run {spec.run_id}: its last weights cannot be read ({checkpoints.skipped[0]}); put it "
                           f"back with `jaxscale reset {study_dir} {spec.run_id}` and train it anew")  # fmt: skip
    scorer = make_scorer(model, execution.mesh, mesh, dtype, spec.precision == "int8")
    return LoadedModel(scorer, state.answer, open_tokenizer(build_tokens(spec.data).folder))


def _find_execution(spec: RunSpec, config: MeshConfig, dtype: Any) -> Execution:
    """On CPU all devices share the rows, whatever the batch was; on accelerators the layout that training has."""
    platform = jax.devices()[0].platform
    if platform != "cpu":
        return choose_execution(spec, config, dtype)
    lowering = choose_lowering(config, spec.model, platform, jnp.dtype(dtype).name)
    return Execution(make_mesh(config), spec.microbatch_seqs, lowering)
