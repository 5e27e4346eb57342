"""What is given of a budget -> everything that follows from it, each number with its formula.

FLOPs come from one of four: given, chips x days x rate, N and D, or money, price and rate. The rest follows;
what is missing or said twice is one sentence. Assumptions (utilization, watts, PUE, carbon intensity) are rows
of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxscale.budget import arithmetic
from jaxscale.budget.result import Basis, Budget, Row
from jaxscale.errors import MisuseError
from jaxscale.hardware import ASSUMED_UTILIZATION, CHIP_WATTS, CHIPS
from jaxscale.laws import SIX_ND, FlopRule, PowerLaw

__all__ = ["ASSUMED_CARBON_G_PER_KWH", "ASSUMED_PUE", "calculate_budget"]

ASSUMED_PUE = 1.1
"""Energy at the meter over that of the machines, as Touvron et al. 2023 (arXiv 2302.13971, section 6) assume."""
ASSUMED_CARBON_G_PER_KWH = 385.0
"""g CO2e a kWh, the average of the United States in the same section."""


class _Sheet:
    """Rows as they are found; a quantity is written once."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def write(self, quantity: str, value: float, unit: str, formula: str = "", basis: Basis = "computed") -> float:
        self.rows[quantity] = Row(quantity, float(value), unit, formula, basis)
        return float(value)


def calculate_budget(
    *,
    flops: float | None = None,
    chips: float | None = None,
    days: float | None = None,
    flops_per_s: float | None = None,
    chip: str | None = None,
    mfu: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    token_law: tuple[float, float] | None = None,
    rounded_law: tuple[float, float] | None = None,
    price_per_chip_hour: float | None = None,
    money: float | None = None,
    watts_per_chip: float | None = None,
    pue: float | None = None,
    carbon_g_per_kwh: float | None = None,
    rule: FlopRule = SIX_ND,
) -> Budget:
    """Everything that follows from what is given; a rate, a price and a power are those of one chip.

    money: what the chip-hours may cost, in the currency of the price. token_law (A, alpha): D = A C^alpha, N by
    the rule; rounded_law: the same law as it is printed elsewhere. MisuseError where C is missing,
    given twice, or a quantity cannot be had from the rest.

    >>> calculate_budget(chips=100, days=30, flops_per_s=210e12)["training FLOPs"]
    5.4432e+22
    """
    given = {name: value for name, value in locals().items() if isinstance(value, int | float)}
    laws = (("token_law", token_law), ("rounded_law", rounded_law))
    for name, value in [*given.items(), *((name, value) for name, law in laws for value in law or ())]:
        if not (np.isfinite(value) and value > 0):
            raise MisuseError(f"{name}: {value:g} must be finite and above 0")
    if chip is not None and chip not in CHIPS:
        raise MisuseError(f"chip: {chip!r} is not known; use {', '.join(CHIPS)}, or give flops_per_s")
    sheet = _Sheet()
    rate = _write_rate(sheet, given, chip)
    C = _write_flops(sheet, given, rate, rule)
    rate = _write_time(sheet, given, C, rate, chip)
    _write_size(sheet, given, C, rule, token_law)
    if rounded_law is not None:
        _write_rounded(sheet, C, rule, token_law, rounded_law)
    _write_price(sheet, given, C, rate, chip)
    return Budget(tuple(sheet.rows.values()))


def _write_rate(sheet: _Sheet, given: Mapping[str, float], chip: str | None) -> float | None:
    """FLOP/s that a chip achieves, where it can be known before C."""
    if "flops_per_s" in given:
        if "mfu" in given:
            raise MisuseError("mfu and flops_per_s both fix the achieved rate; leave one out")
        rate = sheet.write("achieved rate", given["flops_per_s"], "FLOP/s a chip", "", "given")
        if chip is not None:
            _write_mfu(sheet, rate, chip)
        return rate
    if chip is None:
        if "mfu" in given:
            raise MisuseError(
                f"mfu is a share of a chip's peak; name the chip ({', '.join(CHIPS)}) or give flops_per_s"
            )
        return None
    known = "flops" in given or {"params", "tokens"} <= given.keys()
    if known and {"chips", "days"} <= given.keys():
        if "mfu" in given:
            raise MisuseError(
                "the training FLOPs, chips, days and mfu: each follows from the other three; leave one out"
            )
        return None
    peak = sheet.write("peak rate", CHIPS[chip], "FLOP/s a chip", f"{chip}, dense bf16, data sheet", "given")
    mfu = given.get("mfu", ASSUMED_UTILIZATION)
    sheet.write("utilization", mfu, "of peak", "", "given" if "mfu" in given else "assumed")
    rate = arithmetic.achieved_flops_per_s(peak, mfu)
    return sheet.write("achieved rate", rate, "FLOP/s a chip", f"peak x utilization = {peak:.4g} x {mfu:g}")


def _write_mfu(sheet: _Sheet, rate: float, chip: str) -> None:
    peak = sheet.write("peak rate", CHIPS[chip], "FLOP/s a chip", f"{chip}, dense bf16, data sheet", "given")
    if rate > peak:
        raise MisuseError(
            f"flops_per_s: {rate:.4g} is above the peak of {chip}, {peak:.4g}; check chips, days and FLOPs"
        )
    sheet.write("utilization", rate / peak, "of peak", f"rate / peak = {rate:.4g} / {peak:.4g}")


def _write_flops(sheet: _Sheet, given: Mapping[str, float], rate: float | None, rule: FlopRule) -> float:
    """C from the one source that is given."""
    sources = {
        "flops": "flops" in given,
        "chips x days x rate": rate is not None and {"chips", "days"} <= given.keys(),
        "params and tokens": {"params", "tokens"} <= given.keys(),
        "money": "money" in given,
    }
    found = [name for name, there in sources.items() if there]
    if len(found) > 1:
        raise MisuseError(f"{' and '.join(found)} each fix the training FLOPs; leave one of them out")
    if not found:
        raise MisuseError(f"the training FLOPs do not follow from {', '.join(given) or 'nothing'}; give flops, or "
                          "chips and days with a chip or flops_per_s, or params and tokens")  # fmt: skip
    if found == ["flops"]:
        C = sheet.write("training FLOPs", given["flops"], "FLOPs", "", "given")
    elif found == ["money"]:
        C = _flops_for(sheet, given, rate)
    elif rate is not None and "chips" in given and "days" in given:
        C = arithmetic.flops_from_chips(given["chips"], given["days"], rate)
        words = f"chips x days x 86400 x rate = {given['chips']:g} x {given['days']:g} x 86400 x {rate:.4g}"
        sheet.write("training FLOPs", C, "FLOPs", words)
    else:
        C = float(rule.flops(given["params"], given["tokens"]))
        sheet.write("training FLOPs", C, "FLOPs", f"{_say(rule)} = {_say(rule, given['params'], given['tokens'])}")
    sheet.write("PF-days", arithmetic.pf_days(C), "PF-days", f"C / (1e15 x 86400) = {C:.4g} / 8.64e19")
    return C


def _flops_for(sheet: _Sheet, given: Mapping[str, float], rate: float | None) -> float:
    """C that the money pays for."""
    if rate is None or "price_per_chip_hour" not in given:
        raise MisuseError("money: needs price_per_chip_hour and a rate; give them, and a chip or flops_per_s")
    money, price = given["money"], given["price_per_chip_hour"]
    sheet.write("money", money, "in the price's currency", "", "given")
    C = money / arithmetic.price_per_flop(price, rate)
    return sheet.write(
        "training FLOPs", C, "FLOPs", f"money / price x 3600 x rate = {money:g} / {price:g} x 3600 x {rate:.4g}"
    )


def _write_time(
    sheet: _Sheet, given: Mapping[str, float], C: float, rate: float | None, chip: str | None
) -> float | None:
    """Chips, days, the rate they take, chip-hours; the rate, if it is known now."""
    chips, days = given.get("chips"), given.get("days")
    for name, value in (("chips", chips), ("days", days)):
        if value is not None:
            sheet.write(name, value, name, "", "given")
    if rate is None and chips and days:
        rate = C / arithmetic.flops_from_chips(chips, days, 1.0)
        words = f"C / (chips x days x 86400) = {C:.4g} / ({chips:g} x {days:g} x 86400)"
        sheet.write("achieved rate", rate, "FLOP/s a chip", words)
        if chip is not None:
            _write_mfu(sheet, rate, chip)
    if rate is None:
        if chips or days:
            raise MisuseError(f"{'chips' if chips else 'days'}: without a rate nothing follows from it; "
                              "give a chip or flops_per_s")  # fmt: skip
        return None
    if chips and not days:
        words = f"C / (chips x 86400 x rate) = {C:.4g} / ({chips:g} x 86400 x {rate:.4g})"
        sheet.write("days", arithmetic.days_for(C, chips, rate), "days", words)
    elif days and not chips:
        words = f"C / (days x 86400 x rate) = {C:.4g} / ({days:g} x 86400 x {rate:.4g})"
        sheet.write("chips", arithmetic.chips_for(C, days, rate), "chips", words)
    sheet.write(
        "chip-hours", arithmetic.chip_hours(C, rate), "hours", f"C / (rate x 3600) = {C:.4g} / {rate:.4g} / 3600"
    )
    return rate


def _say(rule: FlopRule, N: float | None = None, D: float | None = None) -> str:
    """k N^p D in letters or in numbers."""
    n, d = ("N", "D") if N is None else (f"{N:.4g}", f"{D:.4g}")
    return f"{rule.k:.4g} x {n}{'' if rule.p == 1 else f'^{rule.p:.4g}'} x {d}"


def _write_size(
    sheet: _Sheet, given: Mapping[str, float], C: float, rule: FlopRule, law: tuple[float, float] | None
) -> None:
    """N and D, from each other or from the token law."""
    N, D = given.get("params"), given.get("tokens")
    if law is not None:
        if N or D:
            raise MisuseError(f"token_law and {'params' if N else 'tokens'} both fix the size; leave one out")
        D = float(PowerLaw(*law).at(C))
        sheet.write("tokens", D, "tokens", f"A C^alpha = {law[0]:g} x {C:.4g}^{law[1]:g}")
    elif D is not None:
        sheet.write("tokens", D, "tokens", "", "given")
    if N is not None:
        sheet.write("params", N, "params", "", "given")
    elif D is not None:
        N = float(arithmetic.params_for(C, D, rule))
        words = f"C / ({rule.k:.4g} D)" if rule.p == 1 else f"(C / ({rule.k:.4g} D))^(1/{rule.p:.4g})"
        sheet.write("params", N, "params", f"{words} = {C:.4g} / ({rule.k:.4g} x {D:.4g})")
    if N is not None and D is None:
        D = float(arithmetic.tokens_for(C, N, rule))
        words = f"C / ({_say(rule, N, 1.0).removesuffix(' x 1')})"
        sheet.write("tokens", D, "tokens", f"C / ({_say(rule).removesuffix(' x D')}) = {C:.4g} {words[2:]}")
    if N is not None and D is not None:
        sheet.write("tokens per parameter", D / N, "", "D / N")


def _write_rounded(
    sheet: _Sheet, C: float, rule: FlopRule, law: tuple[float, float] | None, rounded: tuple[float, float]
) -> None:
    """What a rounded token law does to the same compute."""
    if law is None:
        raise MisuseError("rounded_law is read beside token_law, which is not given; give both as A and alpha")
    D, exact = (float(PowerLaw(*one).at(C)) for one in (rounded, law))
    sheet.write("tokens, rounded law", D, "tokens", f"A C^alpha = {rounded[0]:g} x {C:.4g}^{rounded[1]:g}")
    N = float(arithmetic.params_for(C, D, rule))
    sheet.write("params, rounded law", N, "params", f"the size that {C:.4g} FLOPs pay for over {D:.4g} tokens")
    sheet.write("rounded over exact tokens", D / exact, "", f"{D:.4g} / {exact:.4g}")
    per_step = C**0.001 - 1
    sheet.write("tokens a step of .001 in alpha", per_step, "relative", f"C^.001 - 1 = {C:.4g}^.001 - 1")


def _write_price(sheet: _Sheet, given: Mapping[str, float], C: float, rate: float | None, chip: str | None) -> None:
    """Cost, energy, carbon, where chip-hours are known."""
    priced = [name for name in ("price_per_chip_hour", "watts_per_chip", "pue", "carbon_g_per_kwh") if name in given]
    if rate is None:
        if priced:
            raise MisuseError(f"{priced[0]}: needs chip-hours; give a chip, flops_per_s, or chips and days")
        return
    hours = arithmetic.chip_hours(C, rate)
    if "price_per_chip_hour" in given:
        price = given["price_per_chip_hour"]
        words = f"chip-hours x price = {hours:.4g} x {price:g}"
        sheet.write("cost", arithmetic.cost(hours, price), "in the price's currency", words)
    watts = given.get("watts_per_chip", CHIP_WATTS.get(chip or ""))
    if watts is None:
        if "pue" in given or "carbon_g_per_kwh" in given:
            raise MisuseError("watts_per_chip is not given, and energy needs it; the power of "
                              f"{chip or 'this chip'} is not published, known are {', '.join(CHIP_WATTS)}")  # fmt: skip
        return
    own = "watts_per_chip" in given
    sheet.write(
        "power", watts, "W a chip", "" if own else f"{chip}, the most it may draw", "given" if own else "assumed"
    )
    pue = given.get("pue", ASSUMED_PUE)
    sheet.write("PUE", pue, "", "meter over machines", "given" if "pue" in given else "assumed")
    kwh = arithmetic.energy_kwh(hours, watts, pue)
    sheet.write("energy", kwh, "kWh", f"chip-hours x power / 1000 x PUE = {hours:.4g} x {watts:g} / 1000 x {pue:g}")
    grams = given.get("carbon_g_per_kwh", ASSUMED_CARBON_G_PER_KWH)
    basis: Basis = "given" if "carbon_g_per_kwh" in given else "assumed"
    sheet.write("carbon intensity", grams, "g CO2e a kWh", "" if basis == "given" else "United States, average", basis)
    words = f"energy x intensity / 1000 = {kwh:.4g} x {grams:g} / 1000"
    sheet.write("carbon", arithmetic.carbon_kg(kwh, grams), "kg CO2e", words)
