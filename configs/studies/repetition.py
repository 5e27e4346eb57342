"""What repeated text is worth: the same runs on all of the text and on 1e6, 2.5e5 and 6.25e4 unique tokens of it.

Purpose:  The decay R_D of repeated tokens (Muennighoff et al. 2023, 2305.16264) of one's own text and models: at the
          larger budget the middle size reads 4e6 bytes, that is about 1, 4, 16 and 64 epochs.
Command:  jaxscale run configs/studies/repetition.py --data.files 'corpus/**/*.txt'
          jaxscale fit runs/repetition --method parametric --law repetition --out repetition.json
Cost:     40 runs, 2.2e13 FLOPs; planned 6 minutes on 2 CPU cores.
Expected: up to 4 epochs are worth nearly as much as fresh text, 64 are not; U in observations.csv is what was read.
The smaller subsets are parts of the larger ones; all read one set of token files and validate on the same text. The
model and recipe are those of isoflop_english.
"""

from jaxscale.config import DataConfig, Grid, ModelConfig, Recipe, Study, Variant


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="repetition",
        model=ModelConfig(n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2),
        recipe=Recipe(
            lr=0.014, embed_lr=3.0, head_lr=3.0, weight_decay=2.0, warmup_fraction=0.2, final_fraction=0.0,
            batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=128, microbatch_seqs=2,
        ),
        grid=Grid(
            budgets=(1e11, 1e12),
            widths=(12, 16, 20, 24, 32, 40, 48, 56, 64, 80, 96),
            tokens_per_param=32.0,
            tokens_per_param_exponent=0.15,
            spread=4.0,
            sizes_per_budget=5,
        ),
        data=DataConfig(
            files=("corpus/**/*.txt",), tokenizer="bytes", val_tokens=262_144, document_bytes=4096, max_epochs=500.0
        ),
        variants=(
            Variant("fresh"),
            Variant("u1m", ("data.unique_tokens=1e6",)),
            Variant("u250k", ("data.unique_tokens=2.5e5",)),
            Variant("u62k", ("data.unique_tokens=6.25e4",)),
        ),
    )  # fmt: skip
