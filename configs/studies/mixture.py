"""The best mixture of two sources: a dictionary and a commentary in five shares.

Purpose:  How much of each source to train on, for the loss on both in any weights: by a law of each text's loss over
          the shares (Ye et al. 2024, 2403.16952) and by a parabola, at two budgets.
Command:  jaxscale run configs/studies/mixture.py --data.files 'corpora/gcide*' 'corpora/sword_tdavid*'
          jaxscale mixture runs/mixture --weights gcide=.5 sword_tdavid=.5
Cost:     50 runs, 2.8e13 FLOPs; planned 7 minutes on 2 CPU cores.
Expected: each text is predicted best by the models that read most of it, so that an even weighting asks for a mixture
          of both; the best share of the validation text's own weights lies nearer to its larger part.
The sources are files of data.files by name (gcide, 40 MB; sword_tdavid, 12 MB: no share here repeats it). All shares
read one set of token files and validate on the same text. The model and recipe are those of isoflop_english.
"""

from jaxscale.config import DataConfig, Grid, ModelConfig, Recipe, Study, Variant

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of the dictionary."""


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="mixture",
        model=ModelConfig(n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2),
        recipe=Recipe(
            lr=0.014, embed_lr=3.0, head_lr=3.0, weight_decay=2.0, warmup_fraction=0.2, final_fraction=0.0,
            batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=128, microbatch_seqs=2,
        ),
        grid=Grid(
            budgets=(1e11, 4e11),
            widths=(16, 20, 24, 32, 40, 48, 56, 64, 80, 96),
            tokens_per_param=32.0,
            tokens_per_param_exponent=0.15,
            spread=4.0,
            sizes_per_budget=5,
        ),
        data=DataConfig(
            files=("corpora/gcide*", "corpora/sword_tdavid*"), mixture=(("*gcide*", 0.5), ("*sword_tdavid*", 0.5)),
            tokenizer="bytes", val_tokens=524_288, document_bytes=4096, max_epochs=1.0,
        ),
        variants=tuple(Variant(f"dict{share * 100:.0f}", (_mix(share),)) for share in SHARES),
    )  # fmt: skip


def _mix(share: float) -> str:
    return f"data.mixture=(('*gcide*',{share:g}),('*sword_tdavid*',{1 - share:g}))"
