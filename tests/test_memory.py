"""The memory model beside the compiler's own count, and the layouts that it ranks."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxscale.config import MeshConfig, ModelConfig
from jaxscale.errors import MisuseError
from jaxscale.flops import count_params
from jaxscale.hardware import find_peak
from jaxscale.layout import Layout
from jaxscale.memory import USABLE, estimate_memory, rank_layouts
from jaxscale.model.lowering import lower_layout
from jaxscale.runs import RunSpec
from jaxscale.train import execution, member
from jaxscale.train.sharding import layout_mesh
from jaxscale.train.step import Program

PLAIN = ModelConfig(d_model=128, n_layers=6, head_dim=32, seq_len=128, vocab_size=512)
GATED = replace(PLAIN, mlp="swiglu", kv_groups=2)
LLAMA_8B = ModelConfig(d_model=4096, n_layers=32, head_dim=128, kv_groups=4, mlp="swiglu", mlp_ratio=3.5,
                       vocab_size=128_256, seq_len=8192, qk_norm=False)  # fmt: skip
V5E, V5P, H100 = 16e9, 95e9, 80e9


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        (PLAIN, Layout(microbatch_seqs=8)),
        (GATED, Layout(fsdp=4, microbatch_seqs=16, remat="block", head_chunks=2)),
        (replace(PLAIN, mlp="relu2", n_layers=10), Layout(data=2, microbatch_seqs=16, remat="dots")),
        (replace(PLAIN, vocab_size=8192), Layout(fsdp=2, microbatch_seqs=16, remat="block", head_chunks=8)),
        (replace(PLAIN, architecture="lstm", n_layers=3), Layout(fsdp=2, microbatch_seqs=8)),
    ],
    ids=["none", "fsdp-block-gated", "data-dots-relu2", "fsdp-block-large-vocabulary", "fsdp-lstm"],
)
def test_the_estimate_is_within_15_percent_of_the_compilers_count(model: ModelConfig, layout: Layout) -> None:
    """Arguments and temporaries of the train program on host devices; tests/bench/memory_errors.py has more."""
    lowering = lower_layout(layout, model, "tpu")  # as on the chips that it is for: layers in a scan, plain forms
    mesh = layout_mesh(layout, jax.devices()[: layout.chips])
    told = Program(model, "cosine", 2, mesh, jnp.float32, lowering=lowering).train(layout.microbatch_seqs)
    sizes = told.memory_analysis()
    real = (sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
            + sizes.temp_size_in_bytes)  # fmt: skip
    assert estimate_memory(model, layout, "float32", slots=2).total == pytest.approx(real, rel=0.15)


def test_the_state_is_counted_exactly_and_falls_with_the_chips() -> None:
    """4 bytes a weight and 8 of Adam's moments, over fsdp x tensor where that divides every matrix."""
    params = count_params(LLAMA_8B)["total"]
    for fsdp, tensor in ((1, 1), (8, 1), (64, 4), (256, 8)):
        found = estimate_memory(LLAMA_8B, Layout(fsdp=fsdp, tensor=tensor, microbatch_seqs=fsdp), "bfloat16")
        assert found.weights + found.optimizer == pytest.approx(12 * params / fsdp / tensor, rel=1e-3)
    alone = estimate_memory(LLAMA_8B, Layout(), "bfloat16", averages=True)
    assert alone.averages == alone.weights == 4 * params


def test_remat_and_pieces_only_ever_save() -> None:
    """Of a layout with long sequences; "block" keeps one residual stream a layer."""
    kinds = [replace(Layout(fsdp=64, microbatch_seqs=64, attention="splash", head_chunks=16), remat=kind)
             for kind in ("none", "dots", "block")]  # fmt: skip
    sizes = [estimate_memory(LLAMA_8B, layout, "bfloat16").activations for layout in kinds]
    assert sizes[0] > sizes[1] > sizes[2] > LLAMA_8B.n_layers * 8192 * LLAMA_8B.d_model * 2
    whole = estimate_memory(LLAMA_8B, replace(kinds[2], head_chunks=1), "bfloat16").total
    assert whole > estimate_memory(LLAMA_8B, kinds[2], "bfloat16").total


@pytest.mark.parametrize(("chips", "memory", "platform"), [(256, V5E, "tpu"), (64, V5P, "tpu"), (64, H100, "gpu")])
def test_every_ranked_layout_covers_the_chips_and_fits(chips: int, memory: float, platform: str) -> None:
    found = rank_layouts(LLAMA_8B, 512, chips, memory, "bfloat16", MeshConfig(), 8, platform=platform)
    assert found
    for layout in found:
        assert layout.chips == chips and layout.tensor <= 8
        assert 512 % layout.microbatch_seqs == 0 and layout.microbatch_seqs % layout.replicas == 0
        assert estimate_memory(LLAMA_8B, layout, "bfloat16").total <= USABLE * memory


def test_given_values_are_kept_and_autos_are_free() -> None:
    mesh = MeshConfig(fsdp=32, tensor=2, remat="block", microbatch_seqs=128, attention="chunked", head_chunks=8)
    found = rank_layouts(LLAMA_8B, 512, 256, V5E, "bfloat16", mesh, 4)
    assert found and {layout.context for layout in found} == {1, 2, 4}
    for layout in found:
        kept = (layout.fsdp, layout.tensor, layout.remat, layout.microbatch_seqs, layout.attention, layout.head_chunks)
        assert kept == (32, 2, "block", 128, "chunked", 8)


def test_a_small_model_is_only_replicated_and_a_large_one_is_split() -> None:
    small = rank_layouts(replace(PLAIN, seq_len=1024), 64, 8, V5E, "bfloat16", MeshConfig(), 8)[0]
    assert (small.data, small.remat, small.microbatch_seqs) == (8, "none", 64)
    assert rank_layouts(LLAMA_8B, 512, 256, V5E, "bfloat16", MeshConfig(), 4)[0].fsdp >= 16


def test_what_fits_nowhere_has_no_layout() -> None:
    assert rank_layouts(LLAMA_8B, 512, 4, V5E, "bfloat16", MeshConfig(), 4) == []
    assert rank_layouts(LLAMA_8B, 510, 256, V5E, "bfloat16", MeshConfig(context=1, tensor=1), 4) == []


def test_an_attention_that_cannot_work_is_refused_with_the_reason() -> None:
    for kind, platform in (("cudnn", "tpu"), ("splash", "gpu"), ("blocked", "tpu")):
        with pytest.raises(MisuseError, match=f"mesh.attention: {kind} .* use --mesh.attention auto"):
            rank_layouts(LLAMA_8B, 512, 256, V5E, "bfloat16", MeshConfig(attention=kind), platform=platform)
    found = rank_layouts(LLAMA_8B, 64, 128, H100, "bfloat16", MeshConfig(attention="cudnn"), platform="gpu")
    assert found and {layout.context for layout in found} == {1}


def test_an_execution_takes_the_best_layout_where_the_device_tells_its_memory(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight host devices that claim 1 GB each, then a kilobyte each; without a claim the recipe's microbatch."""
    run = replace(spec, batch_seqs=16, microbatch_seqs=8)
    choose = execution.choose_execution.__wrapped__
    assert choose(run, MeshConfig(), jnp.float32).microbatch_seqs == 8
    monkeypatch.setattr(execution, "_chip_bytes", lambda device: 1e9)
    found = choose(run, MeshConfig(), jnp.float32)
    assert found.microbatch_seqs == 16 and found.mesh.shape["data"] == 8 and found.lowering.remat == "none"
    assert choose(run, MeshConfig(microbatch_seqs=8, fsdp=4), jnp.float32).mesh.shape["fsdp"] == 4
    monkeypatch.setattr(execution, "_chip_bytes", lambda device: 1e3)
    with pytest.raises(MisuseError, match=r"mesh: no layout of 16 sequences over 8 chips .* use more chips"):
        choose(run, MeshConfig(), jnp.float32)


def test_a_microbatch_that_does_not_divide_the_batch_is_refused(spec: RunSpec) -> None:
    run = replace(spec, batch_seqs=8)
    with pytest.raises(MisuseError, match=r"mesh.microbatch_seqs: 3 does not divide the batch of 8 .* use 2, or 0"):
        execution.choose_microbatch(run, MeshConfig(microbatch_seqs=3))


@pytest.fixture
def spec() -> RunSpec:
    from test_runs import SPEC

    return SPEC


def test_utilization_is_told_of_known_chips_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert member.find_mfu(1e12) is None and find_peak("NVIDIA H100 80GB HBM3") == 989e12
    peak: Any = lambda kind: 5e11  # noqa: E731
    monkeypatch.setattr(member, "find_peak", peak)
    assert member.find_mfu(1e12) == pytest.approx(1e12 / 5e11 / 8)
