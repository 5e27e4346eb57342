"""The calculators: FLOPs, chips and days, parameters and tokens, cost, energy, carbon, and models known by name."""

from jaxscale.budget.arithmetic import (
    achieved_flops_per_s,
    carbon_kg,
    chip_hours,
    chips_for,
    cost,
    days_for,
    energy_kwh,
    flops_from_chips,
    params_for,
    pf_days,
    price_per_flop,
    tokens_for,
)
from jaxscale.budget.calculate import calculate_budget
from jaxscale.budget.models import KNOWN_MODELS, KnownModel, compare_models
from jaxscale.budget.result import Budget, Row

__all__ = [
    "KNOWN_MODELS", "Budget", "KnownModel", "Row", "achieved_flops_per_s", "calculate_budget", "carbon_kg",
    "chip_hours", "chips_for", "compare_models", "cost", "days_for", "energy_kwh", "flops_from_chips", "params_for",
    "pf_days", "price_per_flop", "tokens_for",
]  # fmt: skip
