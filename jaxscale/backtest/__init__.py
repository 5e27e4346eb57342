"""Would the law have known? Fit on less, predict the rest, report the error.

splits    what is fitted and what is predicted: rolling origins, corners in (N, D), held-out runs
scores    one prediction against its measurement: error, its worth in compute, interval hit and score
lowest    what one would do without a fitted law: a power law through the lowest runs
summary   groups by method, quantity and ratio; which is best, and why that chooses no winner
"""

from jaxscale.backtest.rows import Backtest, backtest_fit

__all__ = ["Backtest", "backtest_fit"]
