"""The critical batch size, for real: batches of 256 to 8192 tokens, three rates each, two sizes, four horizons.

Purpose:  Steps and tokens to a loss by batch, B_crit(L) and B_crit(D) fitted and compared, the gradient noise scale
          measured while training beside them (docs/batch.md).
Command:  jaxscale run configs/studies/batch.py
          jaxscale batch runs/batch --out runs/batch/batch.json --figure runs/batch/figures/batch
          and with it in any study of the same text and recipe: --recipe.batch-from runs/batch/batch.json
Cost:     1.3e13 FLOPs that are made (144 branches of 36 trunks): 8 minutes on 2 CPU cores that had other work.
Expected: B_crit of 1400 to 9000 tokens that grows with D (docs/studies/deciding.md);
          docs/studies/lr_horizon.md has at 524k tokens and width 32 the losses 1.888, 1.910 and 2.020 at
          batches of 256, 512 and 2048, which is a B_crit of about 2000.

Schedule: warmup, a constant rate and a linear decay (wsd); the horizons of one size, batch and rate are decays that
branch off one trunk. So every loss is that of a run which was trained to its own end: a cosine curve cut short is not,
and four cosine runs each cost half as much again. Large batches get longer horizons, since they need more tokens to the
same loss: a sweep at equal D has no loss that all its batches share.
Rates: the law measured in docs/studies/lr_horizon.md, rate ~ B^.5 D^-.32 from .0129 at 512 tokens a batch and D = 524k,
with a factor 2 to both sides; `jaxscale batch` takes the best of the three for each batch and horizon and says where
it is the first or last. A microbatch is two sequences, so that even the smallest batch has two to compare.
"""

from jaxscale.config import DataConfig, Grid, ModelConfig, Recipe, Study, Variant

BASE = (2e10, 4e10, 8e10, 1.6e11)
"""Budgets of batches that cost few tokens more than the fewest; others times LONGER."""
LONGER = {256: 1, 512: 1, 1024: 1, 2048: 2, 4096: 2, 8192: 4}
"""Factor in D by batch in tokens, near 1 + B/B_crit at the B_crit expected."""
FACTORS = (0.5, 1.0, 2.0)


def _variant(batch: int, factor: float) -> Variant:
    longer = LONGER[batch]
    lr = 0.0129 * (batch / 512) ** 0.5 * longer**-0.32 * factor
    budgets = ",".join(f"{budget * longer:g}" for budget in BASE)
    return Variant(
        name=f"{batch}x{factor:g}",
        changes=(f"recipe.batch_coefficient={batch}", f"recipe.lr={lr:.3g}", f"grid.budgets={budgets}"),
    )


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="batch",
        model=ModelConfig(n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2),
        recipe=Recipe(
            embed_lr=3.0, head_lr=3.0, weight_decay=2.0, warmup_fraction=0.1, final_fraction=0.0, schedule="wsd",
            decay_fraction=0.3, batch_coefficient=512.0, batch_exponent=0.0, microbatch_seqs=2, measure_noise=True,
        ),
        grid=Grid(
            budgets=BASE, widths=(16, 32), spread=100.0, sizes_per_budget=2, bracket=False, min_steps=40,
            schedule="wsd-branches",
        ),
        data=DataConfig(tokenizer="bytes", val_tokens=131_072, max_epochs=1.0),
        variants=tuple(_variant(batch, factor) for batch in LONGER for factor in FACTORS),
    )  # fmt: skip
