"""Does one learning rate serve every width? Rates x widths x seeds, with muP and without it.

Purpose:  Under muP the best learning rate should not move with width, so that a sweep on small models serves large
          ones. This sweep spans a factor of 8 in width, each run on the same 1M tokens, and says how far the best
          rate moves per doubling and what using the smallest width's rate costs at the largest, beside the same
          figures of the standard parameterization.
Command:  jaxscale mup sweep configs/mup_transfer.py --widths 16 32 64 --seeds 3 --tokens 1048576 \
              --lrs .00125 .0025 .005 .00707 .01 .0141 .02 .04 .08 --out runs/mup_transfer
          and once more with --widths 128, where .08 is left out: the folder keeps both. docs/studies/mup_transfer.md
          has the three commands of its study (--data.files 'corpus/**/*.txt' for your own text).
          Then over depth: --parameterizations completep mup --widths 32 --depths 2 4 8 16 --tokens 524288
Cost:     about an hour on 2 CPU cores, stopped and gone on with at will; models of 14 to 459 thousand parameters.
Expected: docs/studies/mup_transfer.md has the figures of one such sweep, on English.
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
