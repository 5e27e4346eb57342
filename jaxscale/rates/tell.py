"""What a plan says about rates from a sweep: the rate, both corrections, how far they carry it, and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jaxscale.format import format_count, format_factor
from jaxscale.rates.law import Exponent, RateLaw, Z
from jaxscale.runs import RunSpec

__all__ = ["FAR", "describe_rates", "tell_rates"]

FAR = 30.0
"""Factor in D beyond the sweep's own horizons from which the plan warns."""
SOURCES = {"horizon": "Bjorck et al. 2409.19913", "batch": "Malladi et al. 2205.10287"}


def describe_rates(law: RateLaw) -> tuple[str, ...]:
    """The rate and where it is from, the two corrections, and the law's notes, in sentences."""
    shapes = sorted({one.width for one in law.optima})
    widths = f"width{'s' * (len(shapes) > 1)} {', '.join(map(str, shapes))}"
    count = f"{len(law.optima)} optima" if len(law.optima) > 1 else "one optimum"
    return (
        f"learning rate: {law.lr:.3g} (95%: within {format_factor(2 ** (Z * law.error))}) at D = "
        f"{format_count(law.tokens)} and batches of {format_count(law.batch_tokens)} tokens, from {count} at "
        f"{widths}{f' in {law.source}' if law.source else ''}",
        f"horizon: rate ~ D^{_words('horizon', law.horizon)}",
        f"batch: rate ~ B^{_words('batch', law.batch)}",
        *law.notes,
    )


def _words(name: str, exponent: Exponent) -> str:
    low, high = exponent.interval
    bounds = f"{exponent.value:.2f} [{low:.2f}, {high:.2f}]"
    if exponent.source == "measured":
        return f"{bounds}, measured in the sweep"
    if exponent.source == "asked":
        return f"{exponent.value:g}, as recipe.lr_{name}_exponent asks"
    return f"{bounds}, assumed: the sweep does not tell it, and papers disagree ({SOURCES[name]} and others)"


def tell_rates(law: RateLaw, specs: Sequence[RunSpec]) -> tuple[str, ...]:
    """`describe_rates`, then what the rates come to over the runs of a plan and how far they were carried."""
    slow, fast = (pick(spec.lr for spec in specs) for pick in (min, max))
    least, most = (pick(spec.tokens / law.tokens for spec in specs) for pick in (min, max))
    doubt = max(law.factor(spec.tokens, spec.batch_seqs * spec.model.seq_len) for spec in specs)
    told = (f"learning rates {slow:g} to {fast:g}: cells have {format_factor(least)} to {format_factor(most)} the "
            f"sweep's D; 95%: within {format_factor(doubt)} at the farthest, if the powers hold")  # fmt: skip
    return (*describe_rates(law), told, *_warnings(law, specs))


def _warnings(law: RateLaw, specs: Sequence[RunSpec]) -> Iterator[str]:
    """Carried far in D, beyond the widths swept, or over a depth that muP says nothing about."""
    reach = max(law.reach(spec.tokens) for spec in specs)
    if reach > FAR:
        yield (f"WARNING: the farthest cell's D is {format_factor(reach)} beyond the horizons swept, more than "
               f"{FAR:g}x; the exponent decides its rate: sweep nearer to it, or at several horizons")  # fmt: skip
    widths, depths = {one.width for one in law.optima}, {one.depth for one in law.optima}
    out = sorted({s.model.d_model for s in specs if not min(widths) <= s.model.d_model <= max(widths)})
    if out:
        yield (f"rates carried by muP to width{'s' * (len(out) > 1)} {', '.join(map(str, out))} outside the sweep's "
               f"{min(widths)} to {max(widths)}")  # fmt: skip
    deep = sorted({s.model.n_layers for s in specs} - depths)
    if deep and specs[0].model.parameterization == "mup":
        yield (f"WARNING: muP carries no rate over depth: cells have {', '.join(map(str, deep))} layers and the sweep "
               f"{', '.join(map(str, sorted(depths)))}; use model.parameterization completep")  # fmt: skip
