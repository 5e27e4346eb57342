"""lm-eval's harness (extra `[eval]`) and our own tasks: one item, one number."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxscale.config import MeshConfig, ModelConfig
from jaxscale.data.tokenizer import ByteTokenizer
from jaxscale.errors import MisuseError
from jaxscale.evals import harness
from jaxscale.evals.encode import encode_task
from jaxscale.evals.harness import JaxscaleLM, evaluate_harness
from jaxscale.evals.measure import measure_task
from jaxscale.evals.score import LoadedModel, Scorer
from jaxscale.evals.task import read_task
from jaxscale.model.decoder import make_decoder
from jaxscale.train.sharding import make_mesh

MODEL = ModelConfig(d_model=32, n_layers=1, head_dim=8, seq_len=32, head_std=2.0)
TEXT = "the scaling law of small models holds for large ones when data and size grow together café"

needs_harness = pytest.mark.skipif(harness.LM is object, reason="lm-eval (extra [eval]) is not installed")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    params = jax.jit(lambda: nnx.split(make_decoder(MODEL, 3), nnx.Param)[1])()
    scorer = Scorer(MODEL, make_mesh(MeshConfig(), jax.devices()[:1]), MeshConfig(), jnp.float32)
    return LoadedModel(scorer, params, ByteTokenizer())


def ask(*args: Any) -> Any:
    return SimpleNamespace(args=args)


@jax.jit
def forward(params: Any, ids_t: jax.Array) -> jax.Array:
    decoder = nnx.merge(nnx.split(nnx.eval_shape(lambda: make_decoder(MODEL, 0)), nnx.Param)[0], params)
    return jax.nn.log_softmax(decoder(ids_t[None])[0])


def logits(model: LoadedModel, ids: np.ndarray) -> np.ndarray:
    """Log-probabilities [t, v] of what follows each id, by a plain forward pass of one text."""
    padded = np.zeros(MODEL.seq_len, np.int32)
    padded[: len(ids)] = ids
    return np.asarray(forward(model.params, jnp.asarray(padded)), np.float64)[: len(ids)]


def write_task(folder: Path) -> Path:
    """Questions of one to nine words, two to four choices, some with an umlaut or a blank at the end."""
    rng, words = np.random.default_rng(0), TEXT.split()
    with open(folder / "items.jsonl", "w") as file:
        for _ in range(80):
            choices = [" ".join(rng.choice(words, rng.integers(1, 4))) for _ in range(rng.integers(2, 5))]
            question = " ".join(rng.choice(words, rng.integers(1, 10))) + " " * int(rng.integers(2))
            label = int(rng.integers(len(choices)))
            file.write(json.dumps({"question": question, "choices": choices, "label": label}) + "\n")
    return folder / "items.jsonl"


def test_without_the_extra_one_sentence_says_what_to_install(model: LoadedModel, monkeypatch: Any) -> None:
    monkeypatch.setattr(harness, "LM", object)
    with pytest.raises(MisuseError, match=r"lm-eval is not installed; pip install 'jaxscale\[eval\]'"):
        JaxscaleLM(model)


@needs_harness
@pytest.mark.filterwarnings("default")
def test_both_paths_give_every_choice_and_every_accuracy_the_same(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local task of `dataset_path: json`; sum is lm-eval's acc, char its acc_norm, byte its acc_bytes."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setitem(os.environ, name, "1")
    file = write_task(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {file}\n"
        f"  cache_dir: {tmp_path / 'cache'}\n"
        'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: choices\n'
        "doc_to_target: label\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n  - metric: acc_bytes\n"
    )
    task = read_task(file)
    encoded = encode_task(task, model.tokenizer, MODEL.seq_len, 0, ())
    nll = encoded.add_up(model.scorer.score(model.params, encoded.windows))
    ours = measure_task(task, nll, encoded.tokens, "byte")

    told = simple_evaluate(model=JaxscaleLM(model), tasks=["mine"], bootstrap_iters=0, log_samples=True,
                           task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False))  # fmt: skip
    samples = sorted(told["samples"]["mine"], key=lambda sample: sample["doc_id"])
    theirs = [float(one[0]) for sample in samples for one in sample["filtered_resps"]]
    np.testing.assert_allclose(-nll, theirs, rtol=1e-4)
    assert told["results"]["mine"]["acc,none"] == ours["accuracy_sum"]
    assert told["results"]["mine"]["acc_norm,none"] == ours["accuracy_char"]
    assert told["results"]["mine"]["acc_bytes,none"] == ours["accuracy_byte"]

    rows = {row["metric"]: row for row in evaluate_harness(model, ["mine"], None, include=str(tmp_path))}
    assert rows["acc"]["value"] == ours["accuracy_sum"] and rows["acc"]["items"] == 80
    p = ours["accuracy_sum"]
    assert rows["acc"]["std_error"] == pytest.approx(np.sqrt(p * (1 - p) / 79))
    with pytest.raises(MisuseError, match="lm-eval: no_such_task"):
        evaluate_harness(model, ["no_such_task"], None)


@needs_harness
def test_likelihood_and_greediness_are_a_plain_forward_passs(model: LoadedModel) -> None:
    lm = JaxscaleLM(model)
    context = np.frombuffer(b"the law", np.uint8)
    best = bytes([int(np.argmax(logits(model, context)[-1]))])
    pairs = [("the law", chr(best[0])), ("the law", "z"), ("", "of"), ("of", "")]
    (first, greedy), (_, other), (empty, _), nothing = lm.loglikelihood([ask(*pair) for pair in pairs])
    if best[0] < 128:
        assert greedy and first == pytest.approx(logits(model, context)[-1].max(), rel=1e-4)
    assert not other or best == b"z"
    told = logits(model, np.frombuffer(b"\n\no", np.uint8))
    assert empty == pytest.approx(told[1, ord("o")] + told[2, ord("f")], rel=1e-4)
    assert nothing == (0.0, True)


@needs_harness
def test_rolling_likelihood_counts_every_token_once_with_the_context_that_fits(model: LoadedModel) -> None:
    ids = np.frombuffer(b"\n\n" + TEXT.encode(), np.uint8)
    wanted, first = 0.0, 2
    while first < len(ids):
        end = min(first + MODEL.seq_len, len(ids))
        start = max(0, end - MODEL.seq_len - 1)
        told = logits(model, ids[start : end - 1])
        wanted += sum(told[t - 1 - start, ids[t]] for t in range(first, end))
        first = end
    both = JaxscaleLM(model).loglikelihood_rolling([ask(TEXT), ask("of")])
    assert both[0] == pytest.approx(wanted, rel=1e-5) and both[1] > both[0]


@needs_harness
def test_greedy_text_is_the_likeliest_token_each_time_up_to_a_stop(model: LoadedModel) -> None:
    ids = np.frombuffer(TEXT[:20].encode(), np.uint8)
    for _ in range(30):
        ids = np.append(ids, np.uint8(np.argmax(logits(model, ids[-MODEL.seq_len :])[-1])))
    whole = bytes(ids[20:]).decode(errors="replace").split("\n\n")[0]
    lm = JaxscaleLM(model)
    long, short, none = lm.generate_until([
        ask(TEXT[:20], {"until": [], "max_gen_toks": 30}), ask(TEXT[:20], {"until": [whole[2:4]], "max_gen_toks": 30}),
        ask(TEXT[:20], {"max_gen_toks": 0}),
    ])  # fmt: skip
    assert (long, none) == (whole, "") and short == whole[: whole.find(whole[2:4])]
    with pytest.raises(MisuseError, match=r"samples at temperature 0.7; only greedy"):
        lm.generate_until([ask("a", {"do_sample": True, "temperature": 0.7})])
