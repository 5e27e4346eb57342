"""The verb `budget`: the calculators, and with a fit the best plan under constraints and how flat it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxscale.errors import MisuseError

if TYPE_CHECKING:
    from jaxscale.fit.result import Fit, Fits

__all__ = ["budget"]

EXAMPLE = """FLOPs, chips, days, tokens, parameters, cost and carbon from each other, with the formula of each.

example: jaxscale budget --chips 100 --days 30 --tflops 210
         jaxscale budget --flops 5.4e22 --params 7e9 --chip h100 --mfu .4 --price 2.5
         jaxscale budget --fit fit.json --flops 1e22 --max-params 7e9 --served-tokens 2e12 --flatness"""


@dataclass(frozen=True)
class BudgetArguments:
    """Arguments of `budget`."""

    flops: float | None = None
    """FLOPs to spend: on training, and with --fit and --served-tokens on serving as well."""
    chips: float | None = None
    """Number of chips."""
    days: float | None = None
    """Days of training."""
    tflops: float | None = None
    """TFLOP/s that one chip achieves."""
    chip: str | None = None
    """Chip by name, for its peak and its power: v4, v5e, v5p, v6e, tpu7x, a100, h100, h200."""
    mfu: float | None = None
    """Share of the chip's peak that is achieved; .4 is assumed where only --chip is given."""
    params: float | None = None
    """Parameters N."""
    tokens: float | None = None
    """Training tokens D."""
    token_law: tuple[float, float] | None = None
    """A and alpha of D = A C^alpha."""
    token_law_rounded: tuple[float, float] | None = None
    """The same law as it is printed elsewhere, to see what rounding does."""
    price: float | None = None
    """Price of a chip-hour."""
    money: float | None = None
    """What the chip-hours may cost, instead of --flops; with --price and a rate."""
    watts: float | None = None
    """Watts a chip; the chip's most is assumed where it is published."""
    pue: float | None = None
    """Energy at the meter over that of the machines; 1.1 is assumed."""
    carbon: float | None = None
    """g CO2e a kWh; 385 is assumed."""
    compare: bool = False
    """Well-known models: N, D, D/N, FLOPs, and with --fit the optimum for their FLOPs."""
    fit: Path | None = None
    """FIT.json or FITS.json: the best plan for --flops (or chips, days and rate) or --loss."""
    loss: float | None = None
    """With --fit: the loss to reach at the lowest FLOPs, nats per token."""
    max_params: float | None = None
    """With --fit: the most parameters."""
    max_tokens: float | None = None
    """With --fit: the most tokens, none repeated."""
    unique_tokens: float | None = None
    """With --fit: unique tokens, repeated at will."""
    r_d: float | None = None
    """Decay of repeated tokens in epochs; the law repetition's own, else Muennighoff et al.'s."""
    r_n: float | None = None
    """The same of parameters beyond the optimal size."""
    deadline_days: float | None = None
    """With --fit: training ends within these days on --chips at --tflops or --chip."""
    served_tokens: float | None = None
    """With --fit: tokens served over the model's life, 2 N FLOPs each."""
    serving_ratio: float | None = None
    """Price of a served FLOP in training FLOPs; or --serve-tflops and --serve-price."""
    serve_tflops: float | None = None
    """TFLOP/s that a chip achieves in serving."""
    serve_price: float | None = None
    """Price of a chip-hour of serving; --price is assumed."""
    flatness: bool = False
    """With --fit: what a size off the optimum costs, and the sizes within a tolerance."""
    out: Path | None = None
    """Where the JSON goes."""


SUPPLY = ("flops", "chips", "days", "tflops", "chip", "mfu", "params", "tokens", "token_law", "token_law_rounded",
          "price", "money", "watts", "pue", "carbon")  # fmt: skip
WITH_FIT = ("loss", "max_params", "max_tokens", "unique_tokens", "r_d", "r_n", "deadline_days", "served_tokens",
            "serving_ratio", "serve_tflops", "serve_price")  # fmt: skip


NO_SIZE: dict[str, Any] = {"params": None, "tokens": None, "token_law": None, "rounded_law": None, "money": None}


def budget(argv: list[str]) -> int:
    """What a budget comes to, and what to do with it."""
    if "--version" in argv:
        from jaxscale.cli import dispatch

        return dispatch(["--version"])
    from jaxscale.cli.options import parse
    from jaxscale.plain import write_json

    args = parse(BudgetArguments, argv, "budget", EXAMPLE)
    results = _results(args)
    print("\n\n".join(str(result) for result in results.values()))
    if args.out is not None:
        plain: dict[str, Any] = {"schema": "jaxscale.budget/1", "rows": []}
        for name, result in results.items():
            plain |= result.to_plain() if name == "budget" else {name: result.to_plain()}
        write_json(args.out, json.dumps(plain, indent=1))
    return 0


def _results(args: BudgetArguments) -> dict[str, Any]:
    """Each table that was asked for, by name."""
    from jaxscale.budget import compare_models
    from jaxscale.cli.analysis import read_fits
    from jaxscale.flatness import measure_flatness

    fit = read_fits(args.fit) if args.fit is not None else None
    if fit is None:
        _refuse_without_fit(args)
    results: dict[str, Any] = {}
    if any(getattr(args, name) is not None for name in SUPPLY) and not _deadline_only(args):
        results["budget"] = _sheet(args, fit)
    C = results["budget"]["training FLOPs"] if "budget" in results else None
    if fit is not None and (C or any(getattr(args, name) is not None for name in WITH_FIT)):
        results["constrained"] = _constrained(args, fit, C)
    if fit is not None and args.flatness:
        asked = results["constrained"].request.get("flops") if "constrained" in results else None
        results["flatness"] = measure_flatness(fit, [asked] if asked else [])
    if args.compare:
        results["models"] = compare_models(fit)
    if not results:
        raise MisuseError("nothing was asked; for example jaxscale budget --chips 100 --days 30 --tflops 210, "
                          "or --compare")  # fmt: skip
    return results


def _refuse_without_fit(args: BudgetArguments) -> None:
    asked = [name for name in WITH_FIT if getattr(args, name) is not None] + ["flatness"] * args.flatness
    if asked:
        raise MisuseError(f"--{asked[0].replace('_', '-')} needs a law: give --fit FIT.json "
                          "(`jaxscale fit SOURCE --method parametric --out FIT.json` writes one)")  # fmt: skip


def _deadline_only(args: BudgetArguments) -> bool:
    """Whether the chips are there for the deadline or a price, and no other budget is given."""
    return not any((args.flops, args.days, args.params, args.tokens, args.money)) and any(
        (args.deadline_days, args.loss)
    )


def _sheet(args: BudgetArguments, fit: Fit | Fits | None, **other: Any) -> Any:
    """The calculators on what was given; `other` replaces some of it."""
    from jaxscale.budget import calculate_budget
    from jaxscale.fit.result import Fit
    from jaxscale.laws import SIX_ND

    given = {
        "flops": args.flops, "chips": args.chips, "days": args.days,
        "flops_per_s": None if args.tflops is None else args.tflops * 1e12, "chip": args.chip, "mfu": args.mfu,
        "params": args.params, "tokens": args.tokens, "token_law": args.token_law,
        "rounded_law": args.token_law_rounded, "price_per_chip_hour": args.price, "money": args.money,
        "watts_per_chip": args.watts, "pue": args.pue, "carbon_g_per_kwh": args.carbon,
    }  # fmt: skip
    rule = fit.rule if isinstance(fit, Fit) and fit.verdict is None else SIX_ND
    return calculate_budget(rule=rule, **{**given, **other})


def _constrained(args: BudgetArguments, fit: Fit | Fits, C: float | None) -> Any:
    from jaxscale.constrain import constrain_optimum

    return constrain_optimum(
        fit, flops=C if args.loss is None else None, loss=args.loss, max_params=args.max_params,
        max_tokens=args.max_tokens, unique_tokens=args.unique_tokens, R_D=args.r_d, R_N=args.r_n,
        max_train_flops=_deadline_flops(args), served_tokens=args.served_tokens,
        serving_ratio=_serving_ratio(args), price_per_flop=_training_price(args),
    )  # fmt: skip


def _deadline_flops(args: BudgetArguments) -> float | None:
    """Training FLOPs that the chips do before the deadline."""
    if args.deadline_days is None:
        return None
    if args.chips is None or (args.tflops is None and args.chip is None):
        raise MisuseError("--deadline-days needs the chips: give --chips and --tflops or --chip")
    return float(_sheet(args, None, **{**NO_SIZE, "flops": None, "days": args.deadline_days})["training FLOPs"])


def _serving_ratio(args: BudgetArguments) -> float | None:
    """The ratio given, or that of the prices of a FLOP in serving and in training."""
    from jaxscale.budget import price_per_flop

    if args.serve_tflops is None and args.serve_price is None:
        return args.serving_ratio
    if args.serving_ratio is not None:
        raise MisuseError("--serving-ratio and --serve-tflops or --serve-price say the same; leave one out")
    if args.tflops is None and args.chip is None:
        raise MisuseError("--serve-tflops and --serve-price are read beside training: give --tflops or --chip")
    training = _rate(args)
    price = args.price or 1.0
    serve_rate = training if args.serve_tflops is None else args.serve_tflops * 1e12
    return price_per_flop(args.serve_price or price, serve_rate) / price_per_flop(price, training)


def _training_price(args: BudgetArguments) -> float | None:
    """Price of a training FLOP, where a price and a rate are given."""
    from jaxscale.budget import price_per_flop

    if args.price is None or (args.tflops is None and args.chip is None):
        return None
    return price_per_flop(args.price, _rate(args))


def _rate(args: BudgetArguments) -> float:
    """FLOP/s that a chip achieves in training."""
    return float(_sheet(args, None, **{**NO_SIZE, "flops": 1.0, "chips": None, "days": None})["achieved rate"])
