"""Every knob of a study, as frozen dataclasses with no behaviour but derived shapes.

A study file (`configs/*.py`) returns one `Study`; each field can be overridden on the command line.
What decides the result of a run lives in `ModelConfig`, `Recipe` and `DataConfig`; what decides only
where and how it is executed lives in `MeshConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "EVAL_FIELDS",
    "DataConfig",
    "Grid",
    "LaunchConfig",
    "MeshConfig",
    "ModelConfig",
    "Recipe",
    "Study",
    "Tuning",
    "Variant",
]


@dataclass(frozen=True)
class ModelConfig:
    """A language model, by default a decoder-only transformer. Change `d_model` alone and every other shape follows."""

    d_model: int = 32
    """Width of the residual stream."""
    n_layers: int = 2
    """Number of blocks (attention + MLP)."""
    head_dim: int = 16
    """Wanted width of one head; the number of heads is the largest that divides d_model evenly."""
    kv_groups: int = 1
    """Query heads per key/value head, at least: 1 is full multi-head attention, more is grouped-query (GQA)."""
    architecture: Literal["transformer", "lstm"] = "transformer"
    """transformer, or stacked LSTMs (Hochreiter and Schmidhuber 1997) of the same width, depth, embedding and head."""
    objective: Literal["autoregressive", "masked_diffusion"] = "autoregressive"
    """What is learned: the next token; or, seeing all positions, the masked ones of a text (Sahoo et al. 2024,
    2406.07524), whose loss is a bound of the text's and not its likelihood."""
    mlp: Literal["gelu", "swiglu", "relu2", "relu", "geglu"] = "gelu"
    """Activation of the MLP; swiglu and geglu have a third matrix."""
    n_experts: int = 0
    """MLPs of every block, of which a router picks `experts_per_token` for each token; 0: one MLP, no router."""
    experts_per_token: int = 2
    """Experts that each token passes through: they count in active parameters and FLOPs."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Norm of the residual stream: RMSNorm, or LayerNorm without bias; QK-norm is RMSNorm under both."""
    position: Literal["rope", "learned", "sinusoidal", "alibi", "none"] = "rope"
    """How positions are told: rotated queries and keys, a table that is learned or fixed, biases on scores that grow
    with distance (Press et al. 2022, 2108.12409), or by the causal mask alone."""
    mlp_ratio: float = 4.0
    """d_ff / d_model, before rounding up to `mlp_multiple`."""
    mlp_multiple: int = 1
    """d_ff is rounded up to a multiple of this (128 or 256 suits accelerators)."""
    vocab_size: int = 256
    """Rows of the embedding table; at least the tokenizer's size."""
    seq_len: int = 64
    """Context length in tokens; also the length of every training and validation window."""
    qk_norm: bool = True
    """RMSNorm with a gain on queries and keys."""
    tied: bool = False
    """Share the embedding table with the output head."""
    rope_theta: float = 10_000.0
    """Base of the rotary position encoding (Su et al. 2021)."""
    norm_eps: float = 1e-6
    """Epsilon of the norms."""
    parameterization: Literal["mup", "completep", "standard"] = "mup"
    """How init, learning rate, eps and decay follow width (mup) and depth too (completep)."""
    base_d_model: int = 32
    """Width at which the learning rate and init are meant; muP's ratios are 1 there."""
    base_n_layers: int = 2
    """Depth at which the learning rate is meant; read by completep only."""
    base_head_dim: int | None = None
    """Wanted head width of the base model, where it is not `head_dim`; None: the same."""
    base_mlp_ratio: float | None = None
    """d_ff / d_model of the base model, where it is not `mlp_ratio`; None: the same."""
    depth_alpha: float = 1.0
    """CompleteP's exponent: residual branches are scaled by (n_layers/base_n_layers)^-alpha, .5 to 1."""
    embed_std: float = 1.0
    """Init standard deviation of the embedding table, and of learned positions, at every width."""
    hidden_std: float | None = None
    """Init standard deviation of hidden matrices at base width; None is 1/sqrt(base fan_in)."""
    head_std: float = 0.0
    """Init standard deviation of an untied head, at every width; 0 removes the start transient."""
    init_scale: float = 1.0
    """Multiplies every init standard deviation above."""
    embed_scale: float = 1.0
    """alpha_in: multiplies the embedding's output."""
    logit_scale: float = 1.0
    """tau: multiplies the logits; muP divides it by the width ratio."""

    @property
    def n_heads(self) -> int:
        """Largest count whose heads are at least `head_dim` wide, divide d_model, and have even width.

        >>> [ModelConfig(d_model=d, head_dim=16).n_heads for d in (8, 12, 16, 24, 48, 64)]
        [1, 1, 1, 1, 3, 4]
        """
        most = max(1, self.d_model // self.head_dim)
        fits = (n for n in range(most, 0, -1) if self.d_model % n == 0 and (self.d_model // n) % 2 == 0)
        return next(fits, 1)

    @property
    def d_head(self) -> int:
        """Actual width of one head: d_model / n_heads."""
        return self.d_model // self.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads: the largest divisor of n_heads that is at most n_heads / kv_groups.

        >>> [ModelConfig(d_model=d, head_dim=8, kv_groups=2).n_kv_heads for d in (16, 32, 40, 48)]
        [1, 2, 1, 3]
        """
        most = max(1, self.n_heads // self.kv_groups)
        return next(n for n in range(most, 0, -1) if self.n_heads % n == 0)

    @property
    def gated(self) -> bool:
        """Whether the MLP has a third matrix, which decides how much of each hidden value goes on."""
        return self.mlp in ("swiglu", "geglu")

    @property
    def d_ff(self) -> int:
        """Hidden width of the MLP.

        >>> ModelConfig(d_model=64, mlp_ratio=8 / 3, mlp_multiple=16).d_ff
        176
        """
        wanted = self.d_model * self.mlp_ratio
        return max(1, round(wanted / self.mlp_multiple + 0.499)) * self.mlp_multiple


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: everything that moves the loss and is not shape or text."""

    optimizer: Literal["adamw", "sgd", "muon", "lion", "adafactor"] = "adamw"
    """AdamW (Loshchilov and Hutter 2019), SGD with momentum, Muon on hidden matrices (Jordan et al. 2024) and AdamW on
    the rest, Lion (Chen et al. 2023), Adafactor (Shazeer and Stern 2018); decay is multiplied by the learning rate in
    all of them."""
    lr: float = 0.02
    """Peak learning rate at base width; muP divides it by the width ratio for hidden matrices."""
    embed_lr: float = 2.0
    """Multiplies the learning rate of the embedding table, and of learned positions."""
    head_lr: float = 3.0
    """Multiplies the learning rate of an untied head."""
    adam_lr: float = 1.0
    """muon only: multiplies the learning rate of all that AdamW updates there (tables, head, gains)."""
    momentum: float = 0.95
    """sgd and muon: decay of the momentum."""
    b1: float = 0.9
    """AdamW, Lion, Adafactor: decay of the first moment; Lion mixes it with the gradient before it takes the sign."""
    b2: float = 0.95
    """AdamW: decay of the second moment; Lion: of the momentum it keeps (Chen et al. use .99)."""
    eps: float = 1e-12
    """Adam's epsilon at base width; muP divides it by the width ratio."""
    weight_decay: float = 2.0
    """Decay; see `decay_rule` for its unit."""
    decay_rule: Literal["horizon", "constant"] = "horizon"
    """horizon: weight_decay = lr * lambda * steps, so every run forgets as much; constant: it is lambda."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 turns it off."""
    z_loss: float = 0.0
    """Weight of mean(log Z)^2 (PaLM); 1e-4 is usual."""
    router_balance: float = 0.01
    """Weight of the load-balancing loss of a router (Fedus et al. 2021, 2101.03961); read with model.n_experts only."""
    precision: Literal["mesh", "float32", "bfloat16", "int8"] = "mesh"
    """Precision of the matrix products as part of the question: mesh leaves it to mesh.dtype; int8 rounds both sides of
    every block's products where the backend multiplies int8."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """cosine, or warmup-stable-decay with a linear decay. The horizon is each cell's own tokens."""
    warmup_fraction: float = 0.03
    """Linear warmup, as a fraction of the steps."""
    decay_fraction: float = 0.2
    """wsd only: the last fraction of the steps decays."""
    final_fraction: float = 0.1
    """Learning rate at the end over its peak."""
    average_fraction: float = 0.0
    """Validate, and keep, the mean of the weights over this last fraction of the steps (Izmailov et al. 2018,
    1803.05407; Sandler et al. 2023, 2301.02312); 0: the last weights."""
    batch_coefficient: float = 1.0
    """Batch rule: batch in tokens = coefficient * D^exponent, D the cell's training tokens."""
    batch_exponent: float = 0.5
    """Exponent of the batch rule; 0 with a coefficient is one batch for all cells."""
    batch_min_tokens: int = 256
    """Smallest batch the rule may give."""
    batch_max_tokens: int = 16_000_000
    """Largest batch the rule may give."""
    batch_from: str = ""
    """Result of `jaxscale batch` (its JSON): the batch is `batch_critical` times the critical batch size that it fits
    at the cell's tokens, within the limits above; the rule's coefficient and exponent are not read. Empty: the rule."""
    batch_critical: float = 1.0
    """With batch_from: batch over critical batch size; 1 costs twice the least tokens and twice the least steps."""
    measure_noise: bool = False
    """Measure the gradient noise scale (McCandlish et al. 2018, 1812.06162) while training, from the gradients of
    microbatches and batches; changes no run."""
    microbatch_seqs: int = 4
    """Sequences in one forward pass; a batch is a whole number of them, added up. (What an accelerator takes at once
    is mesh.microbatch_seqs.)"""
    lr_from: str = ""
    """Result of `jaxscale mup sweep` (sweep.json or its folder): every cell takes that sweep's best rate, moved to
    its own horizon and batch, and `lr` is not read. Empty: `lr` for all."""
    lr_horizon_exponent: float | None = None
    """With lr_from: rate ~ D^this at a fixed batch. None: as measured in the sweep, else -.32 (2409.19913)."""
    lr_batch_exponent: float | None = None
    """With lr_from: rate ~ B^this at a fixed horizon. None: as measured in the sweep, else .5 (2205.10287)."""
    evals: tuple[str, ...] = ()
    """Task files (glob patterns; .jsonl, also .xz .gz .zst: question, choices, label) on which every cell's model is
    evaluated at its end. Evaluation changes no run: its fields are no part of a run's identity (docs/evals.md)."""
    eval_points: tuple[float, ...] = ()
    """Shares of a run at which it is evaluated too, at the first logging interval that ends there or later."""
    eval_normalization: Literal["sum", "token", "byte", "char"] = "byte"
    """Which score decides `accuracy`: the log-likelihood of a choice, in all or per token, byte or character of it."""
    eval_shots: int = 0
    """Solved examples before every question."""
    eval_shots_from: str = ""
    """Task file to draw the examples from, for all tasks; empty: each task's own first items, never the one asked."""


EVAL_FIELDS = ("evals", "eval_points", "eval_normalization", "eval_shots", "eval_shots_from", "measure_noise")
"""Fields of a recipe that only look at the models: they may change under a study whose runs have begun."""


@dataclass(frozen=True)
class DataConfig:
    """The text, how it becomes tokens, and what is held out."""

    files: tuple[str, ...] = ()
    """Glob patterns of your text (.txt .md .py .jsonl .parquet, also .xz .gz .zst); empty: the Python
    standard library's sources, which every machine has. Or of ready token files (.npy .bin; docs/tokens.md)."""
    text_field: str = "text"
    """Field of .jsonl and column of .parquet that holds the text."""
    mixture: tuple[tuple[str, float], ...] = ()
    """Sources and the share of the training tokens each gives: (glob pattern on the path of a file, weight), ...;
    weights are brought to a sum of 1, and a source that is too short is repeated. Empty: all text once, as it comes."""
    val_files: tuple[str, ...] = ()
    """Glob patterns of the text to validate on, where it is not held-out text of `files`: another distribution."""
    unique_tokens: float | None = None
    """Only this many training tokens, whole documents chosen by hash, as often as a run needs them (max_epochs allows);
    a smaller number takes a part of a larger one's. None: all."""
    quality_from: tuple[str, ...] = ()
    """Glob patterns of text that is as the training text should be: training documents are ranked by likeness to it
    (hashed n-grams as in Xie et al. 2023, 2302.03169), and the best `quality_keep` are kept."""
    quality_keep: float = 1.0
    """With quality_from: share of the training text that is kept."""
    decontaminate: tuple[str, ...] = ()
    """Task files (glob patterns of .jsonl) whose items are cut out of the training text: every paragraph that shares
    `decontaminate_ngram` words in a row with one of them; what was cut is counted."""
    decontaminate_ngram: int = 13
    """Words in a row that count as an overlap (Brown et al. 2020, appendix C); shorter items count as a whole."""
    tokenizer: str = "bytes"
    """bytes (vocabulary 256), bpe:SIZE (trained on this text), the path of a tokenizer.json, or ids:SIZE for token
    files (.npy, .bin) of a tokenizer that is not here."""
    bytes_per_token: float | None = None
    """Bytes of text a token of ready token files stands for, for bits per byte; None: not known."""
    val_fraction: float = 0.05
    """Share of the documents held out for validation, chosen by a hash of their content."""
    val_tokens: int = 131_072
    """Validation tokens used, the same for every run; the exact mean over them is the loss."""
    val_bytes: int | None = None
    """Validation text in bytes, in place of val_tokens: whole pieces of held-out text until they are so many, the same
    text for every tokenizer, so that bits per byte compare on equal text. None: val_tokens decides."""
    drop_repeated_lines: bool = True
    """Remove lines of 40 characters or more after their first appearance, validation included."""
    document_bytes: int = 65_536
    """A plain text file longer than this is cut at blank lines into documents of about this size."""
    max_epochs: float = 1.0
    """How often the training text may be repeated; a cell that needs more is dropped with its reason."""
    declared_train_tokens: float | None = None
    """Training tokens, where the text is not on the machine that plans; checked when it is read."""
    cache: str = "~/.cache/jaxscale/data"
    """Folder for token files, shared by studies; built once for each text and tokenizer."""


@dataclass(frozen=True)
class Grid:
    """Which cells: budgets x sizes around the expected optimum of each budget."""

    budgets: tuple[float, ...] = (3e10, 1e11, 3e11)
    """Training FLOPs of each IsoFLOP curve."""
    widths: tuple[int, ...] = (8, 12, 16, 24, 32, 48, 64, 96)
    """d_model of the sizes that the plan may choose from."""
    aspect: float | None = None
    """Wanted d_model / n_layers; the depth then follows the width. None: model.n_layers for all."""
    aspect_range: tuple[float, float] = (0.0, 1e9)
    """Sizes whose d_model / n_layers falls outside are dropped."""
    tokens_per_param: float = 20.0
    """Where the optimum is expected: D/N, N the total parameters. A guess, and the plan says so."""
    tokens_per_param_exponent: float = 0.0
    """The guess drifts with compute: D/N = tokens_per_param * (C / first budget)^exponent."""
    spread: float = 6.0
    """Sizes from N/spread to N*spread around the expected optimum N are planned."""
    sizes_per_budget: int = 7
    """At most this many sizes a budget, taken closest to even in log N; at least five must exist."""
    bracket: bool = True
    """Refuse a budget whose sizes do not bracket the expected optimum. False: any widths at any budget, for a study
    that asks something else than the best size (as of the batch: configs/studies/batch.py)."""
    seeds: tuple[int, ...] = (1,)
    """Seeds for each budget, smallest first; the last number holds for the rest."""
    holdout: tuple[float, ...] = ()
    """Budgets trained but kept from the fit: the backtest predicts their loss."""
    holdout_sizes: int = 2
    """Sizes at each held-out budget, closest to the expected optimum."""
    min_steps: int = 100
    """A cell with fewer optimizer steps is dropped: its schedule would not be a schedule."""
    schedule: Literal["runs", "wsd-branches"] = "runs"
    """runs: every cell is a run of its own. wsd-branches: one run a size and seed at a constant rate (the trunk), and
    decays that begin from its states, one a budget; recipe.schedule must be wsd (docs/branches.md)."""
    exclude_spike: float | None = None
    """A run whose final training loss ends this many nats above its own best is refused as evidence."""


@dataclass(frozen=True)
class MeshConfig:
    """Where and how runs are executed. Nothing here may change what is measured."""

    data: int = -1
    """Devices along the data axis; -1 takes what the other axes leave."""
    fsdp: int = 0
    """Devices that share each parameter (fully sharded data parallelism); 0: auto, the memory model's choice on
    accelerators and 1 on CPU."""
    tensor: int = 0
    """Devices that share each matrix product (tensor parallelism); 0: auto."""
    context: int = 0
    """Devices that share each sequence (context parallelism); 0: auto."""
    microbatch_seqs: int = 0
    """Sequences in one forward pass where this is executed, a divisor of the batch; 0: auto, as many as fit an
    accelerator's memory, and recipe.microbatch_seqs on CPU."""
    attention: Literal["auto", "xla", "chunked", "cudnn", "splash", "blocked"] = "auto"
    """Kernel of the attention: cudnn on NVIDIA, splash on TPU, blocked on CPU, xla and chunked (which never holds all
    scores) everywhere; auto: a safe one."""
    remat: Literal["auto", "none", "dots", "block"] = "auto"
    """What the backward pass computes again: nothing, all but matrix products, whole blocks; auto: what fits."""
    head_chunks: int = 0
    """Pieces in which head and cross-entropy are computed, so that the logits of a batch are never held; 0: auto."""
    workers: int = 0
    """Worker processes of `run`; 0: one a core on CPU, one in all on accelerators."""
    packs: Literal["auto", "process", "pack", "turn"] = "process"
    """Runs of one shape, batch and length: process trains each by itself; pack all at once in one program (vmap);
    turn one after another in one program; auto measures the three for each shape and takes the fastest."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision; auto is bfloat16 on accelerators and float32 on CPU. Weights stay float32."""
    checkpoint_every_s: float = 20.0
    """Seconds of training between checkpoints: the most that a kill can cost."""
    compile_cache: str = "~/.cache/jaxscale/xla"
    """Folder of compiled programs, shared by runs and studies; empty turns it off."""


@dataclass(frozen=True)
class LaunchConfig:
    """How a grid survives on machines that vanish, and what it may cost. Nothing here changes what is measured."""

    max_chip_hours: float | None = None
    """Spend cap: chip-hours that all runs of the study may hold devices for, killed attempts included. No run begins
    that does not fit any more, and one that outruns its plan is saved and stopped. None: no cap."""
    max_attempts: int = 3
    """Workers in a row that may die with a cell, without a newer checkpoint, before it ends as failed."""
    lease_s: float = 60.0
    """Seconds without a sign of life from a worker after which others take its cell over."""
    canary: bool = True
    """Before the first cell that `work` trains on a new kind of machine: a short run, compared with the same run on the
    other kinds; where they disagree no cell is trained there."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where curves go besides metrics.jsonl (extra `[track]`); a resumed run keeps its id there."""
    wandb_project: str = "jaxscale"
    """Project at Weights & Biases; WANDB_MODE=offline keeps everything below the study folder."""


@dataclass(frozen=True)
class Variant:
    """One way to do it, among those that a study compares: a name and the fields in which it differs."""

    name: str = ""
    """Short name for tables and figures."""
    changes: tuple[str, ...] = ()
    """FIELD=VALUE of the study, as in "recipe.optimizer=sgd", "grid.widths=16,32"; none for the study as it is."""


@dataclass(frozen=True)
class Tuning:
    """The learning-rate sweep that every variant gets before its grid: one rule and one budget for all.

    Without it a comparison names no winner: what looks better may only be tuned better (Choi et al. 2019, 1910.05446).
    """

    rates: int = 0
    """Learning rates tried, around the variant's own recipe.lr; 0: no sweep."""
    step: float = 1.0
    """Doublings between them."""
    more: int = 2
    """Rates that may be added, one at a time, where the best one is the first or last."""
    width: int | None = None
    """Width of the models that are tuned; None: model.base_d_model. muP carries the rate to the others."""
    tokens: float | None = None
    """Training tokens of every run; None: those of the smallest budget at its expected optimum."""
    seeds: int = 1
    """Seeds of every rate."""


@dataclass(frozen=True)
class Study:
    """One question to measure: a grid of runs, their text and recipe, and what to forecast."""

    name: str = "study"
    """Name of the run folder, runs/<name>."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """What all sizes share; the grid sets width and depth."""
    recipe: Recipe = field(default_factory=Recipe)
    """How each cell is trained."""
    grid: Grid = field(default_factory=Grid)
    """Which cells are trained."""
    data: DataConfig = field(default_factory=DataConfig)
    """What they are trained on."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Where they are trained."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """How they go through a cluster."""
    variants: tuple[Variant, ...] = ()
    """What to compare (`jaxscale compare`): each gets the whole grid with its own changes; runs that do not differ are
    trained once. Empty: the study itself."""
    tuning: Tuning = field(default_factory=Tuning)
    """The sweep of the learning rate that every variant gets."""
    seed: int = 0
    """First seed of init and data order; repeats count up from it."""
    hardware: str = "cpu"
    """Hardware for the plan's time and cost: NAME or NAME:CHIPS, see `jaxscale plan --help`."""
    forecast_flops: tuple[float, ...] = ()
    """Budgets to forecast; empty: 10x and 100x the largest budget of the grid."""
    declared: Literal["isoflop", "parametric", "envelope"] = "isoflop"
    """The approach whose forecast leads, said before the runs: errors seen afterwards choose none."""
    bootstrap: int = 1000
    """Bootstrap draws behind every interval."""
