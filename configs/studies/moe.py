"""Mixture of experts or dense? Compared at equal training FLOPs, active parameters counted.

Purpose:  The MLP of every block as one, or as eight experts of which each token passes through two of half its width, so
          that active parameters and FLOPs agree up to the router; each with an IsoFLOP grid and a learning rate of its
          own.
Command:  jaxscale run configs/studies/moe.py --data.files '/work/shared/corpora/*.xz' --out runs/moe
Cost:     planned 5 minutes on 2 CPU cores for the dense half; what experts cost beyond their FLOPs is part of the answer.
Expected: docs/studies/deciding.md has what was measured. Clark et al. 2022 (2202.01169) and Krajewski et al. 2024
          (2402.07871) find experts to pay at every size that they tried, all far larger than these.
"""

from jaxscale.config import DataConfig, Grid, MeshConfig, ModelConfig, Recipe, Study, Tuning, Variant


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="moe",
        model=ModelConfig(n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2),
        recipe=Recipe(
            lr=0.014, embed_lr=3.0, head_lr=3.0, weight_decay=2.0, warmup_fraction=0.2, final_fraction=0.0,
            batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=128, microbatch_seqs=2,
        ),
        variants=(
            Variant("dense"),
            Variant("experts-8", ("model.n_experts=8", "model.experts_per_token=2", "model.mlp_ratio=2.0")),
        ),
        tuning=Tuning(rates=5, step=1.0, width=32, seeds=2),
        grid=Grid(
            budgets=(2e10, 8e10, 3.2e11),
            widths=(8, 12, 16, 20, 24, 32, 40, 48, 64),
            tokens_per_param=20.0,
            spread=4.0,
            sizes_per_budget=6,
            seeds=(3, 2, 2),
        ),
        data=DataConfig(files=("corpus/**/*.txt",), tokenizer="bytes", val_tokens=262_144, max_epochs=1.0),
        mesh=MeshConfig(packs="process"),
        forecast_flops=(3.2e12, 3.2e13),
    )  # fmt: skip
