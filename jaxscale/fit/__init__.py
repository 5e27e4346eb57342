"""Observations -> Fit: approach 1 (envelope), 2 (isoflop), 3 (parametric), and all together."""

from jaxscale.fit.envelope import fit_envelope
from jaxscale.fit.isoflop import fit_isoflop
from jaxscale.fit.parametric import fit_parametric
from jaxscale.fit.result import Budget, Estimate, Fit, Fits
from jaxscale.fit.together import fit_all

__all__ = ["Budget", "Estimate", "Fit", "Fits", "fit_all", "fit_envelope", "fit_isoflop", "fit_parametric"]
