"""IsoFLOP grid on C4 at Llama 3's scale, for a TPU pod or a GPU cluster.

Purpose:  Ten budgets from 6e18 to 1e22 FLOPs and models of 40 million to 16 billion parameters, the range of
          section 3.2.1 of "The Llama 3 Herd of Models" (2407.21783), on C4 shards that lie on disk.
Command:  jaxscale plan configs/isoflop_c4.py                              # prints the grid; needs no data
          jaxscale run configs/isoflop_c4.py --data.files '/data/c4/en/c4-train.*.json.gz'
Cost:     see the plan: about 1e23 FLOPs, two weeks of 512 v5p chips at the utilization it assumes.
Expected: N_opt and D_opt with exponents near one half; the expected optimum that the sizes are laid around is
          Llama 3's token law, D = 0.299 C^0.537. Not run by us: we have no such machine.
Before:   the learning rate is a guess at this scale. Sweep it at the base width first (configs/mup_transfer.py).
Text:     C4's English part has about 1.5e11 tokens, so the largest budget reads it more than once; up to four
          epochs are allowed, where repetition costs little (Muennighoff et al. 2023, 2305.16264).
"""

from jaxscale.config import DataConfig, Grid, MeshConfig, ModelConfig, Recipe, Study


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="isoflop_c4",
        model=ModelConfig(
            head_dim=128,
            mlp="swiglu",
            mlp_ratio=8 / 3,
            mlp_multiple=256,
            vocab_size=32_000,
            seq_len=4096,
            rope_theta=500_000.0,
            parameterization="completep",
            base_d_model=512,
            base_n_layers=5,
        ),
        recipe=Recipe(
            lr=0.004,
            embed_lr=1.0,
            head_lr=1.0,
            weight_decay=0.1,
            decay_rule="constant",
            z_loss=1e-4,
            warmup_fraction=0.02,
            batch_coefficient=6.0,
            batch_exponent=0.5,
            batch_min_tokens=524_288,
            microbatch_seqs=128,
        ),
        grid=Grid(
            budgets=(6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21, 1e22),
            widths=(448, 512, 640, 768, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 4608, 5120),
            aspect=107.0,
            aspect_range=(85.0, 130.0),
            tokens_per_param=13.0,
            tokens_per_param_exponent=0.074,
            spread=8.0,
            sizes_per_budget=8,
            min_steps=1000,
        ),
        data=DataConfig(
            files=("/data/c4/en/c4-train.*.json.gz",),
            text_field="text",
            tokenizer="bpe:32000",
            val_fraction=0.001,
            val_tokens=8_388_608,
            drop_repeated_lines=False,
            max_epochs=4.0,
            declared_train_tokens=1.5e11,
        ),
        mesh=MeshConfig(data=-1, fsdp=32, tensor=4, checkpoint_every_s=600.0),
        hardware="v5p:512",
    )
