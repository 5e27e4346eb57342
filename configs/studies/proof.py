"""The proof: a grid up to 1e12 FLOPs, from which runs at 10 and 30 times that are forecast before they are trained.

Purpose:  Six budgets a factor 2 apart with repeated seeds, so that the minima stand above the seed noise and the curve
          of the best loss has a shape to extrapolate. The recipe is that of docs/studies/recipe.md. The runs that test
          the forecast are another study, configs/studies/proof_targets.py.
Command:  jaxscale run configs/studies/proof.py --data.files 'CORPUS/*.xz' --out runs/proof
          then fit, forecast and `jaxscale register add`, as docs/studies/proof.md tells.
Cost:     about 20 minutes on 2 CPU cores; models of 6 thousand to 270 thousand parameters.
Expected: docs/studies/proof.md has what it forecast on two texts, and what was measured.
"""

from jaxscale.config import DataConfig, Grid, MeshConfig, ModelConfig, Recipe, Study


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="proof",
        model=ModelConfig(n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2),
        recipe=Recipe(
            lr=0.014, embed_lr=3.0, head_lr=3.0, weight_decay=2.0, warmup_fraction=0.2, final_fraction=0.0,
            batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=128, microbatch_seqs=2,
        ),
        grid=Grid(
            budgets=(3e10, 6e10, 1.2e11, 2.5e11, 5e11, 1e12),
            widths=(8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160),
            tokens_per_param=22.0,
            spread=4.0,
            sizes_per_budget=7,
            seeds=(4, 4, 3, 3, 2, 2),
        ),
        data=DataConfig(tokenizer="bytes", val_tokens=524_288, max_epochs=1.0),
        mesh=MeshConfig(packs="auto"),
        forecast_flops=(1e13, 3e13),
    )  # fmt: skip
