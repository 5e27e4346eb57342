"""A flagship of 405 billion parameters on 16 trillion tokens: does it fit a pod, and how long does it take there?

Purpose:  Not a grid to train: one shape, asked of hardware one does not have, before anything is queued. The shape is
          Llama 3 405B's ("The Llama 3 Herd of Models", 2407.21783, table 3): 126 layers of width 16,384, 128 heads of
          128 with 8 key/value heads, SwiGLU of 53,248, 128,256 tokens, 8,192 positions, batches of 16 million tokens.
          They were trained on 15.6T tokens by 16,384 H100s at 38 to 43% MFU (table 4): the line to compare with.
Command:  jaxscale preflight configs/flagship_405b.py --target h100:2048x8 --tokens 16e12
          jaxscale preflight configs/flagship_405b.py --target v5p:16x16x24 --tokens 16e12 --recipe.microbatch-seqs 768
          The first is 16,384 GPUs. The second is 6,144 chips, over which a batch divides only as a multiple of 3 x 256
          sequences: --recipe.microbatch-seqs says so, and 2,304 sequences are 18.9 million tokens.
Cost:     of asking: about a minute (GPU) to ten (TPU) on one core and 6 GB, without any accelerator.
Expected: docs/preflight.md has the answers: layout, memory, step time, days and money.
"""

from jaxscale.config import MeshConfig, ModelConfig, Recipe, Study


def get_study() -> Study:
    """The study; every field can be overridden on the command line."""
    return Study(
        name="flagship_405b",
        model=ModelConfig(
            d_model=16_384,
            n_layers=126,
            head_dim=128,
            kv_groups=16,
            mlp="swiglu",
            mlp_ratio=3.25,
            vocab_size=128_256,
            seq_len=8192,
            qk_norm=False,
            rope_theta=500_000.0,
            parameterization="standard",
        ),
        recipe=Recipe(batch_coefficient=16_777_216.0, batch_exponent=0.0, batch_max_tokens=16_777_216,
                      microbatch_seqs=256),
        mesh=MeshConfig(),
        hardware="h100:16384",
    )  # fmt: skip
