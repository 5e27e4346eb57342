"""The cells on which recipes are compared: two IsoFLOP budgets, many seeds.

Purpose:  A change of the recipe is kept when it lowers the loss over the whole curve, both arms and the minimum, or
          the difference between seeds. Cells of two recipes with the same seed share data order, so that their
          difference is far less noisy than either.
Command:  jaxscale run configs/studies/recipe.py --recipe.final-fraction 0 --name final0
          (all steps of the search, and their table: python tests/bench/recipe.py --out runs/recipe)
Cost:     30 runs, 5.5e12 FLOPs, about 2 minutes on 2 CPU cores.
Expected: docs/studies/recipe.md has every step's gain on English. Two budgets make no loss law: `run` says so and
          exits with 1, the runs and observations.csv are there.
"""

from jaxscale.config import DataConfig, Grid, MeshConfig, ModelConfig, Recipe, Study


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="recipe",
        model=ModelConfig(n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2),
        recipe=Recipe(lr=0.02, weight_decay=2.0, batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=256),
        grid=Grid(
            budgets=(1e11, 3.5e11),
            widths=(12, 16, 24, 32, 48, 64, 80),
            tokens_per_param=20.0,
            spread=4.0,
            sizes_per_budget=5,
            seeds=(4, 2),
        ),
        data=DataConfig(tokenizer="bytes", val_tokens=262_144, max_epochs=1.0),
        mesh=MeshConfig(packs="auto"),
    )
