"""What a run reads of the token files: exact shares, nested subsets, whole repetitions; and the loss by source."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_study

from jaxscale.collect import collect_runs
from jaxscale.config import DataConfig, MeshConfig, ModelConfig
from jaxscale.data import quality
from jaxscale.data.attribution import make_validation
from jaxscale.data.batches import BatchSource
from jaxscale.data.mixture import MixtureSource, open_batches, order_sources, resolve_shares
from jaxscale.data.pieces import Part, Pieces
from jaxscale.data.select import count_read, describe_reading
from jaxscale.data.split import hash_text
from jaxscale.data.tokens import build_tokens
from jaxscale.errors import MisuseError
from jaxscale.fit import fit_parametric
from jaxscale.flops import count_params
from jaxscale.laws import MUENNIGHOFF_2023
from jaxscale.limits import check_limits
from jaxscale.plain import seal_json, to_plain
from jaxscale.plan import plan_isoflop
from jaxscale.runs import ADDED_FIELDS, RunResult, RunSpec
from jaxscale.source import read_observations
from jaxscale.train.loop import Preempted, train_run
from jaxscale.train.sharding import make_mesh
from jaxscale.train.step import make_program

TEXTS = {
    "verse": "o thou sweet night of stars and silver song be still my heart",
    "code": "def return import class self value = ( ) [ ] { } : . , lambda yield",
    "list": "one two three four five six seven eight nine ten eleven twelve",
}
MIX = (("*verse*", 0.3), ("*code*", 0.7))


def write_source(folder: Path, name: str, documents: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": f"{name} {i}: " + " ".join(rng.choice(TEXTS[name].split(), rng.integers(60, 400)))})
             for i in range(documents)]  # fmt: skip
    (folder / f"{name}.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    root = tmp_path_factory.mktemp("mixture")
    for seed, (name, documents) in enumerate({"verse": 60, "code": 120, "list": 40}.items()):
        write_source(root / "text", name, documents, seed)
    return DataConfig(files=(str(root / "text"),), val_fraction=0.2, val_tokens=12_000, cache=str(root / "cache"))


def make_parts(sizes: list[int], shares: list[float]) -> tuple[Part, ...]:
    tokens = np.arange(sum(sizes), dtype=np.uint32)
    starts = np.cumsum([0, *sizes[:-1]])
    return tuple(
        Part(str(i), share, Pieces(tokens, np.array([start]), np.array([size])), (i,), i + 1)
        for i, (start, size, share) in enumerate(zip(starts, sizes, shares, strict=True))
    )


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.1, 0.9], [1, 2, 4], [0.05, 0.15, 0.3, 0.5], [0.31, 0.69]])
def test_shares_are_met_within_a_window_at_every_prefix(weights: list[float]) -> None:
    source = MixtureSource(make_parts([10_000] * len(weights), weights), seq_len=16, batch_seqs=7, seed=0)
    part, _ = source.find_rows(0, 300)
    exact = [Fraction(str(weight)) / sum(Fraction(str(w)) for w in weights) for weight in weights]
    for s, share in enumerate(exact):
        seen = np.cumsum(part == s)
        assert max(abs(int(count) - share * (n + 1)) for n, count in enumerate(seen)) < 1


def test_a_share_without_a_short_period_is_met_to_one_window_in_a_million() -> None:
    weights = [np.e, np.pi, 1.0]
    counts = resolve_shares(weights)
    assert np.abs(np.array(counts) / sum(counts) - np.array(weights) / sum(weights)).max() < 1e-6
    assert np.bincount(order_sources(counts)).tolist() == list(counts)
    with pytest.raises(MisuseError, match="smallest share, 1e-06, is below 1 / 65536"):
        resolve_shares([1.0, 1e-6])


def test_a_short_source_is_read_whole_as_often_as_its_share_asks() -> None:
    source = MixtureSource(make_parts([161, 1601], [0.5, 0.5]), seq_len=16, batch_seqs=8, seed=3)
    part, window = source.find_rows(0, 50)  # 200 windows of each; they have 10 and 100
    for s, size in enumerate((10, 100)):
        read = window[part == s].reshape(-1, size)
        assert (np.sort(read, 1) == np.arange(size)).all()
        assert len({tuple(order) for order in read.tolist()}) == len(read)
    targets = source.read_steps(0, 50)[..., 1:].ravel()
    assert set(Counter(targets[targets < 161].tolist()).values()) == {20}


def test_processes_and_later_starts_read_the_same_rows() -> None:
    parts = make_parts([500, 900, 333], [0.2, 0.5, 0.3])
    whole = MixtureSource(parts, 16, 8, seed=5).read_steps(0, 60)
    for count in (2, 4):
        slices = [MixtureSource(parts, 16, 8, 5, i, count).read_steps(11, 40) for i in range(count)]
        np.testing.assert_array_equal(np.concatenate(slices, 1), whole[11:51])
    assert (MixtureSource(parts, 16, 8, seed=6).read_steps(0, 60) != whole).any()


def test_pieces_read_as_one_text_whatever_they_are_cut_into() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 99, 400)
    starts, lengths = rng.integers(0, 350, 60), rng.integers(1, 9, 60)
    flat = np.concatenate([tokens[s : s + n] for s, n in zip(starts, lengths, strict=True)])
    at = rng.integers(0, len(flat) - 20, 200)
    np.testing.assert_array_equal(Pieces(tokens, starts, lengths).read(at, 20), flat[at[:, None] + np.arange(20)])


def test_files_of_before_are_found_by_the_same_key_and_read_the_same(config: DataConfig) -> None:
    later = ("mixture", "val_files", "unique_tokens", "quality_from", "quality_keep", "decontaminate",
             "decontaminate_ngram", "bytes_per_token")  # fmt: skip
    assert set(later) <= set(ADDED_FIELDS["data"][1])
    files = build_tokens(config)
    kept = {n: v for n, v in asdict(config).items() if n not in
            (*later, "cache", "max_epochs", "declared_train_tokens", "files", "tokenizer")}  # fmt: skip
    paths = sorted(Path(config.files[0]).iterdir())
    inputs = [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]
    key = hashlib.sha256(json.dumps([1, kept, "bytes", inputs], sort_keys=True).encode()).hexdigest()[:16]
    assert files.folder.name == key
    assert isinstance(open_batches(files, 16, 8, 0), BatchSource) and not files.parts


def test_every_choice_reads_one_set_of_token_files(config: DataConfig) -> None:
    plain = build_tokens(config)
    choices = [{"mixture": MIX}, {"mixture": (("*code*", 1.0),)}, {"unique_tokens": 5000.0},
               {"mixture": MIX, "unique_tokens": 5000.0}]  # fmt: skip
    for choice in choices:
        files = build_tokens(replace(config, **choice))  # type: ignore[arg-type]
        assert files.folder == plain.folder and files.info.data_sha256 == plain.info.data_sha256
        assert files.val_sha256 == plain.val_sha256


def test_token_files_without_an_index_are_built_again_once_it_is_needed(config: DataConfig, tmp_path: Path) -> None:
    config = replace(config, cache=str(tmp_path))
    before = build_tokens(config)
    meta = json.loads((before.folder / "meta.json").read_text())
    del meta["files"]["documents.npy"], meta["val_spans"]
    (before.folder / "meta.json").write_text(json.dumps(meta))
    (before.folder / "documents.npy").unlink()
    old = build_tokens(config)
    assert old.info == before.info and not old.val_spans and not make_validation(old, config, 16).names
    assert build_tokens(replace(config, unique_tokens=3000.0)).info.data_sha256 == before.info.data_sha256
    assert build_tokens(config).val_spans == before.val_spans


def read_part(part: Part) -> bytes:
    return part.text.read(np.array([0]), len(part.text))[0].astype(np.uint8).tobytes()


def test_unique_tokens_are_the_first_of_the_documents_by_hash(config: DataConfig) -> None:
    documents = build_tokens(config).train.astype(np.uint8).tobytes().split(b"\n\n")[:-1]
    by_hash = b"".join(t + b"\n\n" for t in sorted(documents, key=lambda text: hash_text(text, b"subset")))
    for unique in (40_000, 9_001, 700):  # nested, then
        files = build_tokens(replace(config, unique_tokens=float(unique)))
        assert read_part(files.parts[0]) == by_hash[:unique]
        assert files.info.train_tokens == unique == sum(row["read_tokens"] for row in count_read(files))


def test_every_unique_token_is_read_once_an_epoch(config: DataConfig) -> None:
    files = build_tokens(replace(config, unique_tokens=16.0 * 100 + 1))
    text = files.parts[0].text
    numbered = replace(files.parts[0], text=Pieces(np.arange(len(text.tokens)), text.starts, text.lengths))
    targets = MixtureSource((numbered,), 16, 10, seed=1).read_steps(0, 70)[..., 1:]  # 7 epochs of 100 windows
    counts = Counter(targets.ravel().tolist())
    assert set(counts.values()) == {7} and len(counts) == 1600
    assert describe_reading(files, targets.size) == {"unique_tokens": 1601}


def test_a_mixture_of_unique_tokens_repeats_all_sources_equally(config: DataConfig) -> None:
    files = build_tokens(replace(config, mixture=MIX, unique_tokens=10_000.0))
    assert [len(part.text) for part in files.parts] == [3000, 7000]
    told = describe_reading(files, 40_000)
    assert told["unique_tokens"] == 10_000 and [row["epochs"] for row in told["mixture"].values()] == [4, 4]
    alone = build_tokens(replace(config, mixture=(("*code*", 1.0),), unique_tokens=7000.0))
    assert read_part(alone.parts[0]) == read_part(files.parts[1])


def test_epochs_are_those_of_the_source_that_is_used_up_first(config: DataConfig, tmp_path: Path) -> None:
    study = make_study(tmp_path, budgets=(6e8,))
    data = replace(config, mixture=MIX, max_epochs=50.0)
    verse, code = (sum(r["train_tokens"] for r in count_read(build_tokens(config)) if name in r["source"])
                   for name in ("verse", "code"))  # fmt: skip
    info = build_tokens(data).info
    assert info.train_tokens == int(min(verse / 0.3, code / 0.7))
    cell = plan_isoflop(replace(study, data=data), train_tokens=info.train_tokens).cells[0]
    assert cell.epochs == pytest.approx(max(0.3 * cell.spec.tokens / verse, 0.7 * cell.spec.tokens / code), rel=1e-3)
    few = replace(data, max_epochs=0.5 * cell.epochs)
    with pytest.raises(MisuseError, match=r"tokens of source code \(data.mixture\) with [\d,]+, that is .* epochs"):
        train_run(replace(cell.spec, data=few), tmp_path / "few")
    fewest = replace(data, max_epochs=0.01)
    with pytest.raises(MisuseError, match=r"epochs of the source of data\.mixture that is used up first"):
        plan_isoflop(replace(study, data=fewest), train_tokens=info.train_tokens)
    unique = replace(study, data=replace(config, unique_tokens=2000.0, max_epochs=1e6))
    for known in (None, 1e6):
        planned = plan_isoflop(unique, train_tokens=known).cells[0]
        assert planned.epochs == planned.spec.tokens / 2000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture": (("*prose*", 1.0),)}, r"pattern '\*prose\*' matches no file of data.files with training text"),
        ({"mixture": (("*e*", 1.0), ("*code*", 1.0))}, r"code.jsonl matches '\*e\*' and '\*code\*'"),
        ({"mixture": (("*code*", 1.0), ("*code*", 1.0))}, "is there twice"),
        ({"mixture": (("*code*", 0.0), ("*verse*", 1.0))}, "weight 0 of .* is not a positive number"),
        ({"unique_tokens": 1e9}, r"the training text has only \d+; ask for at most"),
        ({"unique_tokens": 6e4, "mixture": (("*list*", 0.9), ("*code*", 0.1))}, "54000 of them are to come from list"),
        ({"quality_keep": 0.5}, "is read only with data.quality_from"),
        ({"quality_from": ("/nowhere/*",)}, "data.quality_from: pattern '/nowhere/.' matches no file"),
        ({"val_files": ("/nowhere/*",)}, "data.val_files: pattern"),
    ],
)
def test_misuse_is_one_sentence(config: DataConfig, change: dict[str, object], message: str) -> None:
    with pytest.raises(MisuseError, match=message) as caught:
        build_tokens(replace(config, **change))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_limits_name_a_weight_before_any_text_is_read(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    with pytest.raises(MisuseError, match=r"data\.mixture: weight -1 of 'a'"):
        check_limits(replace(study, data=DataConfig(mixture=(("a", -1.0),))))


def test_the_documents_most_like_the_reference_are_kept(config: DataConfig, tmp_path: Path) -> None:
    write_source(tmp_path, "verse", 5, seed=99)
    data = replace(config, quality_from=(str(tmp_path / "verse.jsonl"),))
    rows = {Path(row["source"]).stem: row["train_tokens"] for row in count_read(build_tokens(config))}
    share = rows["verse"] / sum(rows.values())
    kept = {Path(r["source"]).stem: r for r in count_read(build_tokens(replace(data, quality_keep=share * 0.98)))}
    assert kept["verse"]["read_tokens"] > 0.96 * rows["verse"]
    assert kept["code"]["read_tokens"] == kept["list"]["read_tokens"] == 0
    whole, half = build_tokens(replace(data, quality_keep=1.0)), build_tokens(replace(data, quality_keep=0.5))
    assert read_part(whole.parts[0]) == build_tokens(config).train.astype(np.uint8).tobytes()
    assert 0.5 * sum(rows.values()) <= half.info.train_tokens < 0.5 * sum(rows.values()) + 3000
    assert whole.info.data_sha256 == half.info.data_sha256 != build_tokens(config).info.data_sha256
    mixed = build_tokens(replace(data, quality_keep=0.5, mixture=MIX))  # each source by itself
    assert [round(len(p.text) / rows[p.name], 1) for p in mixed.parts] == [0.5, 0.5]


def test_scores_are_mean_log_ratios_of_ngram_frequencies(config: DataConfig, tmp_path: Path) -> None:
    """Against a count of the n-grams themselves, in a dictionary: hashing into buckets only adds collisions."""
    write_source(tmp_path, "verse", 3, seed=7)
    files = build_tokens(config)
    scores, _ = quality.score_documents(files, replace(config, quality_from=(str(tmp_path / "verse.jsonl"),)))
    texts = files.train.astype(np.uint8).tobytes().split(b"\n\n")[:-1]
    reference = [json.loads(line)["text"].encode() for line in (tmp_path / "verse.jsonl").read_text().split("\n")]

    def grams(text: bytes) -> list[tuple[bytes, ...]]:
        words = quality.WORD.findall(text.lower())
        return [(word,) for word in words] + list(pairwise(words))

    p, q = Counter(g for t in reference for g in grams(t)), Counter(g for t in texts for g in grams(t))

    def log_share(counts: Counter[tuple[bytes, ...]], gram: tuple[bytes, ...]) -> float:
        return float(np.log((counts[gram] + 1) / (counts.total() + quality.BUCKETS)))

    exact = np.array([np.mean([log_share(p, g) - log_share(q, g) for g in grams(text)]) for text in texts])
    assert np.abs(scores - exact).max() < 0.1 < np.ptp(exact)


def test_validation_on_other_files_leaves_the_training_text_as_it_is(config: DataConfig) -> None:
    folder = Path(config.files[0])
    train = replace(config, files=(str(folder / "code.jsonl"),), val_tokens=4000)
    other = replace(train, val_files=(str(folder / "verse.jsonl"),))
    here, there = build_tokens(train), build_tokens(other)
    assert (here.train == there.train).all()
    assert here.val_sha256 != there.val_sha256 and here.info.data_sha256 != there.info.data_sha256
    assert {Path(row.source).stem: row.val_tokens for row in there.sources} == {"code": 0, "verse": 4000}
    documents = [json.loads(line)["text"].encode() for line in (folder / "verse.jsonl").read_text().split("\n")]
    pieces = there.val.astype(np.uint8).tobytes().split(b"\n\n")
    assert all(any(piece in text for text in documents) for piece in pieces)
    both = build_tokens(replace(config, val_tokens=2000, val_files=(str(folder / "verse.jsonl"),)))
    held = build_tokens(replace(config, files=(str(folder / "verse.jsonl"),), val_tokens=2000))
    assert (both.val == held.val).all()  # of a file that is also trained on only what is held out


def test_each_target_is_masked_for_its_own_source_alone(config: DataConfig) -> None:
    data = replace(config, mixture=(("*verse*", 0.5), ("*code*", 0.5)))
    files = build_tokens(data)
    validation = make_validation(files, data, seq_len=100)
    val = files.val.astype(np.uint8).tobytes()
    names, end, owner = [], 0, []
    for number, tokens in files.val_spans:
        name = Path(files.sources[number].source).stem
        for piece in val[end : end + tokens].split(b"\n\n"):  # the span says whose text it is, the text says so too
            assert not piece or not piece.startswith((b"verse", b"code", b"list")) or piece.startswith(name.encode())
        owner += [name] * tokens
        end += tokens
        names.append(name)
    assert sorted(validation.names) == sorted(set(names)) == ["code", "list", "verse"]
    rng = np.random.default_rng(0)
    losses = rng.random(len(val) - 1)
    padded = np.zeros(validation.windows[:, 1:].size)
    padded[: len(losses)] = losses
    sums = (padded.reshape(-1, 1, 100) * validation.mask).sum(-1)
    told = validation.split_sums(sums)
    for name, row in told.items():
        mine = np.array([one == name for one in owner[1:]])
        assert row["tokens"] == mine.sum() and row["loss"] == pytest.approx(losses[mine].mean(), rel=1e-12)
    assert sum(row["tokens"] for row in told.values()) == len(losses) == validation.counts.sum()


def stop_after(count: int):
    calls = iter(range(10**6))
    return lambda: next(calls) >= count


def test_a_run_on_a_mixture_tells_its_losses_and_resumes_to_the_same_bits(config: DataConfig, tmp_path: Path) -> None:
    study = make_study(tmp_path, budgets=(6e8,))
    data = replace(config, mixture=MIX, unique_tokens=20_000.0, max_epochs=50.0)
    spec = plan_isoflop(replace(study, data=data), train_tokens=20_000).cells[1].spec
    whole = train_run(spec, tmp_path / "whole")
    with pytest.raises(Preempted):
        train_run(spec, tmp_path / "stopped", should_stop=stop_after(2))
    again = train_run(spec, tmp_path / "stopped")
    assert (again.loss, again.losses, again.train_loss) == (whole.loss, whole.losses, whole.train_loss)
    assert list(whole.losses) and set(whole.losses) == {"verse", "code", "list"}
    tokens = {name: row["tokens"] for name, row in whole.losses.items()}
    mean = sum(row["loss"] * row["tokens"] for row in whole.losses.values()) / sum(tokens.values())
    assert sum(tokens.values()) == data.val_tokens - 1 and mean == pytest.approx(whole.loss, rel=1e-6)
    assert whole.losses["list"]["loss"] > whole.losses["code"]["loss"]  # not trained on
    row = collect_runs(tmp_path / "whole").frame.iloc[0]
    assert row["U"] == 20_000 and row["share:verse"] == 0.3 and row["loss:code"] == whole.losses["code"]["loss"]
    assert row["epochs:code"] == pytest.approx(spec.tokens / 20_000) and row["D"] == spec.tokens
    obs = read_observations(collect_runs(tmp_path / "whole").frame, columns={"loss": "loss:verse"})
    assert obs.frame.loss[0] == whole.losses["verse"]["loss"]


def test_one_forward_pass_sums_a_window_for_each_of_its_masks() -> None:
    model = ModelConfig(d_model=8, n_layers=1, seq_len=16, head_dim=4, head_std=0.2)
    program = make_program(model, "cosine", 4, make_mesh(MeshConfig(), jax.devices()[:1]), jnp.float32)
    params = program.init(jnp.uint32(0)).params
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 256, (2, 4, 17)).astype(np.int32)
    masks = (rng.random((2, 4, 3, 16)) < 0.4).astype(np.float32)
    together = np.asarray(program.evaluate(params, windows, masks))
    alone = [np.asarray(program.evaluate(params, windows, masks[:, :, i])) for i in range(3)]
    np.testing.assert_allclose(together, np.stack(alone, -1), rtol=1e-6)


def test_the_repetition_law_is_found_again_from_runs_of_unique_tokens(config: DataConfig, tmp_path: Path) -> None:
    """U goes from the config through token files, results and collect into the fit; the losses are planted."""
    base = plan_isoflop(make_study(tmp_path), train_tokens=1e9).cells[0].spec
    law = replace(MUENNIGHOFF_2023, E=1.5, A=20.0, B=30.0, alpha=0.4, beta=0.35, R_D=6.0, R_N=4.0)
    for width in (8, 32):
        for unique in (2e3, 8e3, 4e4):
            for epochs in (0.5, 2, 4, 16, 64):
                write_planted(base, config, tmp_path / "runs", law, width, unique, epochs)
    obs = collect_runs(tmp_path / "runs")
    assert sorted({round(U) for U in obs.frame.U if U in (2e3, 8e3, 4e4)}) == [2000, 8000, 40_000]
    fixed = {name: getattr(law, name) for name in ("E", "A", "B", "alpha", "beta")}
    fit = fit_parametric(obs, law="repetition", bootstrap=0, fix=fixed)
    assert fit.params["R_D"] == pytest.approx(6.0, rel=1e-3) and fit.params["R_N"] == pytest.approx(4.0, rel=1e-3)


def write_planted(
    base: RunSpec, config: DataConfig, out: Path, law: object, width: int, unique: float, epochs: float
) -> None:
    model = replace(base.model, d_model=width)
    data, tokens = replace(config, unique_tokens=unique, max_epochs=100.0), int(unique * epochs)
    spec = replace(base, model=model, data=data, tokens=tokens)
    told = describe_reading(build_tokens(data), tokens)
    N = count_params(model)["total"]
    loss = float(law.loss(float(N), float(tokens), told["unique_tokens"]))  # type: ignore[attr-defined]
    result = RunResult(
        spec.run_id, "done", "", loss, 0.0, None, loss, N, N, tokens, 6.0 * N * tokens, spec.steps, 1.0, 1.0, 1.0, 0,
        provenance=told,
    )  # fmt: skip
    folder = out / spec.run_id
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(seal_json(to_plain(spec)))
    (folder / "result.json").write_text(seal_json(to_plain(result)))
