"""Evaluation: tokens of a choice and no others, likelihoods beside plain forward passes and closed forms, tasks."""

import json
import lzma
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxscale.config import DataConfig, MeshConfig, ModelConfig
from jaxscale.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer, train_bpe
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.evals import score
from jaxscale.evals.encode import Encoded, encode_pairs, encode_task
from jaxscale.evals.measure import measure_task, predict_choices
from jaxscale.evals.score import LoadedModel, Scorer
from jaxscale.evals.task import Item, Task, find_tasks, make_prompts, read_task
from jaxscale.evals.texts import measure_text, read_texts
from jaxscale.model.decoder import Decoder, make_decoder
from jaxscale.model.loss import token_losses
from jaxscale.model.mup import forward_multipliers
from jaxscale.train.sharding import make_mesh

MODEL = ModelConfig(d_model=32, n_layers=2, head_dim=8, seq_len=32, head_std=1.0)
TEXT = "the scaling law of small models holds for large ones when data and size grow together café"
WORDS = TEXT.split()


def write_task(file: Path, items: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return file


def random_task(items: int, seed: int = 0, name: str = "random") -> Task:
    """Two to five choices of one to four words after questions of one to thirty."""
    rng = np.random.default_rng(seed)

    def text(most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(1, most)))

    made = []
    for _ in range(items):
        choices = tuple(text(5) for _ in range(rng.integers(2, 6)))
        made.append(Item(text(31), choices, int(rng.integers(len(choices)))))
    return Task(name, tuple(made), "")


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    file = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_bpe([" ".join(WORDS).encode(), b"abc abc abc"], 310, file)
    return load_tokenizer(file)


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(lambda: nnx.split(make_decoder(MODEL, 3), nnx.Param)[1])()


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(MODEL, make_mesh(MeshConfig(), jax.devices()[:1]), MeshConfig(), jnp.float32)


@pytest.fixture(scope="module")
def plain_nll(params: Any) -> Callable[[np.ndarray, int], float]:
    """NLL of ids[first:], one text at a time, unpadded, by the decoder's own logits."""
    model = nnx.merge(nnx.split(nnx.eval_shape(lambda: make_decoder(MODEL, 0)), nnx.Param)[0], params)
    losses = jax.jit(lambda ids: token_losses(model(ids[None, :-1]), ids[None, 1:])[0][0])
    return lambda ids, first: float(np.sum(np.asarray(losses(jnp.asarray(ids, jnp.int32)), np.float64)[first - 1 :]))


def nll_of(scorer: Scorer, params: Any, encoded: Encoded) -> np.ndarray:
    return encoded.add_up(scorer.score(params, encoded.windows))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"question": "q", "choices": ["a", "b"]}, r"t.jsonl:2: no field 'label' \(there: choices, question\)"),
        ({"question": "q", "choices": ["a", "b"], "label": 2}, "t.jsonl:2: label 2 is outside of the 2 choices"),
        ({"question": "q", "choices": ["a", "b"], "label": -1}, "t.jsonl:2: label -1 is outside"),
        ({"question": "q", "choices": ["a", "b"], "label": "A"}, "t.jsonl:2: label 'A' is no whole number"),
        ({"question": "q", "choices": ["a", "b"], "label": True}, "t.jsonl:2: label True is no whole number"),
        ({"question": "q", "choices": ["a"], "label": 0}, r"t.jsonl:2: 1 choice\(s\) leave nothing to choose"),
        ({"question": "q", "choices": ["a", " "], "label": 0}, "t.jsonl:2: choice 1 is ' ', which has no text"),
        ({"question": "q", "choices": "ab", "label": 0}, "t.jsonl:2: choices 'ab' are no list of texts"),
        ({"question": 7, "choices": ["a", "b"], "label": 0}, "t.jsonl:2: question 7 is no text"),
        ({"question": "\ud83d", "choices": ["a", "b"], "label": 0}, "t.jsonl:2: .* half a surrogate pair"),
        ([1], "t.jsonl:2: list where an object"),
    ],
)
def test_bad_item_is_named_with_line_value_and_limit(tmp_path: Path, item: dict[str, Any], words: str) -> None:
    good = {"question": "q", "choices": ["a", "b"], "label": 1}
    with pytest.raises(MisuseError, match=words):
        read_task(write_task(tmp_path / "t.jsonl", [good, item]))


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "torn.jsonl").write_text('{"question": ')
    (tmp_path / "damaged.jsonl.xz").write_bytes(b"no archive")
    for name, words in (("empty", "holds no items"), ("torn", "torn.jsonl:1: not a JSON"), ("damaged", "be read")):
        with pytest.raises(MisuseError, match=words):
            read_task(find_tasks([str(tmp_path / f"{name}*")], "--tasks")[0])
    with pytest.raises(MisuseError, match=r"--tasks: '.*nothing.jsonl' matches no file"):
        find_tasks([str(tmp_path / "nothing.jsonl")], "--tasks")
    (tmp_path / "empty.jsonl.xz").write_bytes(b"")
    with pytest.raises(MisuseError, match="are both task 'empty'"):
        find_tasks([str(tmp_path)], "--tasks")


def test_packed_file_holds_the_same_task(tmp_path: Path) -> None:
    plain = write_task(tmp_path / "t.jsonl", [{"question": "q", "choices": ["a", "b"], "label": 1}] * 2)
    packed = tmp_path / "packed.jsonl.xz"
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    assert read_task(packed).items == read_task(plain).items == (Item("q", ("a", "b"), 1),) * 2
    assert read_task(packed).sha256 == read_task(plain).sha256 and read_task(packed).name == "packed"


def first_scored(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    (window,) = encode_pairs([(context, continuation)], tokenizer, 1000).windows
    return window.ids[: window.first].tolist(), window.ids[window.first :].tolist()


def count_rule(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """lm-eval's TemplateLM._encode_pair: as many tokens are context as the context alone has."""
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    whole, alone = (tokenizer.encode_split([text], [0])[0][0].tolist() for text in (kept + continuation, kept))
    return alone, whole[len(alone) :]


def test_boundary_is_lm_evals_wherever_no_token_straddles_it(bpe: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    for tokenizer in (ByteTokenizer(), bpe):
        for _ in range(100):
            context = " ".join(rng.choice(WORDS, rng.integers(1, 9))) + " " * int(rng.integers(3))
            continuation = " " * int(rng.integers(2)) + str(rng.choice(WORDS))
            if not context.endswith(" ") and not continuation.startswith(" "):
                continue
            assert first_scored(tokenizer, context, continuation) == count_rule(tokenizer, context, continuation)


def test_spaces_before_the_choice_are_the_choices(bpe: Tokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        assert first_scored(tokenizer, "small models ", "grow") == first_scored(tokenizer, "small models", " grow")
    assert first_scored(bpe, "small models ", "grow")[1] == bpe.encode_split([" grow"], [0])[0][0].tolist()


def test_token_that_straddles_the_boundary_is_the_choices(bpe: Tokenizer) -> None:
    """ "abc" is one token; lm-eval's count leaves nothing of it to be scored."""
    context, scored = first_scored(bpe, "of ab", "c")
    assert bpe.decode(context) == "of" and bpe.decode(scored) == " abc"
    assert count_rule(bpe, "of ab", "c")[1] == []
    context, scored = first_scored(ByteTokenizer(), "of ab", "c")
    assert bytes(context) == b"of ab" and bytes(scored) == b"c"


def test_choice_without_context_follows_a_separator(bpe: Tokenizer) -> None:
    assert first_scored(ByteTokenizer(), "", "hi") == ([10, 10], [104, 105])
    assert first_scored(bpe, "", " law")[0] == list(bpe.separator)


def test_every_choice_has_the_likelihood_of_a_plain_forward_pass(
    scorer: Scorer, params: Any, plain_nll: Callable[[np.ndarray, int], float]
) -> None:
    """Questions up to 200 bytes before a window of 33: contexts are cut on the left, choices whole."""
    task = random_task(9)
    encoded = encode_task(task, ByteTokenizer(), MODEL.seq_len, 0, ())
    nll, wanted, cut = nll_of(scorer, params, encoded), [], 0
    for item in task.items:
        for choice in item.choices:
            ids = np.frombuffer(f"{item.question} {choice}".encode(), np.uint8)
            kept = ids[-MODEL.seq_len - 1 :]
            wanted.append(plain_nll(kept, len(kept) - len(choice.encode()) - 1))
            cut += len(ids) > len(kept)
    np.testing.assert_allclose(nll, wanted, rtol=1e-5)
    assert encoded.truncated == cut > 5
    assert encoded.tokens.tolist() == [1 + len(c.encode()) for item in task.items for c in item.choices]


def test_choice_longer_than_the_window_is_scored_token_by_token_once(
    scorer: Scorer, params: Any, plain_nll: Callable[[np.ndarray, int], float]
) -> None:
    text = " ".join(WORDS * 2)
    encoded = encode_pairs([("of", f" {text}")], ByteTokenizer(), MODEL.seq_len)
    ids = np.frombuffer(f"of {text}".encode(), np.uint8)
    assert sum(len(w.ids) - w.first for w in encoded.windows) == len(ids) - 2 == encoded.tokens[0]
    first = 2 + (len(ids) - 3) % MODEL.seq_len + 1
    wanted = plain_nll(ids[max(0, first - 33) : first], 2 - max(0, first - 33))
    for start in range(first, len(ids), MODEL.seq_len):
        wanted += plain_nll(ids[start - 1 : start + MODEL.seq_len], 1)
    np.testing.assert_allclose(nll_of(scorer, params, encoded), [wanted], rtol=1e-5)


@pytest.mark.parametrize(
    "mesh", [MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(context=4)], ids=["data8", "mixed", "ring"]
)
def test_likelihoods_do_not_depend_on_the_mesh(mesh: MeshConfig, scorer: Scorer, params: Any) -> None:
    encoded = encode_task(random_task(20, seed=1), ByteTokenizer(), MODEL.seq_len, 0, ())
    other = Scorer(MODEL, make_mesh(mesh), mesh, jnp.float32)
    whole = jax.device_put(params, jax.sharding.NamedSharding(other.mesh, jax.sharding.PartitionSpec()))
    np.testing.assert_allclose(nll_of(other, whole, encoded), nll_of(scorer, params, encoded), rtol=1e-5)


def test_likelihoods_do_not_depend_on_batches_lengths_or_order(
    scorer: Scorer, params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = encode_task(random_task(20, seed=2), ByteTokenizer(), MODEL.seq_len, 0, ())
    wanted = scorer.score(params, encoded.windows)
    order = np.random.default_rng(0).permutation(len(encoded.windows))
    np.testing.assert_allclose(scorer.score(params, [encoded.windows[i] for i in order]), wanted[order], rtol=1e-6)
    monkeypatch.setattr(score, "BATCH_TOKENS", {"cpu": 3 * 32})
    monkeypatch.setattr(score, "MIN_LENGTH", 32)
    other = Scorer(MODEL, scorer.mesh, MeshConfig(), jnp.float32)
    assert (other.lengths, other.count_rows(32)) == ([32], 3) and scorer.lengths == [16, 32]
    np.testing.assert_allclose(other.score(params, encoded.windows), wanted, rtol=1e-5)


def test_one_program_a_length(params: Any) -> None:
    compiled: list[str] = []

    def listen(event: str, _: float, **more: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(str(more.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    fresh = Scorer(MODEL, make_mesh(MeshConfig(), jax.devices()[:1]), MeshConfig(), jnp.float32)
    for seed, items in ((3, 30), (4, 7), (5, 150)):
        fresh.score(params, encode_task(random_task(items, seed), ByteTokenizer(), MODEL.seq_len, 0, ()).windows)
    assert sorted(length for _, length in fresh.programs) == [16, 32]
    assert len(compiled) == 2


@pytest.fixture(scope="module")
def bigram() -> tuple[LoadedModel, np.ndarray]:
    """A model without attention or MLP whose next-byte probabilities are a table [previous, next]."""
    model = ModelConfig(d_model=256, n_layers=1, head_dim=64, seq_len=32, norm_eps=1e-12, parameterization="standard")
    log_p = np.log(np.random.default_rng(0).dirichlet(np.full(256, 0.3), 256) + 1e-6)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    decoder: Decoder = make_decoder(model, 0)
    decoder.embed[...] = jnp.eye(256)
    decoder.head[...] = jnp.float32(log_p / (16 * forward_multipliers(model).logits))  # a normed row is 16 at its place
    for name in ("wo", "w_down"):
        weight = getattr(decoder.blocks, name)
        weight[...] = jnp.zeros_like(weight[...])
    scorer = Scorer(model, make_mesh(MeshConfig(), jax.devices()[:1]), MeshConfig(), jnp.float32)
    return LoadedModel(scorer, nnx.split(decoder, nnx.Param)[1], ByteTokenizer()), log_p


def bigram_nll(log_p: np.ndarray, item: Item, choice: str) -> float:
    """Of the space and the choice; only the byte before matters, so that a cut context changes nothing."""
    ids = np.frombuffer(f"{item.question} {choice}".encode(), np.uint8)
    start = len(item.question.encode())
    return -float(sum(log_p[ids[t - 1], ids[t]] for t in range(start, len(ids))))


def measure(model: LoadedModel, task: Task, normalization: Any = "byte") -> dict[str, Any]:
    encoded = encode_task(task, model.tokenizer, model.scorer.seq_len, 0, ())
    return measure_task(task, nll_of(model.scorer, model.params, encoded), encoded.tokens, normalization)


def test_numbers_of_a_task_are_the_closed_forms_of_a_bigram(bigram: tuple[LoadedModel, np.ndarray]) -> None:
    model, log_p = bigram
    task = random_task(200, seed=6)
    sizes: dict[str, Callable[[str], int]] = {
        "sum": lambda _: 1, "token": lambda c: 1 + len(c.encode()), "byte": lambda c: len(c.encode()), "char": len,
    }  # fmt: skip
    nll = [[bigram_nll(log_p, item, choice) for choice in item.choices] for item in task.items]
    told = measure(model, task, "char")
    for name, size in sizes.items():
        right = [
            min(range(len(own)), key=lambda i, own=own, item=item: own[i] / size(item.choices[i])) == item.label
            for own, item in zip(nll, task.items, strict=True)
        ]
        assert told[f"accuracy_{name}"] == pytest.approx(np.mean(right))
    correct = [own[item.label] for own, item in zip(nll, task.items, strict=True)]
    for name in ("byte", "token"):
        rates = [n / sizes[name](item.choices[item.label]) for n, item in zip(correct, task.items, strict=True)]
        assert told[f"nll_per_{name}"] == pytest.approx(np.mean(rates), rel=1e-5)
    p = [
        math.exp(-own[item.label] / sizes["byte"](item.choices[item.label]))
        / math.fsum(math.exp(-n / sizes["byte"](c)) for n, c in zip(own, item.choices, strict=True))
        for own, item in zip(nll, task.items, strict=True)
    ]
    assert told["p_correct"] == pytest.approx(np.mean(p), rel=1e-5)
    assert told["accuracy"] == told["accuracy_char"]
    assert told["accuracy_std_error"] == pytest.approx(
        np.std([x == 1 for x in _hits(model, task, "char")], ddof=1) / math.sqrt(200)
    )
    assert told["chance"] == pytest.approx(np.mean([1 / len(item.choices) for item in task.items]))


def _hits(model: LoadedModel, task: Task, name: str) -> list[int]:
    encoded = encode_task(task, model.tokenizer, model.scorer.seq_len, 0, ())
    taken = predict_choices(task, nll_of(model.scorer, model.params, encoded), encoded.tokens)[name]
    return [int(t == item.label) for t, item in zip(taken, task.items, strict=True)]


def _predict(model: LoadedModel, task: Task) -> dict[str, np.ndarray]:
    encoded = encode_task(task, model.tokenizer, model.scorer.seq_len, 0, ())
    return predict_choices(task, nll_of(model.scorer, model.params, encoded), encoded.tokens)


def test_permuted_choices_permute_predictions(bigram: tuple[LoadedModel, np.ndarray]) -> None:
    model, _ = bigram
    task = random_task(100, seed=7)
    task = replace(task, items=tuple(replace(i, choices=tuple(dict.fromkeys((*i.choices, "x")))) for i in task.items))
    rng = np.random.default_rng(1)
    orders = [rng.permutation(len(item.choices)) for item in task.items]
    moved = [replace(item, choices=tuple(item.choices[i] for i in order), label=int(np.argmax(order == item.label)))
             for item, order in zip(task.items, orders, strict=True)]  # fmt: skip
    before, after = _predict(model, task), _predict(model, replace(task, items=tuple(moved)))
    for name in before:
        assert [order[t] for order, t in zip(orders, after[name], strict=True)] == before[name].tolist()


def test_the_first_of_equal_choices_is_taken(bigram: tuple[LoadedModel, np.ndarray]) -> None:
    model, _ = bigram
    items = [Item(item.question, (item.choices[0],) * 4, 0) for item in random_task(50, seed=8).items]
    for taken in _predict(model, Task("equal", tuple(items), "")).values():
        assert not taken.any()


def test_duplicated_items_change_no_mean(bigram: tuple[LoadedModel, np.ndarray]) -> None:
    model, _ = bigram
    task = random_task(30, seed=9)
    once, twice = measure(model, task), measure(model, replace(task, items=task.items * 2))
    assert twice["items"] == 60
    for name in ("accuracy", "nll_per_byte", "p_correct", "chance"):
        assert twice[name] == pytest.approx(once[name], rel=1e-12)


def test_shuffled_labels_are_at_chance(bigram: tuple[LoadedModel, np.ndarray]) -> None:
    model, _ = bigram
    rng = np.random.default_rng(2)
    items = tuple(replace(i, label=int(rng.integers(len(i.choices)))) for i in random_task(1500, seed=10).items)
    told = measure(model, Task("shuffled", items, ""))
    assert abs(told["accuracy"] - told["chance"]) < 3 * told["accuracy_std_error"]


def test_a_likelihood_that_is_not_finite_is_no_answer() -> None:
    task = random_task(3)
    choices = sum(len(item.choices) for item in task.items)
    with pytest.raises(VerdictError, match=f"task random: the model gives 1 of {choices} choices no finite"):
        measure_task(task, np.array([np.nan, *[1.0] * (choices - 1)]), np.ones(choices, np.int64), "sum")


def test_examples_come_before_the_question_and_never_hold_the_item() -> None:
    items = tuple(Item(f"q{i}", (f"yes{i}", f"no{i}"), i % 2) for i in range(6))
    task = Task("shots", (*items, items[0]), "")
    assert next(make_prompts(task, 0)) == "q0"
    prompts = list(make_prompts(task, 2))
    assert prompts[4] == "q0 yes0\n\nq1 no1\n\nq4"
    assert prompts[0] == prompts[6] == "q1 no1\n\nq2 yes2\n\nq0"
    assert prompts[1] == "q0 yes0\n\nq2 yes2\n\nq1"
    with pytest.raises(MisuseError, match="task shots: 6 examples are asked for and 5 others are there"):
        list(make_prompts(task, 6))


def test_examples_drawn_from_a_file_are_the_same_each_time() -> None:
    pool = tuple(Item(f"p{i}", ("a", "b"), 0) for i in range(20))
    task = Task("shots", pool[:10], "")
    prompts = list(make_prompts(task, 3, pool))
    assert prompts == list(make_prompts(task, 3, pool)) and len({p.rsplit("\n\n", 1)[0] for p in prompts}) == 10
    for item, prompt in zip(task.items, prompts, strict=True):
        assert prompt.endswith(f"\n\n{item.question}") and f"{item.solved}\n" not in prompt


def test_loss_of_a_text_is_the_exact_mean_by_source(tmp_path: Path, bigram: tuple[LoadedModel, np.ndarray]) -> None:
    model, log_p = bigram
    (tmp_path / "a.txt").write_text(" ".join(WORDS * 3))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"body": word}) + "\n" for word in WORDS))
    texts = read_texts([str(tmp_path / "*")], DataConfig(text_field="body"))
    assert [Path(text.source).name for text in texts] == ["a.txt", "b.jsonl"]
    joined = [" ".join(WORDS * 3) + "\n\n", "".join(word + "\n\n" for word in WORDS)]
    for text, whole in zip(texts, joined, strict=True):
        ids = np.frombuffer(whole.encode(), np.uint8)
        told = measure_text(model, text)
        assert (told["tokens"], told["bytes"]) == (len(ids), len(ids))
        assert told["nll_per_token"] == pytest.approx(-np.mean(log_p[ids[:-1], ids[1:]]), rel=1e-5)
        assert told["bits_per_byte"] == pytest.approx(told["nll_per_token"] / math.log(2))
    (tmp_path / "c.txt").write_text("\n\n")
    with pytest.raises(MisuseError, match=r"c\.txt holds no text"):
        read_texts([str(tmp_path / "c.txt")], DataConfig())
