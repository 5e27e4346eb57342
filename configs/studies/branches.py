"""Cooldown branches at the quick start's scale: one WSD trunk a size and seed, a decay for every budget.

Purpose:  More evidence per FLOP (docs/branches.md): six budgets a factor 2 apart, every size at all budgets that keep
          it, two seeds. The runs of one size share the constant part of their schedule. The same cells as runs of
          their own: add --grid.schedule runs --name wsd, and --recipe.schedule cosine for cosine runs.
Command:  jaxscale run configs/studies/branches.py
          (all three arms and their comparison: python tests/bench/branches.py --out runs/branches_study)
Cost:     planned 1.5e13 FLOPs, 5 minutes on 2 CPU cores; as runs of their own 2.3e13 FLOPs, 7.5 minutes (not yet run).
Expected: docs/branches.md has the same on the proof's grid: IsoFLOP exponents agree, the losses of long branches end
          too high, so keep the budgets within a factor of 8 where the loss counts.
"""

from jaxscale.config import DataConfig, Grid, ModelConfig, Recipe, Study


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="branches",
        model=ModelConfig(n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2),
        recipe=Recipe(
            lr=0.014, embed_lr=3.0, head_lr=3.0, weight_decay=2.0, warmup_fraction=0.05, final_fraction=0.0,
            batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=128, microbatch_seqs=2,
            schedule="wsd", decay_fraction=0.3,
        ),
        grid=Grid(
            budgets=(2.5e10, 5e10, 1e11, 2e11, 4e11, 8e11),
            widths=(8, 12, 16, 24, 32, 40, 48, 64, 80, 96),
            tokens_per_param=20.0,
            spread=5.0,
            sizes_per_budget=8,
            seeds=(2,),
            schedule="wsd-branches",
        ),
        data=DataConfig(tokenizer="bytes", val_tokens=131_072, max_epochs=1.0),
    )  # fmt: skip
