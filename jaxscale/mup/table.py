"""The parameterization of one concrete model as a table: what each parameter is multiplied with.

A row a parameter: factors over the base model's, and beside them the study's own numbers. The effective decay is
(factor on l) * (factor on lambda): 1 says that a weight is forgotten as fast as at base width, 0 not at all.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxscale.config import ModelConfig, Recipe, Study
from jaxscale.model.mup import Multipliers, Rule, forward_multipliers, param_rules
from jaxscale.params import param_shapes
from jaxscale.tables import render_table

__all__ = ["RulesTable", "choose_model", "tabulate_rules"]

OWN_RATE = {"embed": "embed_lr", "positions": "embed_lr", "head": "head_lr"}
"""Recipe fields that multiply one parameter's rate."""


@dataclass(frozen=True)
class RulesTable:
    """The rules of one model: `rows` flat records, `forward` the multipliers of the forward pass."""

    model: ModelConfig
    optimizer: str
    rows: tuple[dict[str, Any], ...]
    forward: Multipliers
    schema: str = "jaxscale.mup_rules/1"

    def to_json(self) -> str:
        """As JSON, schema jaxscale.mup_rules/1."""
        plain = asdict(self)
        return json.dumps({"schema": plain.pop("schema"), **plain}, indent=1)

    def __str__(self) -> str:
        model, forward = self.model, self.forward
        columns = ("parameter", "role", "shape", "updated by", "init std", "lr x", "rate", "eps", "decay of l*lambda")
        rows = [(r["parameter"], r["role"], " x ".join(map(str, r["shape"])), r["updated_by"],
                 "ones" if r["role"] == "vector" else r["init_std"], r["lr"], r["rate"], r["eps"],
                 r["effective_decay"]) for r in self.rows]  # fmt: skip
        title = (
            f"{model.parameterization}, {self.optimizer}: width {model.d_model} (base {model.base_d_model}), "
            f"depth {model.n_layers} (base {model.base_n_layers}), d_head {model.d_head}, d_ff {model.d_ff}"
        )
        return "\n".join([
            render_table(title, columns, rows), "",
            f"forward: embedding x {forward.embed:.4g}, attention logits x {forward.attention:.4g}, "
            f"residual branches x {forward.residual:.4g}, logits x {forward.logits:.4g}",
        ])  # fmt: skip


def choose_model(study: Study, width: int | None, depth: int | None) -> ModelConfig:
    """The study's model at a width and depth; by default its widest, as deep as the study makes it."""
    chosen = width or max(study.grid.widths)
    aspect = study.grid.aspect
    layers = depth or (study.model.n_layers if aspect is None else max(1, round(chosen / aspect)))
    return replace(study.model, d_model=chosen, n_layers=layers)


def tabulate_rules(model: ModelConfig, recipe: Recipe) -> RulesTable:
    """Every parameter's rule for this model and recipe.

    >>> table = tabulate_rules(ModelConfig(d_model=128, base_d_model=32), Recipe(lr=0.02))
    >>> next((row["lr"], row["rate"], row["effective_decay"]) for row in table.rows if row["parameter"] == "blocks.wk")
    (0.25, 0.005, 1.0)
    """
    rules = param_rules(model, recipe.optimizer)
    rows = []
    for name, axes in param_shapes(model).items():
        rule = rules[name]
        rows.append({
            "parameter": name, "role": rule.role, "shape": [size for _, size in axes],
            "axes": [axis for axis, _ in axes],
            "updated_by": rule.optimizer, "init_std": rule.init_std, "lr": rule.lr,
            "rate": _rate(name, rule, recipe), "eps_factor": rule.eps,
            "eps": recipe.eps * rule.eps if rule.optimizer == "adamw" else None,
            "decay": rule.decay, "effective_decay": rule.lr * rule.decay,
        })  # fmt: skip
    return RulesTable(model, recipe.optimizer, tuple(rows), forward_multipliers(model))


def _rate(name: str, rule: Rule, recipe: Recipe) -> float:
    own = float(getattr(recipe, OWN_RATE[name])) if name in OWN_RATE else 1.0
    rest = recipe.adam_lr if recipe.optimizer == "muon" and rule.optimizer == "adamw" else 1.0
    return recipe.lr * own * rest * rule.lr
