"""From compute to task accuracy, for real: an IsoFLOP grid on English, evaluated on tasks made from held-out text.

Purpose:  Measure what small models know as they grow (word order, last word, continuation), and forecast a model of ten
          times the grid's largest compute before it is trained.
Command:  python tests/bench/split_corpora.py --out /tmp/corpora95     # the tasks' own text is left out of the training
          jaxscale run configs/studies/downstream.py --data.files '/tmp/corpora95/*' \\
              --recipe.evals /work/shared/evals/*.jsonl
          and from there on as docs/studies/downstream.md tells
Cost:     2.9e13 FLOPs in the grid's 36 cells and 3e13 in the held-out one; planned 7 and 5 minutes on 2 CPU cores.
Expected: the NLL of the right answer falls in every task; word order leaves chance first, continuation last.
It has isoflop_english's model and recipe, and a third of its budgets.
"""

from jaxscale.config import DataConfig, Grid, ModelConfig, Recipe, Study


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="downstream",
        model=ModelConfig(n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2),
        recipe=Recipe(
            lr=0.014, embed_lr=3.0, head_lr=3.0, weight_decay=2.0, warmup_fraction=0.2, final_fraction=0.0,
            batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=128, microbatch_seqs=2,
            eval_points=(0.25, 0.5, 0.75),
        ),
        grid=Grid(
            budgets=(1e11, 3e11, 1e12, 3e12),
            widths=(12, 16, 20, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128),
            tokens_per_param=32.0,
            tokens_per_param_exponent=0.15,
            spread=4.0,
            sizes_per_budget=6,
            seeds=(2, 2, 1, 1),
            holdout=(3e13,),
            holdout_sizes=1,
        ),
        data=DataConfig(files=("corpus/**/*.txt",), tokenizer="bytes", val_tokens=262_144, max_epochs=1.0),
        forecast_flops=(3e13,),
    )  # fmt: skip
