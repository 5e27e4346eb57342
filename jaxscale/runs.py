"""What a run is: its specification, its identity, its result, and the folder that holds them.

    runs/<study>/plan.json
                 <run_id>/spec.json  metrics.jsonl  checkpoints/  result.json

A `RunSpec` is fully resolved plain data, and `run_id` is a hash of its canonical JSON: two runs with
equal ids are the same experiment. Nothing is ever parsed out of a name or a log.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from jaxscale.config import DataConfig, ModelConfig
from jaxscale.errors import MisuseError
from jaxscale.plain import from_plain, read_sealed, to_plain

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "METRIC_FIELDS",
    "STATES",
    "TUNING_ROLES",
    "Cell",
    "Dropped",
    "Observations",
    "Plan",
    "Role",
    "RunResult",
    "RunSpec",
    "State",
    "read_spec",
    "run_dir",
]

State = Literal["planned", "running", "done", "diverged", "failed", "censored"]
STATES: tuple[State, ...] = ("planned", "running", "done", "diverged", "failed", "censored")
"""A run is in exactly one of these; only `done` becomes evidence. `censored`: stopped as jaxscale.hopeless says."""

Role = Literal["grid", "holdout", "sweep", "audit", "trunk"]
"""What a cell is for: to be fitted, to be predicted, to ask what the best learning rate is, or to be branched from."""
TUNING_ROLES: tuple[Role, ...] = ("sweep", "audit")
"""Runs that ask what the best learning rate is: never evidence for a law."""

METRIC_FIELDS = frozenset({"step", "loss", "seconds"})
"""What every line of metrics.jsonl has, among others."""

OPTIMIZER_READS = {"sgd": ("momentum",), "muon": ("adam_lr", "momentum"), "lion": ("b1", "b2"), "adafactor": ("b1",)}
"""Fields of a run that only some optimizers read: adam_lr and momentum, and of those that came later Adam's too. (The
first three have b1, b2 and eps in their identities whether they read them or not, as their runs were named.)"""
LATER_OPTIMIZERS = ("lion", "adafactor")

RUN_ID = re.compile(r"[0-9a-f]{12}")
"""What names a run's folder: nothing that could lead out of the study's."""

T = TypeVar("T")


@dataclass(frozen=True)
class RunSpec:
    """One training run, with every number resolved: what decides its loss, and nothing else.

    Units: `*_tokens` tokens, `*_steps` optimizer steps, `budget_flops` training FLOPs (exact count).
    """

    model: ModelConfig
    data: DataConfig
    budget_flops: float
    tokens: int
    steps: int
    batch_seqs: int
    microbatch_seqs: int
    optimizer: str
    lr: float
    embed_lr: float
    head_lr: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float
    z_loss: float
    schedule: str
    warmup_steps: int
    decay_steps: int
    final_fraction: float
    seed: int
    adam_lr: float = 1.0
    momentum: float = 0.95
    average_steps: int = 0
    router_balance: float = 0.01
    precision: str = "mesh"
    keeps: tuple[int, ...] = ()
    """A trunk: the steps whose states it keeps for its branches, rising, the last one its end."""
    parent: str = ""
    """A branch: run id of the trunk whose state it begins from."""
    parent_step: int = 0
    """A branch: steps done in that state; the run makes the steps from there to `steps`."""

    @property
    def family(self) -> str:
        """How the learning rate came down: a schedule's name, and whether the run branched off a trunk."""
        return f"{self.schedule}-branch" if self.parent else self.schedule

    @cached_property
    def run_id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON (sorted keys, no spaces)."""
        plain = to_plain(from_plain(to_plain(self), RunSpec))  # 1 and 1.0 are one number
        plain["data"].pop("cache")  # where token files lie does not change what is learned
        _drop_silent(plain)
        canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _drop_silent(plain: dict[str, Any]) -> None:
    """Take out what says nothing about this run, so that a field added later renames no run made before it."""
    adam = ("b1", "b2", "eps") if plain["optimizer"] in LATER_OPTIMIZERS else ()
    for name in ("adam_lr", "momentum", *adam):
        if name not in OPTIMIZER_READS.get(plain["optimizer"], ()):
            plain.pop(name)
    for part, (kind, names) in ADDED_FIELDS.items():
        owner = plain[part] if part else plain
        for one in fields(kind):
            if one.name in names and owner[one.name] == json.loads(json.dumps(one.default)):
                owner.pop(one.name)


ADDED_FIELDS: dict[str, tuple[type, tuple[str, ...]]] = {
    "model": (ModelConfig, ("base_head_dim", "base_mlp_ratio", "init_scale", "architecture", "objective", "n_experts",
                            "experts_per_token", "norm", "position")),
    "data": (DataConfig, ("mixture", "val_files", "unique_tokens", "quality_from", "quality_keep", "decontaminate",
                          "decontaminate_ngram", "bytes_per_token", "val_bytes")),
    "": (RunSpec, ("keeps", "parent", "parent_step", "average_steps", "router_balance", "precision")),
}  # fmt: skip
"""Fields that came after runs had been made without them: at its default each is no part of a run's identity."""


@dataclass(frozen=True)
class Cell:
    """A planned run with the numbers a person wants to see before paying for it."""

    spec: RunSpec
    role: Role
    n_params: int
    n_params_non_embedding: int
    flops: float
    flops_6nd: float
    epochs: float | None
    seconds: float
    variants: tuple[str, ...] = ()
    """Names of the study's variants that this run serves, several where they do not differ in it; () without any."""
    n_params_total: int | None = None
    """All parameters, where n_params are the active ones of experts; None in plans of before it was noted: n_params."""

    @property
    def run_id(self) -> str:
        """Identity of the run."""
        return self.spec.run_id

    @property
    def paid_flops(self) -> float:
        """FLOPs that this run itself makes: a branch's first steps are its trunk's, and counted there."""
        return self.flops * (1 - self.spec.parent_step / self.spec.steps)


@dataclass(frozen=True)
class Dropped:
    """A cell or size that the plan left out, and why."""

    budget_flops: float
    d_model: int
    n_layers: int
    n_params: int
    tokens: float
    reason: str
    variants: tuple[str, ...] = ()
    """Names of the variants whose grid lacks it; () without any."""


@dataclass(frozen=True)
class Plan:
    """The resolved grid. Iterating gives the run specs, longest first is the trainer's business."""

    study: str
    cells: tuple[Cell, ...]
    dropped: tuple[Dropped, ...]
    assumptions: tuple[str, ...]
    config: dict[str, Any]
    hardware: str
    total_flops: float
    total_seconds: float
    data_sha256: str = ""
    """Identity of the training text it was made for; empty where the text was not on the machine. Of variants with
    texts of their own the hash of these."""
    data_by_variant: dict[str, str] = field(default_factory=dict)
    """Identity of each variant's training text, where they differ."""
    untuned: tuple[str, ...] = ()
    """Variants whose learning-rate sweep has not ended: their cells' rates are provisional and nothing is trained."""
    schema: str = "jaxscale.plan/1"

    @classmethod
    def of_cells(cls, cells: Iterable[Cell], **fields: Any) -> Plan:
        """A plan of these cells with their totals; FLOPs that runs share are counted once."""
        return cls(**_with_totals(cells), **fields)

    def with_cells(self, cells: Iterable[Cell]) -> Plan:
        """The same plan of other cells."""
        return replace(self, **_with_totals(cells))

    def __iter__(self) -> Iterator[RunSpec]:
        return (cell.spec for cell in self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the study's variants; () without any."""
        return tuple(variant["name"] for variant in self.config.get("variants", ()))

    def check_single(self, verb: str) -> None:
        """MisuseError where the study has variants, whose runs are no one grid's, for a verb that knows no other."""
        if self.variants:
            raise MisuseError(f"{verb}: study {self.study!r} has the variants {', '.join(self.variants)}, and their "
                              f"runs are not one grid's; `jaxscale compare` reads them, `jaxscale fit DIR --where "
                              f"\"variant == '{self.variants[0]}'\"` fits one")  # fmt: skip

    def check_tuned(self) -> None:
        """MisuseError where cells would be trained at rates that are not their variant's own yet."""
        if self.untuned:
            raise MisuseError(f"study {self.study!r}: the learning rates of {', '.join(self.untuned)} come from sweeps "
                              f"that have not ended; `jaxscale run STUDY.py` trains these first, or `jaxscale train "
                              f"DIR/tuning/runs --all` and then `jaxscale plan STUDY.py`")  # fmt: skip

    def text_of(self, cell: Cell) -> str:
        """SHA-256 of the training text that a cell was planned for; empty where that is not known."""
        return self.data_by_variant.get(cell.variants[0], "") if self.data_by_variant else self.data_sha256

    def find_cell(self, run_id: str) -> Cell:
        """The cell with this id, or its unique beginning; MisuseError names what is wrong otherwise."""
        found = [c for c in self.cells if c.run_id.startswith(run_id)]
        if len(found) == 1:
            return found[0]
        problem = "no cell" if not found else f"{len(found)} cells"
        raise MisuseError(f"run {run_id!r}: {problem} of study {self.study!r} begin with it; "
                          f"`jaxscale status` lists the ids")  # fmt: skip

    def to_json(self) -> str:
        """The plan as JSON, schema jaxscale.plan/1."""
        plain = to_plain(self)
        for cell, row in zip(self.cells, plain["cells"], strict=True):
            row["run_id"] = cell.run_id
        for owner in (plain, *plain["cells"], *plain["dropped"]):  # a plan without variants reads as it always has
            for name in ("variants", "data_by_variant", "untuned"):
                if name in owner and not owner[name]:
                    del owner[name]
        return json.dumps({"schema": plain.pop("schema"), **plain}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote; MisuseError if a cell's id does not match its content."""
        plain = json.loads(text)
        try:
            ids = [row.pop("run_id") for row in plain["cells"]]
        except (KeyError, TypeError, AttributeError):
            raise MisuseError("plan.json: no plan of jaxscale; delete it and plan the study anew") from None
        plan = from_plain(plain, cls)
        for run_id, cell in zip(ids, plan.cells, strict=True):
            if run_id != cell.run_id:
                raise MisuseError(f"plan.json: cell {run_id} hashes to {cell.run_id}; the file was edited or "
                                  f"written by another version; plan the study anew")  # fmt: skip
            if cell.spec.parent and not RUN_ID.fullmatch(cell.spec.parent):
                raise MisuseError(f"plan.json: cell {run_id} names the trunk {cell.spec.parent!r}, which is no run id; "
                                  f"plan the study anew")  # fmt: skip
        return plan


def _with_totals(cells: Iterable[Cell]) -> dict[str, Any]:
    cells = tuple(cells)
    flops, seconds = sum(cell.paid_flops for cell in cells), sum(cell.seconds for cell in cells)
    return {"cells": cells, "total_flops": flops, "total_seconds": seconds}


@dataclass(frozen=True)
class RunResult:
    """How a run ended. `loss` is the exact mean over the validation set, nats per token."""

    run_id: str
    state: State
    reason: str
    loss: float | None
    loss_std_error: float | None
    bits_per_byte: float | None
    train_loss: float | None
    n_params: int
    n_params_non_embedding: int
    tokens: int
    flops: float
    steps_done: int
    seconds: float
    tokens_per_s: float
    flops_per_s: float
    restarts: int
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: str = "jaxscale.result/1"
    begun_step: int = 0
    """Steps that a branch took over from its trunk; `seconds` and the rates leave them out, tokens and flops do not."""
    mfu: float | None = None
    """Model FLOPs utilization: `flops_per_s` over the bf16 peak of all chips; None on CPU and unknown chips."""
    n_params_total: int | None = None
    """All parameters, where n_params are those that a token meets; None in results of before it was noted."""
    metrics_sha256: str = ""
    """Of the finished metrics.jsonl; empty in results of before it was noted."""
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    """Validation loss by source: {source: {"loss", "tokens", "std_error"}}, nats per token; its mean weighted by tokens
    is `loss`. Empty where the token files do not tell their sources, or have too many."""

    @property
    def paid_flops(self) -> float:
        """FLOPs that this run itself made."""
        return self.flops * (1 - self.begun_step / self.steps_done) if self.steps_done else 0.0


@dataclass(frozen=True)
class Observations:
    """What fits read: one row a finished run, and every row that was refused with its reason.

    `frame` has the canonical columns N, D, C (floats), loss (nats per token), and where known budget, U,
    run_id, seed, weight, group, parent, role, N_non_embedding. `refused` rows: {"row" or "run_id", "reason"}.
    `source`: {"path", "sha256", "rows_total", "rows_used", "rows_refused"}.
    """

    frame: pd.DataFrame
    refused: tuple[dict[str, Any], ...] = ()
    source: dict[str, Any] = field(default_factory=dict)
    rule: Literal["6ND", "exact"] = "6ND"

    def to_frame(self) -> pd.DataFrame:
        """The observations as a DataFrame."""
        return self.frame

    def __len__(self) -> int:
        return len(self.frame)


def run_dir(study_dir: Path, run_id: str) -> Path:
    """Folder of one run."""
    return Path(study_dir) / run_id


def read_spec(path: Path) -> RunSpec:
    """A spec.json; MisuseError where it is damaged or none."""
    return from_plain(read_sealed(path), RunSpec)
