"""One, two, four or eight blocks: a law for each depth, the width doing the growing.

Purpose:  What is a second, a fourth, an eighth layer worth? Every variant has one depth at all sizes and grows in
          width alone, so that a law of depth 1 can be held against one of depth 8 at equal compute. Parameterization
          completep, base depth 2: the residual branches of all depths add up to the same size (2505.01618), and no
          variant is at a disadvantage from a rate that suits another depth; each is tuned by itself as well.
Command:  jaxscale run configs/studies/depth.py --data.files 'CORPUS/*.xz' --out runs/depth
          jaxscale compare runs/depth
Cost:     planned 4 minutes on 2 CPU cores, 1.1e13 FLOPs, and about a minute for the rates;
          13 minutes on cores that had other work. docs/studies/deciding.md has what it gave.
Expected: Kaplan et al. 2020 (section 3.2): models of one layer fall off their law, from two layers on the loss follows
          N without the embedding. One layer of attention cannot copy by induction (Olsson et al. 2022, 2209.11895), so
          its curve should flatten where text repeats itself.
"""

from jaxscale.config import DataConfig, Grid, ModelConfig, Recipe, Study, Tuning, Variant


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="depth",
        model=ModelConfig(
            n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2,
            parameterization="completep",
        ),
        recipe=Recipe(
            lr=0.014, embed_lr=3.0, head_lr=3.0, weight_decay=2.0, warmup_fraction=0.2, final_fraction=0.0,
            batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=128, microbatch_seqs=2,
        ),
        grid=Grid(
            budgets=(4e10, 1e11, 2.5e11),
            widths=(*range(8, 38, 2), *range(40, 76, 4), 80, 88, 96, 112, 128),
            tokens_per_param=20.0,
            spread=4.0,
            sizes_per_budget=5,
            seeds=(2, 2, 1),
        ),
        data=DataConfig(files=("corpus/**/*.txt",), tokenizer="bytes", val_tokens=262_144, max_epochs=1.0),
        variants=tuple(Variant(f"depth-{layers}", (f"model.n_layers={layers}",)) for layers in (1, 2, 4, 8)),
        tuning=Tuning(rates=5, tokens=3e5),
    )  # fmt: skip
