"""Deep or wide at a fixed number of parameters: a law for each ratio of width to depth, 4 to 25.

Purpose:  Does the shape move the loss? Each variant keeps d_model / n_layers within 30% of its own over the whole
          grid (`grid.aspect` makes the depth follow the width, `grid.aspect_range` drops the sizes whose whole number
          of layers cannot), so that at equal N the models differ in shape alone. Parameterization completep: it is the
          one whose learning rate is meant to hold over depth (2505.01618), and depth grows within each variant and
          between them; under mup a deep variant would be tuned at another depth than it is used at.
Command:  jaxscale run configs/studies/aspect.py --data.files 'CORPUS/*.xz' --out runs/aspect
          jaxscale compare runs/aspect
Cost:     60 cells of 1.6e13 FLOPs and 15 sweep runs; planned 5 minutes on 2 CPU cores, 10 on cores that had other work.
Expected: Kaplan et al. 2020 (figure 5): at fixed N the loss moves by under 3% while the ratio moves by a factor of 40.
Farther:  a ratio A needs a depth of one at least, so N of 12 A^2 + 512 A with this vocabulary, and some smaller models
          below the optimum: 64 begins at budgets of 1e12 FLOPs, 256 at 1e14. Give those budgets and one more variant.
          Heads and d_ff ask in the same way: "model.head_dim=16" leaves N as it is, "model.mlp_ratio=2" moves it, and
          the law of each variant is in N.
"""

from jaxscale.config import DataConfig, Grid, ModelConfig, Recipe, Study, Tuning, Variant


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="aspect",
        model=ModelConfig(
            n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2,
            parameterization="completep",
        ),
        recipe=Recipe(
            lr=0.014, embed_lr=3.0, head_lr=3.0, weight_decay=2.0, warmup_fraction=0.2, final_fraction=0.0,
            batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=128, microbatch_seqs=2,
        ),
        grid=Grid(
            budgets=(1e11, 2.5e11, 6e11),
            widths=(*range(12, 38, 2), *range(40, 76, 4), 80, 88, 96, 112, 128),
            tokens_per_param=20.0,
            spread=4.0,
            sizes_per_budget=5,
            seeds=(2, 1),
            aspect=8.0,
            aspect_range=(6.2, 10.4),
        ),
        data=DataConfig(files=("corpus/**/*.txt",), tokenizer="bytes", val_tokens=262_144, max_epochs=1.0),
        variants=tuple(
            Variant(f"aspect-{a}", (f"grid.aspect={a}", f"grid.aspect_range={a / 1.3:.3g},{a * 1.3:.3g}"))
            for a in (4, 10, 25)
        ),
        tuning=Tuning(rates=5, tokens=3e5),
    )  # fmt: skip
