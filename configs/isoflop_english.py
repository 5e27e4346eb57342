"""IsoFLOP grid on your own English text: the quick start's study at ten times its compute.

Purpose:  Laws worth deciding with, on text of your own (.txt .md .jsonl .parquet, also .xz .gz .zst): four
          budgets from 3e11 to 1e13 FLOPs with repeated seeds at the small ones, and 3e13 held out.
Command:  bash launch/local.sh configs/isoflop_english.py --data.files 'corpus/**/*.txt'
Cost:     planned 40 minutes on 2 CPU cores; without the held-out budget it took 20, six tasks evaluated twice a run
          (docs/studies/downstream.md). Models of 14 to 700 thousand parameters. The smallest models of the largest
          budget read 45 million bytes: give that much, or allow --data.max-epochs 4.
Expected: runs/isoflop_english/report.html; on 80 MB of public-domain English the minima are interior at every
          budget and D/N grows from near 40 to 75 bytes per parameter (docs/studies/proof.md).
"""

from jaxscale.config import DataConfig, Grid, ModelConfig, Recipe, Study


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="isoflop_english",
        model=ModelConfig(n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2),
        recipe=Recipe(
            lr=0.014, embed_lr=3.0, head_lr=3.0, weight_decay=2.0, warmup_fraction=0.2, final_fraction=0.0,
            batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=128, microbatch_seqs=2,
        ),
        grid=Grid(
            budgets=(3e11, 1e12, 3e12, 1e13),
            widths=(16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256),
            tokens_per_param=38.0,
            tokens_per_param_exponent=0.15,
            spread=4.5,
            sizes_per_budget=7,
            seeds=(3, 2, 1, 1),
            holdout=(3e13,),
            holdout_sizes=2,
        ),
        data=DataConfig(files=("corpus/**/*.txt",), tokenizer="bytes", val_tokens=262_144, max_epochs=1.0),
    )  # fmt: skip
