"""Filter harder and repeat more, or not: the best share of a text to train on, for every budget.

Purpose:  The text most like a reference (hashed n-grams, Xie et al. 2023, 2302.03169) is better for the target and
          less, so a longer run reads it more often. The loss on a target text says how hard to filter.
Command:  jaxscale run configs/studies/quality.py --data.files 'corpora/[gfjw]*' 'corpora/sword*' \\
              --data.quality-from 'corpora/milton*' --data.val-files 'corpora/shakespeare*'
          python -c "import jaxscale as js; print(js.find_filter('runs/quality'))"
Cost:     50 runs, 2.8e13 FLOPs; planned 7 minutes on 2 CPU cores, and half a minute to rank the text once.
Expected: a tenth of the text or less is best at both budgets; at the larger one the smallest share is read several
          times, and the best share is no smaller.
All shares read one set of token files and validate on the same text. The model and recipe are those of
isoflop_english.
"""

from jaxscale.config import DataConfig, Grid, ModelConfig, Recipe, Study, Variant

SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)
"""Of the training text."""


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="quality",
        model=ModelConfig(n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2),
        recipe=Recipe(
            lr=0.014, embed_lr=3.0, head_lr=3.0, weight_decay=2.0, warmup_fraction=0.2, final_fraction=0.0,
            batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=128, microbatch_seqs=2,
        ),
        grid=Grid(
            budgets=(1e11, 1e12),
            widths=(16, 20, 24, 32, 40, 48, 56, 64, 80, 96),
            tokens_per_param=32.0,
            tokens_per_param_exponent=0.15,
            spread=4.0,
            sizes_per_budget=5,
        ),
        data=DataConfig(
            files=("corpora/[gfjw]*", "corpora/sword*"), quality_from=("corpora/milton*",),
            val_files=("corpora/shakespeare*",), tokenizer="bytes", val_tokens=262_144, document_bytes=4096,
            max_epochs=100.0,
        ),
        variants=tuple(Variant(f"keep{share:g}", (f"data.quality_keep={share:g}",)) for share in SHARES),
    )  # fmt: skip
