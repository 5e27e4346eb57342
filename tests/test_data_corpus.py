"""Files to documents: which files, what they hold in every format, and what is said when they do not."""

import gzip
import json
import lzma
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from jaxscale.config import DataConfig
from jaxscale.data.corpus import find_corpus
from jaxscale.data.documents import cut_text
from jaxscale.errors import MisuseError

TEXTS = ["one\ntwo", "drei äöü €", "a third\n\ndocument"]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def write_jsonl(path: Path) -> bytes:
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n\n" for i, t in enumerate(TEXTS)))
    return path.read_bytes()


def write_parquet(path: Path) -> bytes:
    pq.write_table(pa.table({"text": [*TEXTS, None], "id": range(4)}), path, row_group_size=2)
    return path.read_bytes()


def read_texts(*patterns: Path | str, **fields: int | str) -> list[str]:
    config = DataConfig(files=tuple(map(str, patterns)), **fields)  # type: ignore[arg-type]
    return [document.text.decode() for document in find_corpus(config).read(config)]


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize(("suffix", "write"), [(".jsonl", write_jsonl), (".parquet", write_parquet)])
def test_every_format_and_compression_gives_the_same_documents(
    tmp_path: Path, suffix: str, packed: str, write: Callable[[Path], bytes]
) -> None:
    path = tmp_path / f"shard{suffix}{packed}"
    path.write_bytes(PACKERS[packed](write(tmp_path / "plain")))
    assert read_texts(path) == TEXTS


@pytest.mark.parametrize("packed", PACKERS)
def test_plain_text_is_one_document_with_unified_newlines(tmp_path: Path, packed: str) -> None:
    path = tmp_path / f"page.txt{packed}"
    path.write_bytes(PACKERS[packed]("\nüber\r\n\r\nzwei\rdrei\n\n".encode()))
    assert read_texts(path) == ["über\n\nzwei\ndrei"]


def test_pieces_rejoin_to_the_text_and_stay_below_the_size() -> None:
    text = "".join(f"Zeile {i} über €\n" + "\n" * (i % 7 == 0) for i in range(3000)).encode() + b"x" * 5000
    blocks = [text[i : i + 777] for i in range(0, len(text), 777)]
    pieces = list(cut_text(blocks, 1000))
    assert b"".join(pieces) == text
    assert max(map(len, pieces)) <= 1000
    assert sum(piece.endswith(b"\n\n") for piece in pieces) >= 0.9 * (len(pieces) - 8)


def test_a_cut_never_falls_inside_a_character() -> None:
    pieces = list(cut_text(["€".encode() * 1000], 256))
    assert "".join(piece.decode() for piece in pieces) == "€" * 1000


def test_a_long_file_is_cut_into_documents_of_about_the_size(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(f"paragraph {i} " + "word " * 30 for i in range(500)))
    texts = read_texts(tmp_path / "book.txt", document_bytes=4096)
    assert all(text.startswith("paragraph") and 2048 <= len(text) <= 4096 for text in texts[:-1])


def test_patterns_recurse_are_sorted_and_name_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b/z.txt", "a.txt", "b/c/y.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "link.txt").symlink_to("a.txt")
    found = find_corpus(DataConfig(files=("**/*.txt", "b", "a.txt")))
    assert [item.source for item in found.inputs] == ["a.txt", "b/c/y.md", "b/z.txt"]


def test_the_standard_library_comes_without_its_tests() -> None:
    corpus = find_corpus(DataConfig())
    root = Path(sysconfig.get_paths()["stdlib"])
    names = [item.path.relative_to(root).as_posix() for item in corpus.inputs]
    assert names == sorted(names)
    assert {"json/decoder.py", "os.py", "unittest/case.py"} <= set(names)
    assert not [name for name in names if {"test", "tests", "site-packages"} & set(name.split("/"))]
    assert corpus.size_bytes > 5_000_000


def test_progress_ends_at_the_size_on_disk_and_never_falls(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text("line\n" * 1000)
    config, heard = DataConfig(files=(str(tmp_path),)), list[int]()
    corpus = find_corpus(config)
    assert len(list(corpus.read(config, heard.append))) == 5
    assert heard == sorted(heard)
    assert heard[-1] == corpus.size_bytes == 25_000


BAD_FILES = {
    "nothing.txt": (None, "matches no file"),
    "empty": ("folder", "holds no files"),
    "picture.png": (b"\x89PNG", r"files of type '\.png' are not read as text"),
    "latin.txt": ("Grüße".encode("latin1"), r"latin\.txt, near byte 0: byte 0xfc is not UTF-8"),
    "fields.jsonl": (
        b'{"text": "a"}\n{"body": "b"}\n',
        r"fields\.jsonl, line 2: no field 'text' \(there: body\)",
    ),
    "number.jsonl": (b'{"text": 3}\n', r"line 1: field 'text' is int, not text"),
    "broken.jsonl": (b'{"text": "a"}\n{"text"\n', "line 2: not a JSON object"),
    "surrogate.jsonl": (b'{"text": "\\ud800"}\n', "line 1: field 'text' holds half a surrogate"),
    "broken.parquet": (b"PAR1 no", "not a readable Parquet file"),
    "cut.txt.xz": (lzma.compress(b"text" * 99)[:-20], r"damaged \.xz data"),
    "cut.txt.gz": (gzip.compress(b"text" * 99)[:-9], r"damaged \.gz data"),
    "foreign.txt.zst": (b"not zstandard at all", r"damaged \.zst data"),
    "foreign.txt.gz": (b"not gzip at all", "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_input_is_one_sentence_that_names_the_place(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    if content == "folder":
        (tmp_path / name).mkdir()
    elif isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MisuseError, match=message) as caught:
        read_texts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_parquet_column_is_named_with_those_there(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet")
    with pytest.raises(MisuseError, match=r"no column 'body' \(there: text, id\)"):
        read_texts(tmp_path / "a.parquet", text_field="body")
    with pytest.raises(MisuseError, match="column 'id' is int64, not text"):
        read_texts(tmp_path / "a.parquet", text_field="id")
