"""Preflight: what is read from a compiled program, closed forms of a step's time, refusals, and real compiles."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.interpreters import partial_eval
from jax.sharding import AxisType, PartitionSpec

from jaxscale.cli import dispatch, main
from jaxscale.config import MeshConfig, ModelConfig
from jaxscale.errors import MisuseError
from jaxscale.flops import count_params, flops_per_token
from jaxscale.hardware import CHIP_TABLE, CHIPS
from jaxscale.layout import Attention, Layout, Remat
from jaxscale.model.decoder import make_decoder
from jaxscale.model.lowering import Lowering
from jaxscale.params import param_shapes, param_size
from jaxscale.preflight import (
    Compiled,
    Job,
    Preflight,
    Refused,
    Settings,
    Subject,
    check_plugin,
    check_subject,
    parse_target,
)
from jaxscale.preflight import check as check_module
from jaxscale.preflight.child import measure_program
from jaxscale.preflight.depth import extrapolate
from jaxscale.preflight.hlo import Counts, count_hlo
from jaxscale.preflight.job import ENVIRONMENT, Sent, _classify, _read, compile_job
from jaxscale.preflight.roofline import ACHIEVABLE, count_done_flops, link_seconds, time_step
from jaxscale.preflight.subjects import continue_ladder, own_run, read_flagship
from jaxscale.study import load_study

ROOT = Path(__file__).parents[1]
N, ROWS, WIDTH = 8, 8, 16
HAS_TPU, HAS_GPU = (importlib.util.find_spec(name) is not None for name in ("libtpu", "jax_cuda12_plugin"))
TINY = ModelConfig(d_model=32, n_layers=5, head_dim=16, mlp="swiglu", vocab_size=64, seq_len=32)


def _compile(body: object, loops: object) -> str:
    """Text of a program that runs `body` on every device's [8, 16] floats inside of `loops`."""
    mesh = jax.make_mesh((N,), ("x",), (AxisType.Auto,))
    inside = partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec("x"), PartitionSpec()), check_vma=False)
    fn = inside(lambda x, count: loops(body, x, count), out_specs=PartitionSpec("x"))  # type: ignore[operator]
    x, count = jax.ShapeDtypeStruct((N * ROWS, WIDTH), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    return str(jax.jit(fn).lower(x, count).compile().as_text())


def _five_times(body: object, x: jax.Array, count: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 5, lambda i, y: body(y), x)  # type: ignore[operator]


def _some_times_five(body: object, x: jax.Array, count: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, count, lambda i, y: _five_times(body, y, count), x)


RING = [(i, (i + 1) % N) for i in range(N)]
LOCAL = 4 * ROWS * WIDTH
"""Bytes of the array on one device."""
BODIES = {
    "all-reduce": (lambda x: jnp.sin(jax.lax.psum(x, "x")), LOCAL, 2 * 7 / 8 * LOCAL),
    "all-gather": (lambda x: jnp.sin(jax.lax.all_gather(x, "x", tiled=True)[:ROWS]), N * LOCAL, 7 * LOCAL),
    "reduce-scatter": (
        lambda x: jnp.tile(jnp.sin(jax.lax.psum_scatter(x, "x", tiled=True)), (N, 1)), LOCAL, 7 / 8 * LOCAL
    ),
    "all-to-all": (lambda x: jnp.sin(jax.lax.all_to_all(x, "x", 0, 0, tiled=True)), LOCAL, 7 / 8 * LOCAL),
    "collective-permute": (lambda x: jnp.sin(jax.lax.ppermute(x, "x", RING)), LOCAL, LOCAL),
}  # fmt: skip
"""Kind -> body, bytes of the payload, bytes that a device sends."""


@pytest.mark.parametrize("kind", BODIES)
def test_a_collective_in_a_loop_counts_as_often_as_it_runs(kind: str) -> None:
    body, payload, sent = BODIES[kind]
    found = count_hlo(_compile(body, _five_times))
    ours = [one for one in found.collectives if one.kind == kind]
    if kind == "reduce-scatter" and not ours:  # XLA for CPU makes an all-reduce of it
        pytest.skip("this XLA lowers a reduce-scatter to an all-reduce")
    assert [one.times for one in ours] == [5] and found.trips == (5,)
    assert [(one.payload_bytes, len(one.group)) for one in ours] == [(payload, N)] or kind == "collective-permute"
    assert sum(one.sent_bytes for one in ours) == pytest.approx(5 * sent)


def test_a_count_known_only_at_run_time_is_the_callers() -> None:
    text = _compile(BODIES["all-reduce"][0], _some_times_five)
    assert [count_hlo(text, (3,)).collectives[0].times, count_hlo(text).collectives[0].times] == [15, 5]


def _with_bytes(text: str) -> Counts:
    return count_hlo("HloModule m\n\n" + text)


def test_traffic_counts_slices_as_slices() -> None:
    fused = _with_bytes(
        "%f (p: f32[100,8], i: s32[]) -> f32[1,8] {\n"
        "  %p = f32[100,8]{1,0} parameter(0)\n  %i = s32[] parameter(1)\n"
        "  %z = s32[] constant(0)\n  ROOT %d = f32[1,8]{1,0} dynamic-slice(%p, %i, %z)\n}\n\n"
        "ENTRY %main (a: f32[100,8], j: s32[]) -> f32[1,8] {\n  %a = f32[100,8]{1,0} parameter(0)\n"
        "  %j = s32[] parameter(1)\n  ROOT %r = f32[1,8]{1,0} fusion(%a, %j), kind=kLoop, calls=%f\n}\n"
    )
    assert fused.memory_bytes == 32 + 32 + 4 and fused.operations == 1  # read a row, write a row, read its index


def test_an_unrolled_loop_and_a_fused_collective_count_once() -> None:
    """As XLA writes them for a TPU: the counter moves by 2, one all-gather stands in a start and a done fusion."""
    gather = "all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}"
    head = "(p: f32[2]) -> f32[8] {\n  %p = f32[2]{0} parameter(0)\n  ROOT %g = f32[8]{0} "
    fused = "".join(f"%{name} {head}{gather}\n}}\n\n" for name in ("start", "done"))
    found = _with_bytes(
        f"{fused}%body (s: (s32[], f32[2])) -> (s32[], f32[2]) {{\n  %s = (s32[], f32[2]{{0}}) parameter(0)\n"
        "  %i = s32[] get-tuple-element(%s), index=0\n  %x = f32[2]{0} get-tuple-element(%s), index=1\n"
        "  %a = f32[8]{0} fusion(%x), kind=kCustom, calls=%start\n"
        "  %b = f32[8]{0} fusion(%x), kind=kCustom, calls=%done\n"
        "  %two = s32[] constant(2)\n  %n = s32[] add(%i, %two)\n  ROOT %t = (s32[], f32[2]{0}) tuple(%n, %x)\n}\n\n"
        "%cond (s: (s32[], f32[2])) -> pred[] {\n  %s = (s32[], f32[2]{0}) parameter(0)\n  %six = s32[] constant(6)\n"
        "  %i = s32[] get-tuple-element(%s), index=0\n  ROOT %c = pred[] compare(%i, %six), direction=LT\n}\n\n"
        "ENTRY %main (x: f32[2]) -> (s32[], f32[2]) {\n  %x = f32[2]{0} parameter(0)\n  %zero = s32[] constant(0)\n"
        "  %s = (s32[], f32[2]{0}) tuple(%zero, %x)\n"
        "  ROOT %w = (s32[], f32[2]{0}) while(%s), condition=%cond, body=%body\n}\n"
    )
    assert found.trips == (3,)
    assert [(one.kind, one.times, one.payload_bytes) for one in found.collectives] == [("all-gather", 3, 32)]


@pytest.fixture(scope="module")
def depths() -> dict[int, Compiled]:
    """The trainer's own program over 8 devices with fsdp, at three depths (deep enough for a scan on CPU)."""
    job = Job("cpu", TINY, Layout(fsdp=N, microbatch_seqs=N, remat="block"))
    spots, found = [(0, i) for i in range(N)], {}
    for depth in (5, 7, 11):
        deep = replace(job, model=replace(TINY, n_layers=depth))
        found[depth] = _read(measure_program(deep, jax.devices()[:N], spots, "cpu"))
    return found  # type: ignore[return-value]


def test_a_deep_program_is_the_line_through_two_shallow_ones(depths: dict[int, Compiled]) -> None:
    guess, truth = extrapolate(depths[5], depths[7], (5, 7), 11), depths[11]
    assert guess.argument_bytes == truth.argument_bytes
    assert guess.temp_bytes == pytest.approx(truth.temp_bytes, rel=0.01)
    assert guess.microbatch_moved_bytes == pytest.approx(truth.microbatch_moved_bytes, rel=0.02)
    assert {(one.kind, one.size): one.sent_bytes for one in guess.microbatch_sent} == pytest.approx(
        {(one.kind, one.size): one.sent_bytes for one in truth.microbatch_sent})  # fmt: skip


def test_fsdp_sends_what_the_formula_says(depths: dict[int, Compiled]) -> None:
    """Every matrix gathered forward and backward and its gradient added up once: a layer's share, by the slope."""
    layer = sum(param_size(axes[1:]) for name, axes in param_shapes(TINY).items() if name.startswith("blocks.w"))
    width = 4  # CPU computes in float32 what an accelerator does in bfloat16

    def payload(kind: str) -> float:
        each = [sum(one.payload_bytes for one in depths[d].microbatch_sent if one.kind == kind) for d in (5, 11)]
        return (each[1] - each[0]) / 6

    assert payload("all-gather") == pytest.approx(2 * width * layer, rel=0.03)
    added = payload("reduce-scatter") + payload("all-reduce")  # CPU adds up and slices
    assert added == pytest.approx(width * layer, rel=0.03)
    times = [sum(one.times for one in depths[d].step_sent) for d in (5, 11)]
    assert times[0] == times[1]  # nothing that grows with depth is sent outside of the microbatches


def test_memory_holds_weights_and_moments_once(depths: dict[int, Compiled]) -> None:
    params = sum(param_size(axes) for axes in param_shapes(replace(TINY, n_layers=11)).values())
    state = depths[11].argument_bytes
    assert state == pytest.approx(3 * 4 * params / N, rel=0.1)  # weights and two moments; gains are not split by 8
    assert depths[11].total_bytes < state + depths[11].temp_bytes + 4096  # the output takes the arguments' place


def test_a_step_time_is_the_roofline() -> None:
    target = parse_target("h100:2x8")
    gather = Sent("all-gather", 8, (1, 8), 1, 9e9, 7 / 8 * 9e9)
    reduce = Sent("all-reduce", 8, (1, 8), 1, 9e9, 7 / 4 * 9e9)
    time = time_step(target, 989e12 * ACHIEVABLE["h100"], 0.5 * 3352e9, 1e5, [gather, reduce])
    assert (time.compute_s, time.memory_s, time.starts_s) == pytest.approx((1, 0.5, 0.3))
    assert time.links_s == pytest.approx(3 * 7 / 8 * 9e9 / 450e9)
    assert time.step_s == pytest.approx(1 + 7 / 4 * 9e9 / 450e9)
    assert time.overlapped_s == 1 and time.serial_s == pytest.approx(1 + time.links_s)


def test_links_a_torus_and_a_cluster() -> None:
    pod, sides = parse_target("v5e:16x16"), Sent("all-gather", 16, (16, 1, 1), 1, 16e9, 15e9)
    assert link_seconds(pod, sides) == pytest.approx(15e9 / (2 * 50e9))  # a ring, both ways
    assert link_seconds(pod, replace(sides, size=256, span=(16, 16, 1))) == pytest.approx(15e9 / (4 * 50e9))
    assert link_seconds(parse_target("v5e:8x8"), replace(sides, size=8, span=(8, 1, 1))) == pytest.approx(15e9 / 50e9)
    nodes = parse_target("h100:4x8")
    wide = Sent("all-gather", 4, (4, 1), 1, 4e9, 3e9)
    assert link_seconds(nodes, wide) == pytest.approx(3e9 / 50e9)  # one GPU of each host: its own card carries all
    whole = Sent("all-gather", 32, (4, 8), 1, 32e9, 31e9)
    assert link_seconds(nodes, whole) == pytest.approx(max(31e9 / 450e9, 32e9 * 3 / 4 / 8 / 50e9))


def test_flops_done_are_the_models_and_what_is_done_twice() -> None:
    layout = Layout(attention="cudnn")
    product = TINY.n_layers * TINY.seq_len * TINY.d_model  # scores, causal
    assert count_done_flops(TINY, layout, 10) == 10 * (flops_per_token(TINY) + product)  # flash: scores again
    assert count_done_flops(TINY, replace(layout, remat="dots"), 1) == flops_per_token(TINY) + 3 * product
    split = count_done_flops(TINY, replace(layout, attention="splash"), 1)
    assert split == flops_per_token(TINY) + 3 * product  # scores twice, their gradient once more


@pytest.mark.parametrize("attention", ["xla", "chunked"])
@pytest.mark.parametrize("remat", ["none", "dots", "block"])
def test_flops_done_are_the_products_of_the_traced_gradient(attention: Attention, remat: Remat) -> None:
    decoder = nnx.eval_shape(
        lambda: make_decoder(TINY, 0, jnp.bfloat16, lowering=Lowering(attention=attention, remat=remat))
    )
    graph, params = nnx.split(decoder)
    tokens = jax.ShapeDtypeStruct((2, TINY.seq_len), jnp.int32)
    gradient = jax.grad(lambda params, a, b: nnx.merge(graph, params).losses(a, b)[0].sum())
    traced = jax.make_jaxpr(gradient)(params, tokens, tokens).jaxpr
    live, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    layout = Layout(attention=attention, remat=remat)
    assert _count_products(live) == count_done_flops(TINY, layout, 2 * TINY.seq_len)


def _count_products(jaxpr: Any) -> int:
    """FLOPs of a jaxpr's matrix products, those of its loops and calls included."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            depth = prod(equation.invars[0].aval.shape[axis] for axis in summed)
            total += 2 * depth * prod(equation.outvars[0].aval.shape)
        inner = (getattr(value, "jaxpr", value) for value in equation.params.values())
        total += equation.params.get("length", 1) * sum(_count_products(one) for one in inner if hasattr(one, "eqns"))
    return total


@pytest.mark.parametrize(
    ("text", "words"),
    [("v5x:4x4", "no chip known"), ("v5e", "no shape"), ("v5e:4xq", "no shape"), ("v5p:4x4", "takes 3"),
     ("h100:8", "takes 2"), ("v5e:3x4", "hosts of 2 x 2"), ("h100:0x8", "no shape")],
)  # fmt: skip
def test_a_target_that_is_not_there_is_refused_with_one_that_is(text: str, words: str) -> None:
    with pytest.raises(MisuseError, match=words) as refusal:
        parse_target(text)
    assert "write" in str(refusal.value) or "use" in str(refusal.value)


def test_every_chip_has_its_figures() -> None:
    assert {name: chip.flops_per_s for name, chip in CHIP_TABLE.items()} == CHIPS and set(ACHIEVABLE) == set(CHIPS)
    for chip in CHIP_TABLE.values():
        assert 10 < chip.flops_per_s / chip.hbm_bytes_per_s < 1000  # FLOPs a byte
        assert (chip.usd_per_hour is None) == (not chip.priced)


def test_a_compilers_refusal_becomes_a_kind_and_bytes() -> None:
    words = ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (26.96G)\n"
             "exceeds available HBM (15.75G).")  # fmt: skip
    found = _classify(words)
    assert found["kind"] == "memory" and found["needed_bytes"] == 26.96 * 2**30 and "\n" not in found["reason"]
    assert _classify("INTERNAL: no")["kind"] == "compiler"


def test_a_child_that_dies_or_takes_too_long_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "JAX_PLATFORMS", "none_such")
    died = compile_job(Job("cpu:1x1", TINY, Layout()), timeout_s=60)
    assert isinstance(died, Refused) and died.reason
    late = compile_job(Job("h100:1x1", TINY, Layout()), timeout_s=0.01)
    assert isinstance(late, Refused) and late.kind == "timeout" and "--timeout" in late.reason


def test_a_missing_plugin_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MisuseError, match=r"pip install 'jaxscale\[preflight\]'"):
        check_plugin(parse_target("v5e:2x2"))


def test_the_command_line_spares_a_machine_without_devices_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    for there, wanted in ((True, None), (False, "cpu")):
        monkeypatch.setattr("jaxscale.cli.has_device_file", lambda there=there: there)
        with pytest.raises(SystemExit):
            main(["--version"])
        assert os.environ.get("JAX_PLATFORMS") == wanted


SUBJECT = Subject("cell", TINY, 8, 100, 1, "cosine", "adamw", False)


def _answer(total: float) -> Compiled:
    return Compiled(total, 0, 0, 0, 0, 0, 1e6, 0, 100, (), (), 1.0)


def test_the_first_layout_that_the_compiler_takes_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([Refused("memory", "too much", 99e9), _answer(1e12), _answer(1e9)])
    monkeypatch.setattr(check_module, "compile_job", lambda job, **_: next(answers))
    record = check_subject(SUBJECT, parse_target("h100:1x8"), Settings(MeshConfig()))
    assert record["state"] == "fits" and record["refused_layouts"] == 2
    assert record["chip_hours"] == pytest.approx(100 * record["step_s"] * record["devices"] / 3600)
    assert record["usd"] == pytest.approx(record["chip_hours"] * 4.916)


def test_a_subject_that_never_fits_says_how_much_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "compile_job", lambda job, **_: _answer(100 * 2**30))
    record = check_subject(SUBJECT, parse_target("h100:1x8"), Settings(MeshConfig(), tries=2))
    assert record["state"] == "too big" and "100.0 GiB" in record["reason"] and record["refused_layouts"] == 2


def test_a_batch_that_divides_over_fewer_chips_takes_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "compile_job", lambda job, **_: _answer(1e6))
    narrow = replace(SUBJECT, batch_seqs=2, model=replace(TINY, head_dim=32))
    record = check_subject(narrow, parse_target("v5e:4x4"), Settings(MeshConfig()))
    assert record["state"] == "fits" and record["devices"] == 2


def test_the_ladder_goes_on_to_the_flagship() -> None:
    study = load_study(str(ROOT / "configs/isoflop_c4.py"))
    model = continue_ladder(study, 7e10)
    assert model.d_model % 128 == 0 and model.n_layers == round(model.d_model / 107)


def test_the_flagship_config_is_llama_3_405b() -> None:
    study = load_study(str(ROOT / "configs/flagship_405b.py"))
    assert count_params(study.model)["total"] == 405_853_388_800  # as the weights on the hub count
    assert (study.model.n_heads, study.model.n_kv_heads, study.model.d_ff) == (128, 8, 53_248)
    subject = own_run(study, study.model, 16e12)
    assert subject.batch_seqs == 2048 and subject.steps * subject.step_tokens == pytest.approx(16e12, rel=1e-5)


def test_a_flagship_is_the_declared_row_of_the_largest_compute(tmp_path: Path) -> None:
    points = [(1e20, 1e9, 1e10, True), (1e22, 8e9, 1e11, True), (1e24, 5e9, 1e11, False)]
    rows = [{"C": C, "N_opt": n, "D_opt": d, "declared": mine} for C, n, d, mine in points]
    (tmp_path / "forecast.json").write_text(json.dumps({"rows": rows}))
    assert read_flagship(tmp_path) == (8e9, 1e11)
    with pytest.raises(MisuseError, match="--params"):
        read_flagship(tmp_path / "none")


@pytest.mark.skipif(not HAS_GPU, reason="jax-cuda12-plugin is not installed")
def test_every_gpu_config_is_read_by_the_compiler() -> None:
    code = ("from jax.experimental import topologies\nfrom jaxscale.preflight.targets import parse_target\n"
            "for name in ('a100', 'h100', 'h200'):\n"
            "    found = topologies.get_topology_desc(**parse_target(name + ':2x8').topology()).devices\n"
            "    print(len(found), found[0].device_kind)")  # fmt: skip
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join([str(ROOT), *sys.path]), **ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["16"] * 3
    assert ["A100" in done.stdout, "H100" in done.stdout, "H200" in done.stdout] == [True] * 3


@pytest.mark.parametrize(
    "target",
    [pytest.param("v5e:2x2", marks=pytest.mark.skipif(not HAS_TPU, reason="libtpu is not installed")),
     pytest.param("h100:1x4", marks=pytest.mark.skipif(not HAS_GPU, reason="jax-cuda12-plugin is not installed"))],
)  # fmt: skip
def test_a_run_compiles_for_hardware_that_is_not_here(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "preflight.json"
    code = dispatch(["preflight", str(ROOT / "configs/quickstart.py"), "--target", target, "--tokens", "1e6",
                     "--model.d-model", "128", "--model.head-dim", "64", "--recipe.microbatch-seqs", "16",
                     "--mesh.fsdp", "4", "--cache", "", "--out", str(out)])  # fmt: skip
    (row,) = json.loads(out.read_text())["rows"]
    assert code == 0 and row["state"] == "fits" and "compile and fit" in capsys.readouterr().out
    state = 3 * 4 * row["params"] / row["fsdp"]
    assert row["argument_bytes"] == pytest.approx(state, rel=0.2)  # a TPU pads to its tiles
    assert row["all_gather_bytes"] > 0 and 0 < row["mfu_serial"] <= row["mfu"] <= row["mfu_overlapped"] < 1


@pytest.mark.skipif(not HAS_TPU, reason="libtpu is not installed")
def test_what_does_not_fit_ends_with_1_and_the_bytes(tmp_path: Path) -> None:
    out = tmp_path / "preflight.json"
    code = dispatch(["preflight", str(ROOT / "configs/quickstart.py"), "--target", "v5e:1x1", "--tokens", "1e6",
                     "--model.d-model", "8192", "--model.n-layers", "2", "--mesh.remat", "block", "--tries", "1",
                     "--cache", "", "--out", str(out)])  # fmt: skip
    (row,) = json.loads(out.read_text())["rows"]
    assert code == 1 and row["state"] == "too big" and row["total_bytes"] > 16 * 2**30


def test_each_target_asked_for_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("jaxscale.preflight.check_plugin", lambda target: asked.append(target.name))
    monkeypatch.setattr("jaxscale.preflight.check_subjects", lambda *_: iter(()))
    study = str(ROOT / "configs/quickstart.py")
    dispatch(["preflight", study, "--target", "v5e:2x2", "h100:1x8", "--target", "a100:1x8", "--target", "v5e:2x2"])
    assert asked == ["v5e:2x2", "h100:1x8", "a100:1x8"]


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--forecast", "runs/x"], "--flagship"), (["--mesh.dtype", "float32"], "bfloat16"), ([], "v5e:16x16")],
)  # fmt: skip
def test_an_option_that_would_not_count_is_refused(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ["--target", "v5e:2x2"] if options else []
    assert dispatch(["preflight", str(ROOT / "configs/quickstart.py"), *target, *options]) == 2
    assert words in capsys.readouterr().err


def test_every_reason_and_every_idle_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "compile_job", lambda job, **_: _answer(1e6))
    target, narrow = parse_target("v5e:2x2"), replace(SUBJECT, model=replace(TINY, head_dim=32))
    odd = Settings(MeshConfig(data=4))
    rows = [check_subject(replace(narrow, batch_seqs=2), target, Settings(MeshConfig()))]
    rows += [check_subject(replace(narrow, batch_seqs=batch), target, odd) for batch in (3, 5)]
    words = " ".join(str(Preflight("x", tuple(rows), {target.name: ()})).split())
    assert "1 runs take 2 of 4 devices" in words
    assert "a batch of 3 sequences" in words and "a batch of 5 sequences" in words


def test_two_devices_of_a_chip_share_its_links() -> None:
    target = parse_target("tpu7x:4x4x4")
    each = Sent("all-gather", 4, (4, 1, 1), 1, 4e9, 3e9)  # one device a chip: two such groups at once
    assert link_seconds(target, each) == pytest.approx(2 * 3e9 / (2 * 100e9))
    assert link_seconds(target, replace(each, size=8)) == pytest.approx(3e9 / (2 * 100e9))
