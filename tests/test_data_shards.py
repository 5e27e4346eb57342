"""Ready token files: the windows of all files joined, identified by content, and refused by name."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tiny import make_study, write_study

from jaxscale.cli import dispatch
from jaxscale.config import DataConfig
from jaxscale.data import shards
from jaxscale.data.attribution import make_validation
from jaxscale.data.batches import BatchSource
from jaxscale.data.files import TokenFiles
from jaxscale.data.mixture import MixtureSource, open_batches
from jaxscale.data.pieces import Pieces
from jaxscale.data.segments import Segments
from jaxscale.data.select import count_read
from jaxscale.data.tokenizer import train_bpe
from jaxscale.data.tokens import build_tokens
from jaxscale.errors import MisuseError
from jaxscale.plan import plan_isoflop
from jaxscale.sweep import read_plan
from jaxscale.train.loop import train_run

IDS = np.random.default_rng(0).integers(0, 5000, 12_345)
CUTS = (0, 5000, 5013, 9000, 12_345)
TEXT = b"small models tell of large ones; r\xc3\xa9sum\xc3\xa9. " * 300


def write_raw(path: Path, ids: np.ndarray) -> Path:
    ids.astype("<u2").tofile(path.with_suffix(".bin"))
    return path.with_suffix(".bin")


def write_npy(path: Path, ids: np.ndarray, dtype: str = "<u2") -> Path:
    np.save(path.with_suffix(".npy"), ids.astype(dtype))
    return path.with_suffix(".npy")


def write_llmc(path: Path, ids: np.ndarray, magic: int = 20240520, version: int = 1) -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids)
    path = path.with_suffix(".bin")
    path.write_bytes(header.tobytes() + ids.astype("<u2" if version == 1 else "<u4").tobytes())
    return path


WRITERS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "raw": write_raw,
    "npy": write_npy,
    "npy of 32 bits": lambda path, ids: write_npy(path, ids, "<u4"),
    "llm.c": write_llmc,
    "llm.c, llama 3": lambda path, ids: write_llmc(path, ids, 20240801, 7),
}


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(files=(str(tmp_path / "shards/*"),), tokenizer="ids:5000", val_fraction=0.1, val_tokens=1000,
                      cache=str(tmp_path / "cache"))  # fmt: skip


def write_shards(folder: Path, write: Callable[[Path, np.ndarray], Path]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return [write(folder / f"part_{i:03}", IDS[a:b]) for i, (a, b) in enumerate(pairwise(CUTS))]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("seq_len", [16, 700])
def test_windows_are_those_of_the_joined_files(config: DataConfig, tmp_path: Path, kind: str, seq_len: int) -> None:
    write_shards(tmp_path / "shards", WRITERS[kind])
    files = build_tokens(config)
    n_train = len(IDS) - round(len(IDS) * 0.1)
    assert isinstance(files.train, Segments)
    assert len(files.train) == files.info.train_tokens == n_train
    np.testing.assert_array_equal(files.val, IDS[n_train : n_train + 1000])
    joined = BatchSource(IDS[:n_train].astype(np.uint16), seq_len, 8, seed=1)
    in_place = BatchSource(files.train, seq_len, 8, seed=1)
    assert in_place.n_windows == joined.n_windows
    got = in_place.read_steps(0, 2 * joined.n_windows // 8)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, joined.read_steps(0, 2 * joined.n_windows // 8))
    assert not list(files.folder.glob("*.bin"))
    assert [sum(s.train_tokens for s in files.sources), sum(s.val_tokens for s in files.sources)] == [n_train, 1000]


def test_whole_files_may_be_held_out(config: DataConfig, tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "shards", write_raw)
    held = paths[3].rename(tmp_path / "held.bin")
    config = replace(config, val_files=(str(held),))
    files = build_tokens(config)
    assert files.info.train_tokens == CUTS[3]
    np.testing.assert_array_equal(files.val, IDS[CUTS[3] : CUTS[3] + 1000])
    write_npy(tmp_path / "shards/again", IDS[CUTS[3] :])
    with pytest.raises(MisuseError, match=r"data.val_files: .*held\.bin is among data.files too"):
        build_tokens(config)


def test_contents_decide_the_hash_and_are_read_once(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "shards", write_raw)
    heard: list[tuple[int, int]] = []
    first = build_tokens(config, lambda done, total: heard.append((done, total)))
    assert heard == sorted(heard)
    assert heard[-1] == (2 * len(IDS), 2 * len(IDS))
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_read_all", None)
        assert build_tokens(config) == first
        assert build_tokens(replace(config, val_tokens=900)).info.data_sha256 != first.info.data_sha256
    (tmp_path / "shards").rename(tmp_path / "moved")
    moved = build_tokens(replace(config, files=(str(tmp_path / "moved"),)))
    assert moved.info.data_sha256 == first.info.data_sha256
    write_raw(tmp_path / "moved/part_001", IDS[CUTS[1] : CUTS[2]] + 1)
    assert build_tokens(replace(config, files=(str(tmp_path / "moved"),))).info.data_sha256 != first.info.data_sha256


def test_a_shard_that_was_cut_is_noticed(config: DataConfig, tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "shards", write_raw)
    folder = build_tokens(config).folder
    paths[2].write_bytes(b"ab")
    with pytest.raises(MisuseError, match=r"part_002\.bin: 2 bytes, 7974 were there"):
        TokenFiles.open(folder)


def test_bits_per_byte_are_exact_declared_or_unknown(config: DataConfig, tmp_path: Path) -> None:
    train_bpe([TEXT], 280, tmp_path / "t.json")
    (tmp_path / "text.txt").write_bytes(TEXT)
    text = DataConfig(files=(str(tmp_path / "text.txt"),), document_bytes=1024, val_tokens=200, val_fraction=0.3,
                      tokenizer=str(tmp_path / "t.json"), drop_repeated_lines=False, cache=config.cache)  # fmt: skip
    made = build_tokens(text)
    (tmp_path / "shards").mkdir()
    write_raw(tmp_path / "shards/a", np.asarray(made.train))
    write_npy(tmp_path / "val", np.asarray(made.val))
    config = replace(config, val_files=(str(tmp_path / "val.npy"),), val_tokens=200)
    known = build_tokens(replace(config, tokenizer=str(tmp_path / "t.json")))
    assert known.info.val_bytes == made.info.val_bytes
    assert known.load_tokenizer().decode(known.val.tolist())[:40] in TEXT.decode()
    assert build_tokens(config).info.val_bytes_per_token is None
    declared = build_tokens(replace(config, bytes_per_token=2.5)).info
    assert (declared.val_bytes, declared.val_bytes_per_token) == (500, 2.5)
    with pytest.raises(MisuseError, match="tells it exactly"):
        build_tokens(replace(config, tokenizer=str(tmp_path / "t.json"), bytes_per_token=2.5))
    with pytest.raises(MisuseError, match="not what they stand for"):
        build_tokens(config).load_tokenizer()


BAD = {
    "text.txt": (b"text", {}, "holds ready tokens and .*text.txt text"),
    "id.npy": (np.array([1, 5000], "u2"), {}, r"id\.npy: holds id 5000, and data.tokenizer ids:5000 has 5000 ids"),
    "two.npy": (np.zeros((2, 2), "u2"), {}, r"two\.npy: holds uint16 of shape \(2, 2\)"),
    "float.npy": (np.zeros(4), {}, r"float\.npy: holds float64"),
    "object.npy": (b"\x93NUMPYno", {}, "not a readable .npy file"),
    "odd.bin": (b"abc", {}, "3 bytes are no whole number of <u2 ids"),
    "cut.bin": (np.array([20240520, 1, 9] + [0] * 253, "<i4"), {}, "its header says 9 ids"),
    "few": (None, {"val_tokens": 5000}, r"the held-out tokens are only 1234 \(data.val_fraction 0.1\)"),
    "bytes": (None, {"tokenizer": "bytes"}, "holds ready tokens; say by data.tokenizer what they are"),
    "bpe": (None, {"tokenizer": "bpe:300"}, "holds ready tokens; say by data.tokenizer what they are"),
    "size": (None, {"tokenizer": "ids:one"}, "a whole number of at least 2, as in ids:50257"),
    "cleaning": (None, {"decontaminate": (__file__,)}, r"data.decontaminate .*\.py: works on documents of text"),
    "unique": (None, {"unique_tokens": 100.0}, "data.unique_tokens 100: works on documents of text"),
    "quality": (None, {"quality_from": (__file__,)}, r"data.quality_from .*\.py: works on documents of text"),
    "val bytes": (None, {"val_bytes": 100}, "data.val_bytes 100: works on documents of text"),
    "counted": (None, {"files": (__file__,), "tokenizer": "bytes", "bytes_per_token": 4.0}, "of text the bytes are"),
    "none": (None, {"files": ()}, "is for ready token files; name them in data.files"),
    "textual": (None, {"files": (__file__,)}, "is for ready token files .*test_data_shards.py is none"),
}


@pytest.mark.parametrize("name", BAD)
def test_misuse_is_named_and_leaves_nothing(config: DataConfig, tmp_path: Path, name: str) -> None:
    content, change, message = BAD[name]
    write_shards(tmp_path / "shards", write_raw)
    if isinstance(content, bytes):
        (tmp_path / "shards" / name).write_bytes(content)
    elif name.endswith(".npy"):
        np.save(tmp_path / "shards" / name, content)
    elif content is not None:
        content.tofile(tmp_path / "shards" / name)
    with pytest.raises(MisuseError, match=message) as caught:
        build_tokens(replace(config, **change))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not [path for path in Path(config.cache).glob("*") if path.suffix != ".lock" and path.name != "shards"]


def test_ids_above_16_bits_are_read_as_32(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    ids = np.arange(69_000, 70_000, dtype="<u4").repeat(20)
    ids.tofile(tmp_path / "shards/a.bin")
    files = build_tokens(replace(config, tokenizer="ids:70000"))
    assert files.train.read(0, 40).tolist() == [69_000] * 20 + [69_001] * 20
    assert json.loads((files.folder / "meta.json").read_text())["dtype"] == "<u4"


@pytest.mark.parametrize("kind", ["raw", "llm.c, llama 3"])
def test_shards_are_mixed_as_their_ids_in_memory_are(config: DataConfig, tmp_path: Path, kind: str) -> None:
    """Files by the names that they were given, not those that links lead to; the one for validation is not mixed."""
    for path in write_shards(tmp_path / "blobs", WRITERS[kind]):
        (tmp_path / "shards").mkdir(exist_ok=True)
        (tmp_path / "shards" / f"web-{path.name[5:]}").symlink_to(path)
    held = (tmp_path / "shards/web-003.bin").rename(tmp_path / "held-out.bin")
    plain = replace(config, val_files=(str(held),), val_tokens=1000)
    mixed = replace(plain, mixture=(("*web-000*", 0.25), ("web-00[12].bin", 0.75)))
    first, files = build_tokens(plain), build_tokens(mixed)
    assert (files.folder, files.info.data_sha256) == (first.folder, first.info.data_sha256)
    assert files.info.train_tokens == int((CUTS[3] - CUTS[1]) / 0.75)
    arrays = [IDS[: CUTS[1]], IDS[CUTS[1] : CUTS[3]]]
    pieces = [Pieces(ids, np.array([0]), np.array([len(ids)])) for ids in arrays]
    parts = [replace(part, text=text) for part, text in zip(files.parts, pieces, strict=True)]
    expected = MixtureSource(tuple(parts), 16, 8, seed=3).read_steps(0, 100)
    np.testing.assert_array_equal(open_batches(files, 16, 8, seed=3).read_steps(0, 100), expected)
    read = {Path(row["source"]).name: row["read_tokens"] for row in count_read(files)}
    assert read == {"web-000.bin": 5000, "web-001.bin": 13, "web-002.bin": 3987, "held-out.bin": 0}
    assert make_validation(files, mixed, 16).names == ("held-out",)
    with pytest.raises(MisuseError, match=r"pattern '\*code\*' matches no file of data.files with training text"):
        build_tokens(replace(plain, mixture=(("*code*", 1.0),)))
    with pytest.raises(MisuseError, match="unique_tokens 100: works on documents"):  # also where files are there
        build_tokens(replace(plain, unique_tokens=100.0))


def test_variants_of_a_study_on_shards_are_planned(config: DataConfig, tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", write_raw)
    body = f"""from jaxscale.config import DataConfig, Variant
    study = replace(study, data=DataConfig(**{asdict(replace(config, max_epochs=1e4))!r}),
        model=replace(study.model, vocab_size=5000), grid=replace(study.grid, budgets=(1e11,), bracket=False),
        variants=(Variant("whole"), Variant("mixed", ("data.mixture=(('*000*', .5), ('*002*', .5))",))))"""
    assert dispatch(["plan", str(write_study(tmp_path, body)), "--out", str(tmp_path / "plan")]) == 0
    cells = read_plan(tmp_path / "plan").cells
    assert {cell.variants for cell in cells} == {("whole",), ("mixed",)}


def test_a_run_on_shards_is_to_the_bit_the_run_on_their_text(tmp_path: Path) -> None:
    """The ids of token files, cut into shards: the same losses; no bits per byte where bytes are not known."""
    study = make_study(tmp_path)
    study = replace(study, recipe=replace(study.recipe, lr=0.02), data=replace(study.data, val_tokens=512))
    made = build_tokens(study.data)
    folder = tmp_path / "shards"
    folder.mkdir()
    write_raw(folder / "a", np.asarray(made.train[:3001]))
    write_npy(folder / "b", np.asarray(made.train[3001:]))
    write_llmc(tmp_path / "val", np.asarray(made.val))
    ready = replace(study.data, files=(str(folder),), val_files=(str(tmp_path / "val.bin"),), tokenizer="ids:256")
    results = []
    for name, data in (("text", study.data), ("shards", ready)):
        planned = plan_isoflop(replace(study, data=data), train_tokens=made.info.train_tokens)
        spec = replace(planned.cells[0].spec, steps=30)
        results.append(train_run(spec, tmp_path / "runs" / name, mesh=study.mesh))
    text, shards = results
    assert text.state == shards.state == "done"
    assert (shards.loss, shards.train_loss) == (text.loss, text.train_loss)
    assert shards.provenance["val_sha256"] == text.provenance["val_sha256"] != ""
    assert shards.losses["val"]["loss"] == pytest.approx(shards.loss, rel=1e-6)
    assert text.bits_per_byte is not None
    assert shards.bits_per_byte is None
