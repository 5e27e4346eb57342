"""What compute is made of and what it costs; every unit is in a name.

C = chips x days x 86400 x FLOP/s achieved by a chip       achieved = peak x MFU
C = k N^p D                                                 6 N D by default (Kaplan et al. 2020)
energy = chip-hours x watts / 1000 x PUE,  carbon = energy x g CO2e a kWh    (Touvron et al. 2023, section 6)
"""

from __future__ import annotations

from typing import Any

from jaxscale.flops import PF_DAY_FLOPS
from jaxscale.laws import SIX_ND, FlopRule

__all__ = ["achieved_flops_per_s", "carbon_kg", "chip_hours", "chips_for", "cost", "days_for", "energy_kwh",
           "flops_from_chips", "params_for", "pf_days", "price_per_flop", "tokens_for"]  # fmt: skip

DAY_S, HOUR_S = 86_400.0, 3600.0


def achieved_flops_per_s(peak_flops_per_s: float, mfu: float) -> float:
    """What a chip delivers of its peak."""
    return peak_flops_per_s * mfu


def flops_from_chips(chips: float, days: float, flops_per_s: float) -> float:
    """Training FLOPs of chips over days, each achieving flops_per_s.

    >>> f"{flops_from_chips(100, 30, 210e12):.3g}"
    '5.44e+22'
    """
    return chips * days * DAY_S * flops_per_s


def days_for(flops: float, chips: float, flops_per_s: float) -> float:
    """Days that the chips need."""
    return flops / (chips * DAY_S * flops_per_s)


def chips_for(flops: float, days: float, flops_per_s: float) -> float:
    """Chips that do it in the days."""
    return flops / (days * DAY_S * flops_per_s)


def pf_days(flops: float) -> float:
    """PetaFLOP/s-days, 8.64e19 FLOPs each (Kaplan et al. 2020)."""
    return flops / PF_DAY_FLOPS


def chip_hours(flops: float, flops_per_s: float) -> float:
    """Hours of one chip, whatever their number."""
    return flops / (flops_per_s * HOUR_S)


def tokens_for(flops: Any, params: Any, rule: FlopRule = SIX_ND) -> Any:
    """Tokens that the FLOPs pay for at this size.

    >>> f"{tokens_for(5.4e22, 7e9):.4g} {tokens_for(5.4e22, 70e9):.4g}"
    '1.286e+12 1.286e+11'
    """
    return rule.tokens(flops, params)


def params_for(flops: Any, tokens: Any, rule: FlopRule = SIX_ND) -> Any:
    """Parameters that the FLOPs pay for over these tokens."""
    return rule.params(flops, tokens)


def cost(hours: float, price_per_chip_hour: float) -> float:
    """Price of chip-hours, in the currency of the price."""
    return hours * price_per_chip_hour


def price_per_flop(price_per_chip_hour: float, flops_per_s: float) -> float:
    """Price of one FLOP; serving over training of it is `serving_ratio`."""
    return price_per_chip_hour / (flops_per_s * HOUR_S)


def energy_kwh(hours: float, watts_per_chip: float, pue: float) -> float:
    """Energy at the meter: the chips' power times the data centre's overhead.

    >>> round(energy_kwh(1_022_362, 400, 1.1) / 1000)  # LLaMA 65B, Touvron et al. 2023, table 15: 449 MWh
    450
    """
    return hours * watts_per_chip / 1000 * pue


def carbon_kg(kwh: float, g_per_kwh: float) -> float:
    """CO2-equivalent of that energy.

    >>> round(carbon_kg(energy_kwh(1_022_362, 400, 1.1), 385) / 1000)  # the same table: 173 t
    173
    """
    return kwh * g_per_kwh / 1000
