"""Transformer or LSTM? The question of Kaplan et al. 2020 (figure 7), at toy size, with a law for each.

Purpose:  A transformer and an LSTM of one width, depth, embedding and head, each with an IsoFLOP grid and a learning
          rate of its own: which one is to be built at ten and a hundred times the compute, and how much more compute
          would the other one need for the same loss?
Command:  jaxscale run configs/studies/lstm.py --data.files '/work/shared/corpora/*.xz' --out runs/lstm
Cost:     20 sweep runs and 84 cells of 7.6e12 FLOPs, planned 3 minutes on 2 CPU cores; an LSTM's steps in time come
          one after another and cost more seconds a FLOP, which is part of the answer (equal wall-clock).
Expected: docs/studies/deciding.md has what was measured. Contexts are 64 bytes: Kaplan et al. found LSTMs to fall
          behind on later positions of contexts of 1024, so a tie here would not contradict them.
"""

from jaxscale.config import DataConfig, Grid, MeshConfig, ModelConfig, Recipe, Study, Tuning, Variant


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="lstm",
        model=ModelConfig(n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2),
        recipe=Recipe(
            lr=0.014, embed_lr=3.0, head_lr=3.0, weight_decay=2.0, warmup_fraction=0.2, final_fraction=0.0,
            batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=128, microbatch_seqs=2,
        ),
        variants=(Variant("transformer"), Variant("lstm", ("model.architecture=lstm",))),
        tuning=Tuning(rates=5, step=1.0, width=32, seeds=2),
        grid=Grid(
            budgets=(1.25e10, 5e10, 2e11),
            widths=(8, 12, 16, 20, 24, 32, 40, 48, 64),
            tokens_per_param=20.0,
            spread=4.0,
            sizes_per_budget=6,
            seeds=(3, 2, 2),
        ),
        data=DataConfig(files=("corpus/**/*.txt",), tokenizer="bytes", val_tokens=262_144, max_epochs=1.0),
        mesh=MeshConfig(packs="process"),
        forecast_flops=(2e12, 2e13),
    )  # fmt: skip
