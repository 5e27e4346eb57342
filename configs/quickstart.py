"""Quick start: measure a scaling law on this machine's CPU in a few minutes.

Purpose:  The whole job at toy size on text that every machine has, the Python standard library's sources as
          bytes: four IsoFLOP budgets, fits by all three approaches, a forecast by the declared one (IsoFLOP
          minima) with the average beside it, and a backtest against a fifth budget that the fits never see.
Command:  bash launch/local.sh configs/quickstart.py
          (in an environment of your own: jaxscale run configs/quickstart.py)
Cost:     about 5 minutes on 2 CPU cores; 44 runs of 6 thousand to 271 thousand parameters.
Expected: runs/quickstart/report.html; N_opt ~ C^a and D_opt ~ C^b with a and b both near one half, the loss
          of the held-out budget predicted within a few percent. Seeds differ by about .8% of the loss.
Your own text: add --data.files 'corpus/**/*.txt' --name mine
"""

from jaxscale.config import DataConfig, Grid, ModelConfig, Recipe, Study


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="quickstart",
        model=ModelConfig(n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2),
        recipe=Recipe(
            lr=0.014, embed_lr=3.0, head_lr=3.0, weight_decay=2.0, warmup_fraction=0.2, final_fraction=0.0,
            batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=128, microbatch_seqs=2,
        ),
        grid=Grid(
            budgets=(2.5e10, 7.5e10, 2.25e11, 6.75e11),
            widths=(8, 12, 16, 24, 32, 40, 48, 64, 80, 96),
            tokens_per_param=20.0,
            spread=5.0,
            sizes_per_budget=6,
            seeds=(3, 2, 1),
            holdout=(2e12,),
            holdout_sizes=2,
        ),
        data=DataConfig(tokenizer="bytes", val_tokens=131_072, max_epochs=1.0),
    )  # fmt: skip
