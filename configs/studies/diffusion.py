"""Masked diffusion against autoregression on English bytes: IsoFLOP grids side by side, each with its own rates.

Purpose:  How much more compute does a model need that fills in hidden bytes from both sides, to come to the same nats
          a byte? Both variants get the same sweep of the learning rate (5 rates a doubling apart), then the same
          budgets; they share text, order, batch rule, depth and widths. Every FLOP is counted: diffusion attends to
          all positions, 12 L T d where autoregression has 6.
Command:  jaxscale run configs/studies/diffusion.py --data.files 'corpus/**/*.txt'
          jaxscale compare runs/diffusion
Cost:     COST
Expected: EXPECTED
Read it as a comparison of bounds: the diffusion loss is an upper bound of the text's negative log-likelihood (docs/
diffusion.md), the autoregressive loss is that likelihood itself. So what it shows is the compute that diffusion needs
for an equal bound, as in the literature. Nie et al. (2024, 2410.18514) report scaling at a similar rate and a constant
factor of about 16 in compute between the two on their models and text; that figure is from memory and was not looked
up. Diffusion is also not shown the id before a window, of which an autoregressive model makes its first prediction.
"""

from jaxscale.config import DataConfig, Grid, MeshConfig, ModelConfig, Recipe, Study, Tuning, Variant


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="diffusion",
        model=ModelConfig(n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2),
        recipe=Recipe(
            lr=0.014, embed_lr=3.0, head_lr=3.0, weight_decay=2.0, warmup_fraction=0.2, final_fraction=0.0,
            batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=128, microbatch_seqs=2,
        ),
        grid=Grid(
            budgets=(3e10, 1e11, 3e11),
            widths=(8, 12, 16, 20, 24, 32, 40, 48, 64),
            tokens_per_param=20.0,
            spread=6.0,
            sizes_per_budget=6,
            seeds=(2, 1, 1),
        ),
        data=DataConfig(files=("corpus/**/*.txt",), tokenizer="bytes", val_tokens=131_072, max_epochs=1.0),
        mesh=MeshConfig(packs="auto"),
        variants=(
            Variant("autoregressive"),
            Variant("masked_diffusion", ("model.objective=masked_diffusion",)),
        ),
        tuning=Tuning(rates=5, step=1.0, more=2, seeds=1),
        forecast_flops=(3e12,),
    )  # fmt: skip
