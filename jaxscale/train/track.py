"""Where curves go besides metrics.jsonl: TensorBoard and Weights & Biases, both optional (extra `[track]`).

    tensorboard    <run_id>/tensorboard/, read by `tensorboard --logdir DIR`
    wandb          run id = run_id, below <study>/wandb/; WANDB_MODE=offline sends nothing, `wandb sync` later does

A resumed run goes on under its id. The file is the truth and a tracker a copy: what a tracker cannot take is said once
on stderr and training goes on.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxscale.config import LaunchConfig
from jaxscale.errors import MisuseError
from jaxscale.plain import to_plain
from jaxscale.runs import RunSpec
from jaxscale.train.logs import hide_secrets

__all__ = ["Trackers", "check_trackers", "open_trackers"]

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
Write = Callable[[Mapping[str, float]], None]


class Trackers:
    """The trackers of one run while it trains; `log` takes a line of metrics.jsonl."""

    def __init__(self, writers: Sequence[tuple[Write, Callable[[], None]]]) -> None:
        self.writers = list(writers)

    def log(self, line: Mapping[str, float]) -> None:
        """Copy a line to every tracker."""
        for write, _ in self.writers:
            self._try(write, line)

    def close(self) -> None:
        """Send what waits and let go."""
        for _, close in self.writers:
            self._try(close)
        self.writers = []

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:
            self.writers = [pair for pair in self.writers if call not in pair]
            print(
                f"tracker: {hide_secrets(str(error))[:300]}; this run goes on without it", file=sys.stderr, flush=True
            )


def check_trackers(launch: LaunchConfig) -> None:
    """MisuseError where a tracker's package is not installed: before anything is trained."""
    for name in launch.trackers:
        try:
            importlib.import_module(PACKAGES[name])
        except ImportError:
            raise MisuseError(f"launch.trackers: {name} needs the package {PACKAGES[name]}, which is not installed; "
                              f"pip install 'jaxscale[track]', or leave it out") from None  # fmt: skip


def open_trackers(launch: LaunchConfig, folder: Path, spec: RunSpec, step: int) -> Trackers:
    """The trackers that a study asks for, for a run that goes on from `step` in its folder."""
    openers = {"tensorboard": _open_tensorboard, "wandb": _open_wandb}
    writers = []
    for name in launch.trackers:
        try:
            writers.append(openers[name](launch, folder, spec, step))
        except Exception as error:
            print(f"tracker {name}: {hide_secrets(str(error))[:300]}; run {spec.run_id} goes on without it",
                  file=sys.stderr, flush=True)  # fmt: skip
    return Trackers(writers)


def _open_tensorboard(launch: LaunchConfig, folder: Path, spec: RunSpec, step: int) -> tuple[Write, Callable[[], None]]:
    """Event files of this start; `purge_step` hides what an earlier start wrote past its checkpoint."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(line: Mapping[str, float]) -> None:
        for name, value in line.items():
            if name != "step":
                writer.add_scalar(f"train/{name}", value, int(line["step"]))
        writer.flush()

    return write, writer.close


def _open_wandb(launch: LaunchConfig, folder: Path, spec: RunSpec, step: int) -> tuple[Write, Callable[[], None]]:
    """Steps are an axis of their own: wandb's counter refuses the lines that a resumed run writes again."""
    import wandb

    settings = wandb.Settings(silent=True, console="off", x_disable_meta=True, x_disable_stats=True, disable_git=True,
                              disable_code=True)  # fmt: skip
    run = wandb.init(
        project=launch.wandb_project, id=spec.run_id, name=spec.run_id, resume="allow", dir=str(folder.parent),
        config=to_plain(spec), reinit="create_new", settings=settings,
    )  # fmt: skip
    run.define_metric("*", step_metric="step")
    return lambda line: run.log(dict(line)), run.finish
