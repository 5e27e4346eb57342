"""Does one learning rate serve every width? The same grid at several rates, widths spanning a factor of 8.

Purpose:  Under muP the best learning rate should not move with width. This study trains widths 16 to 128 at one
          budget; run it at a few rates and compare the best rate of each width.
Command:  for lr in 0.005 0.01 0.02 0.04 0.08; do
              bash launch/local.sh configs/mup_transfer.py --recipe.lr $lr --out runs/mup_transfer/$lr
          done
          and the same with --model.parameterization standard to see what muP is for.
Cost:     about two minutes a rate on 2 CPU cores.
Expected: the loss of each width is lowest at the same rate, up to seed noise of about half a percent. Widths share
          the budget, so their horizons differ, and the optimum may drift a little with them (Bjorck et al. 2024).
"""

from jaxscale.config import DataConfig, Grid, ModelConfig, Recipe, Study


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="mup_transfer",
        model=ModelConfig(n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2),
        recipe=Recipe(lr=0.02, weight_decay=2.0, batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=256),
        grid=Grid(budgets=(1e12,), widths=(16, 24, 32, 48, 64, 96, 128), tokens_per_param=20.0, spread=8.0, seeds=(2,)),
        data=DataConfig(tokenizer="bytes", val_tokens=131_072, max_epochs=1.5),
    )
