"""Loss and gradients beside a second decoder, written in numpy float64, and its finite differences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sharding import MODEL, STDS, WINDOWS, WITH_Z_LOSS, build

from jaxscale.config import MeshConfig
from jaxscale.model.lowering import Lowering
from jaxscale.model.mup import forward_multipliers
from jaxscale.train.optimizer import param_name

SCALE = forward_multipliers(MODEL)


def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + MODEL.norm_eps) * gain


def rotate(x: np.ndarray) -> np.ndarray:
    """Positions [t] of heads [b, t, h, e], pairs (i, i + e/2) as complex numbers."""
    half = MODEL.d_head // 2
    angle = np.arange(x.shape[1])[:, None, None] * MODEL.rope_theta ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def attend(w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    b, t, _ = x.shape
    q, k, v = (np.reshape(x @ w[name], (b, t, -1, MODEL.d_head)) for name in ("wq", "wk", "wv"))
    q, k = rotate(norm(q, w["q_norm"])), rotate(norm(k, w["k_norm"]))
    group = MODEL.n_heads // MODEL.n_kv_heads
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    scores = np.einsum("bthe,bshe->bhts", q, k) * SCALE.attention
    scores = np.where(np.tril(np.ones((t, t), bool)), scores, -np.inf)
    share = np.exp(scores - scores.max(axis=-1, keepdims=True))
    share /= share.sum(axis=-1, keepdims=True)
    return np.einsum("bhts,bshe->bthe", share, v).reshape(b, t, -1) @ w["wo"]


def loss_of(params: dict[str, np.ndarray]) -> float:
    """Mean cross-entropy plus the z-loss of WINDOWS."""
    inputs, targets = WINDOWS[:, :-1], WINDOWS[:, 1:]
    x = params["embed"][inputs] * SCALE.embed
    for i in range(MODEL.n_layers):
        w = {name.removeprefix("blocks."): value[i] for name, value in params.items() if name.startswith("blocks.")}
        x = x + SCALE.residual * attend(w, norm(x, w["attn_norm"]))
        inner = norm(x, w["mlp_norm"])
        gate = inner @ w["w_gate"]
        x = x + SCALE.residual * ((gate / (1 + np.exp(-gate)) * (inner @ w["w_up"])) @ w["w_down"])
    logits = norm(x, params["final_norm"]) @ params["head"] * SCALE.logits
    log_z = np.log(np.sum(np.exp(logits), axis=-1))
    picked = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return float(np.mean(log_z - picked) + float(WITH_Z_LOSS.z_loss) * np.mean(log_z**2))


def named(tree: Any) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    jax.tree.map_with_path(lambda path, leaf: found.update({param_name(path): np.asarray(leaf, np.float64)}), tree)
    return found


@pytest.mark.parametrize("lowering", [Lowering(), Lowering(remat="block", head_chunks=3, attention="chunked")],
                         ids=["plain", "pieces"])  # fmt: skip
def test_gradients_equal_float64_finite_differences(lowering: Lowering) -> None:
    """Along a random direction for every parameter array, by central differences of step 1e-5."""
    program = build(MeshConfig(), 1, lowering)
    params = program.begin(jnp.uint32(0), STDS).params
    (loss, _), grads = jax.jit(jax.value_and_grad(program.loss, has_aux=True))(params, WINDOWS, WITH_Z_LOSS)
    exact, slopes, rng = named(params), named(grads), np.random.default_rng(0)
    assert float(loss) == pytest.approx(loss_of(exact), rel=1e-6)
    for name, value in exact.items():
        step = rng.normal(size=value.shape)
        ahead, behind = (loss_of(exact | {name: value + sign * 1e-5 * step}) for sign in (1, -1))
        slope = float(np.sum(slopes[name] * step))
        size = float(np.linalg.norm(slopes[name]))
        assert (ahead - behind) / 2e-5 == pytest.approx(slope, abs=1e-5 * size), name
