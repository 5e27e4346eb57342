"""The scaling laws as values: what they predict, and what they say is optimal. No fitter, no I/O.

N parameters, D training tokens, C training FLOPs, U unique tokens, L loss in nats per token. `LAWS` names
every law that `fit --law` can fit; a new one is a class with `loss` and `guess` (docs/laws.md adds one).
"""

from jaxscale.laws.base import SIX_ND, FlopRule, Frontier, Law, Optimum, guess_shares, minimise, namespace
from jaxscale.laws.compute import BrokenPower, KaplanCompute, KaplanData, KaplanSize, LossLaw, PowerLaw
from jaxscale.laws.curves import CURVES
from jaxscale.laws.repetition import MUENNIGHOFF_2023, Repetition, effective
from jaxscale.laws.surface import (
    KAPLAN_2020,
    Chinchilla,
    ChinchillaTied,
    Kaplan,
    KaplanBare,
    Rosenfeld,
    RosenfeldTransition,
)

__all__ = [
    "CURVES",
    "KAPLAN_2020",
    "LAWS",
    "MUENNIGHOFF_2023",
    "SIX_ND",
    "BrokenPower",
    "Chinchilla",
    "ChinchillaTied",
    "FlopRule",
    "Frontier",
    "Kaplan",
    "KaplanBare",
    "KaplanCompute",
    "KaplanData",
    "KaplanSize",
    "Law",
    "LossLaw",
    "Optimum",
    "PowerLaw",
    "Repetition",
    "Rosenfeld",
    "RosenfeldTransition",
    "effective",
    "find_law",
    "guess_shares",
    "minimise",
    "namespace",
    "register_law",
]  # fmt: skip

LAWS: dict[str, type[Law]] = {}
"""Laws by name."""


def register_law(law: type[Law]) -> type[Law]:
    """Make a law known to `fit --law` by its name; usable as a decorator."""
    LAWS[law.name] = law
    return law


def find_law(name: str) -> type[Law]:
    """The law of that name; MisuseError proposes the nearest."""
    import difflib

    from jaxscale.errors import MisuseError

    if name in LAWS:
        return LAWS[name]
    near = difflib.get_close_matches(name, LAWS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the laws are {', '.join(LAWS)}"
    raise MisuseError(f"law {name!r} is unknown; {hint}")


for _law in (
    Chinchilla, ChinchillaTied, Kaplan, KaplanBare, Rosenfeld, RosenfeldTransition, Repetition,
    KaplanSize, KaplanData, KaplanCompute, LossLaw, BrokenPower,
    *(law for law in CURVES.values() if law.name != "cortes"),  # cortes takes training errors too: fit_cortes
):  # fmt: skip
    register_law(_law)
