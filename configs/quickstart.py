"""Quick start."""

from jaxscale.config import Grid, Study


def get_study() -> Study:
    return Study(name="quickstart", grid=Grid(budgets=(3e10, 1e11, 3e11), holdout=(1e12,)))
