"""Train runs to their end and write down how each ended: one by itself, or several of one shape in one program.

`opening` holds what comes before the first step, `trainer` the steps, `engine` the ways, `dispatch` the dispatches.

Several processes (`hosts`) walk through the same dispatches. Only the first touches the run's folder; what it finds
there, when to save and when to stop are the same for all, so they save the same step and end together.

    runs/<study>/packs/<pack_id>/pack.json  checkpoints/     all members' states together, gone when all have ended
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from jaxscale.config import LaunchConfig, MeshConfig
from jaxscale.errors import JaxscaleError, VerdictError
from jaxscale.evals.record import Evals
from jaxscale.leases import LEASE_S, Claims
from jaxscale.runs import RunResult, RunSpec
from jaxscale.sweep import Way
from jaxscale.train import hosts
from jaxscale.train.member import Progress
from jaxscale.train.opening import PackWorn, check_alike, open_runs, read_results
from jaxscale.train.packs import Pack, PackFolder
from jaxscale.train.record import RunFolder, is_disk_full
from jaxscale.train.trainer import Preempted, Trainer

__all__ = ["PackWorn", "Preempted", "Progress", "train_pack", "train_run"]


def train_run(
    spec: RunSpec,
    out: str | Path,
    *,
    mesh: MeshConfig | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    data_sha256: str = "",
    keep_weights: bool = True,
    claims: Claims | None = None,
    patience_s: float | None = None,
    launch: LaunchConfig | None = None,
    evals: Evals | None = None,
    measure_noise: bool = False,
) -> RunResult:
    """Train `spec` in the study folder `out` and return its result; a run that has ended is only read.

    Resumes from the newest checkpoint. A non-finite loss ends the run as "diverged", naming step and value.
    The run is held by a lease, one of `claims`; HeldElsewhere where another process keeps it for `patience_s`,
    LeaseLost where one took it. With `launch`, it ends as "failed" after so many holders in a row that died without a
    newer checkpoint, and its curve goes to the trackers. `evals` are tasks for its model (`train.evaluation`).
    With `measure_noise` the lines of its curve tell what the gradient noise scale is made of (laws.batch). Raises
    Preempted after saving when `should_stop` turns true, MisuseError for what the user can mend (a text that is not
    `data_sha256`, the plan's, among it), VerdictError when the disk is full: nothing saved is lost.
    """
    (result,) = train_pack((spec,), out, "process", mesh=mesh, on_progress=on_progress, should_stop=should_stop,
                           data_sha256=data_sha256, keep_weights=keep_weights, claims=claims, patience_s=patience_s,
                           launch=launch, evals=evals, measure_noise=measure_noise)  # fmt: skip
    return result


def train_pack(
    specs: Sequence[RunSpec],
    out: str | Path,
    way: Way = "pack",
    *,
    mesh: MeshConfig | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    data_sha256: str = "",
    keep_weights: bool = True,
    rivals: Mapping[str, Mapping[str, bool]] | None = None,
    claims: Claims | None = None,
    patience_s: float | None = None,
    launch: LaunchConfig | None = None,
    evals: Evals | None = None,
    measure_noise: bool = False,
) -> tuple[RunResult, ...]:
    """Train runs of one `pack_key` together in the study folder `out`; results in the order of `specs`.

    As `train_run` for each member: a member that diverges ends alone, the others go on untouched. The pack
    resumes as a whole from its own checkpoint; runs that have ended before are only read. Final weights stay in
    each run's folder unless `keep_weights` is false. A run that `rivals` names is stopped early, as censored, where
    jaxscale.hopeless finds it hopeless beside its rivals: their ids, and whether they may stop it. A pack whose
    holders died `launch.max_attempts` times in a row raises PackWorn: its runs are then to be trained apart.
    """
    check_alike(specs, way)
    folders = [RunFolder(Path(out), spec) for spec in specs]
    pack = PackFolder(Path(out), Pack(tuple(spec.run_id for spec in specs), way)) if way != "process" else None
    try:
        claims = claims or Claims(out, launch.lease_s if launch else LEASE_S)
        with ExitStack() as held:
            ended = read_results(
                hosts.from_first(lambda: open_runs(folders, pack, held, claims, patience_s, launch), "open")
            )
            if all(ended):
                return tuple(result for result in ended if result is not None)
            trainer = hosts.together(
                lambda: Trainer(folders, ended, pack, mesh or MeshConfig(), on_progress if hosts.is_first() else None,
                                 should_stop, data_sha256, rivals or {}, launch or LaunchConfig(), evals,
                                 measure_noise), "set up",
            )  # fmt: skip
            return trainer.train(keep_weights)
    except Exception as error:
        if isinstance(error, JaxscaleError) or not is_disk_full(error):
            raise
        raise VerdictError(f"{(pack or folders[0]).path}: no disk space left; free some and run the same command "
                           f"again, it goes on from the last checkpoint") from error  # fmt: skip
