"""Adam against SGD with momentum on English: which one to train with, and how much compute the other one costs.

Purpose:  The verb `compare` on the question that Choi et al. (2019, 1910.05446) asked: does the answer stand when both
          are tuned? Every variant gets the same sweep of its learning rate (5 rates a doubling apart, two seeds, up
          to 3 rates more where the best is at the edge), then the same IsoFLOP grid: three budgets, two seeds, and
          1e12 held out.
Command:  jaxscale run configs/studies/optimizers.py --data.files 'corpus/**/*.txt'
          (`jaxscale plan` with the same arguments says what it trains and costs)
Cost:     20 sweep runs of 9.1e11 FLOPs and 70 cells of 5.3e12; planned 17 seconds and 1m48s on 2 CPU cores, compiling
          not counted; both took 9 minutes on 2 busy cores.
Expected: docs/studies/deciding.md: both have an optimum inside their rates at width 32 (adam .016, sgd .28, momentum
          .9), and Adam wins at 1e12 FLOPs, where SGD needs 1.8 times the compute.
The two share data order, batch, schedule and decay (by the horizon rule, weight_decay over lr * steps, so that the
rate does not change what is forgotten). Not tuned for either: the multipliers of table and head, found with Adam
(docs/studies/recipe.md), and how the rate moves with horizon and batch, which is assumed to be Adam's.
"""

from jaxscale.config import DataConfig, Grid, MeshConfig, ModelConfig, Recipe, Study, Tuning, Variant


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="optimizers",
        model=ModelConfig(n_layers=2, head_dim=8, seq_len=64, vocab_size=256, base_d_model=32, base_n_layers=2),
        recipe=Recipe(
            lr=0.014, embed_lr=3.0, head_lr=3.0, weight_decay=2.0, warmup_fraction=0.2, final_fraction=0.0,
            batch_coefficient=0.5, batch_exponent=0.5, batch_min_tokens=128, microbatch_seqs=2,
        ),
        grid=Grid(
            budgets=(1e10, 3e10, 1e11),
            widths=(8, 12, 16, 24, 32, 40, 48, 56),
            tokens_per_param=20.0,
            tokens_per_param_exponent=0.15,
            spread=6.0,
            sizes_per_budget=6,
            seeds=(2,),
            holdout=(1e12,),
            holdout_sizes=1,
        ),
        data=DataConfig(files=("corpus/**/*.txt",), tokenizer="bytes", val_tokens=131_072, max_epochs=1.0),
        mesh=MeshConfig(packs="auto"),
        variants=(
            Variant("adam"),
            Variant("sgd", ("recipe.optimizer=sgd", "recipe.momentum=0.9", "recipe.lr=0.2")),
        ),
        tuning=Tuning(rates=5, step=1.0, more=3, seeds=2),
        forecast_flops=(1e12,),
    )  # fmt: skip
