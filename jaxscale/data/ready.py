"""The token files of a study whose tokens are ready: a meta.json that says where the ids lie (`shards`).

Nothing is copied; the folder in the cache holds counts, hashes and, where it is known, the tokenizer. Identity of the
data is the SHA-256 over the content hashes of the shards and the stretches of them that are used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxscale.config import DataConfig
from jaxscale.data.corpus import Corpus
from jaxscale.data.files import DataInfo, FileInfo, Meta, SourceCount, choose_dtype, hash_file
from jaxscale.data.segments import Segment, Segments, cut_segments
from jaxscale.data.shards import Shard, open_shard, parse_ids_size, scan_shard
from jaxscale.data.store import sync_file
from jaxscale.data.tokenizer import TOKENIZER_FILE, JsonTokenizer, load_tokenizer
from jaxscale.errors import MisuseError

__all__ = ["check_fields", "write_ready"]

NEED_TEXT = ("unique_tokens", "quality_from", "decontaminate", "val_bytes")
"""Fields that work on documents or their text, and ready tokens have neither."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Part:
    """Ids begin:stop of all shards together."""

    shards: tuple[Shard, ...]
    begin: int
    stop: int

    @property
    def segments(self) -> tuple[Segment, ...]:
        return cut_segments(tuple(shard.segment for shard in self.shards), self.begin, self.stop)

    def describe(self) -> list[object]:
        """What identifies the ids: contents of the files, and which of them."""
        return [[shard.sha256 for shard in self.shards], self.begin, self.stop]


def write_ready(
    config: DataConfig, corpus: Corpus, validation: Corpus | None, folder: Path, progress: Progress | None = None
) -> None:
    """Check all shards and write meta.json (and tokenizer.json) into `folder`.

    MisuseError: a file that is no token file, an id outside the vocabulary, too few tokens.
    """
    tokenizer = _find_tokenizer(config, folder)
    vocab_size = parse_ids_size(config.tokenizer) or load_tokenizer(folder / TOKENIZER_FILE).vocab_size
    shards = _scan(config, [corpus, *([validation] if validation else [])], vocab_size, progress)
    train, val = _split(config, shards[0], shards[1] if validation else None)
    ids = Segments(val.segments).read(0, val.stop - val.begin)
    val_bytes = _count_bytes(config, tokenizer, ids)
    digest = hashlib.sha256(json.dumps([train.describe(), val.describe()]).encode()).hexdigest()
    info = DataInfo(
        source=corpus.description, tokenizer=config.tokenizer, vocab_size=vocab_size, documents=None,
        held_out_documents=None, train_tokens=train.stop - train.begin, train_bytes=None, val_tokens=len(ids),
        val_bytes=None if val_bytes is None else round(val_bytes),
        val_bytes_per_token=None if val_bytes is None else val_bytes / len(ids), lines_dropped=0, val_lines_dropped=0,
        data_sha256=digest,
    )  # fmt: skip
    path = folder / TOKENIZER_FILE
    files = {path.name: FileInfo(path.stat().st_size, hash_file(path))} if path.exists() else {}
    inputs = (*corpus.inputs, *(validation.inputs if validation else ()))
    sources, spans = _count_sources(train, val, {str(one.path.resolve()): one.source for one in inputs})
    meta = Meta(info, train.segments[0].dtype, files, sources, asdict(config), val_spans=spans,
                train_segments=train.segments, val_segments=val.segments,
                val_sha256=_hash_ids(ids, vocab_size))  # fmt: skip
    (folder / "meta.json").write_text(meta.to_json())
    sync_file(folder / "meta.json")


def check_fields(config: DataConfig, ready: bool) -> None:
    """MisuseError for a field that needs text where the tokens are ready, and one that needs ready tokens elsewhere."""
    for name in NEED_TEXT if ready else ():
        if value := getattr(config, name):
            shown = ", ".join(value) if isinstance(value, tuple) else f"{value:g}"
            raise MisuseError(f"data.{name} {shown}: works on documents of text, and data.files name ready tokens; "
                              f"leave it out, or name the text")  # fmt: skip
    if config.bytes_per_token is not None and not ready:
        raise MisuseError(f"data.bytes_per_token {config.bytes_per_token:g}: is for ready token files, and of text the "
                          f"bytes are counted; leave it out")  # fmt: skip


def _find_tokenizer(config: DataConfig, folder: Path) -> JsonTokenizer | None:
    """The tokenizer of a tokenizer.json, copied into `folder`; None for ids:SIZE."""
    if parse_ids_size(config.tokenizer):
        return None
    path = folder / TOKENIZER_FILE
    path.write_bytes(Path(config.tokenizer).expanduser().read_bytes())
    sync_file(path)
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, JsonTokenizer)
    return tokenizer


def _scan(
    config: DataConfig, corpora: Sequence[Corpus], vocab_size: int, progress: Progress | None
) -> list[tuple[Shard, ...]]:
    """Every shard read once, its largest id below the vocabulary's size."""
    cache, total, before = Path(config.cache).expanduser(), sum(corpus.size_bytes for corpus in corpora), 0
    found = []
    for corpus in corpora:
        shards = []
        for item in corpus.inputs:
            report = (lambda done, at=before: progress(at + done, total)) if progress else None
            shard = scan_shard(open_shard(item.path, vocab_size), cache, report)
            if shard.largest >= vocab_size:
                raise MisuseError(f"{item.path}: holds id {shard.largest}, and data.tokenizer {config.tokenizer} has "
                                  f"{vocab_size} ids from 0; name the tokenizer that made it")  # fmt: skip
            shards.append(shard)
            before += item.size_bytes
        found.append(tuple(shards))
    if progress:
        progress(total, total)
    return found


def _split(config: DataConfig, shards: tuple[Shard, ...], others: tuple[Shard, ...] | None) -> tuple[_Part, _Part]:
    """Training and validation: whole files for each, or the end of the text held out."""
    total = sum(shard.segment.count for shard in shards)
    if others is not None:
        shared = {shard.sha256 for shard in shards} & {shard.sha256 for shard in others}
        if shared:
            name = next(shard.segment.path for shard in others if shard.sha256 in shared)
            raise MisuseError(f"data.val_files: {name} is among data.files too; take it out of one of them")
        held = sum(shard.segment.count for shard in others)
        train, val = _Part(shards, 0, total), _Part(others, 0, min(config.val_tokens, held))
    else:
        held = round(total * config.val_fraction)
        train = _Part(shards, 0, total - held)
        val = _Part(shards, total - held, min(total - held + config.val_tokens, total))
    if held < config.val_tokens:
        raise MisuseError(f"data.val_tokens {config.val_tokens}: the held-out tokens are only {held} "
                          f"({'data.val_files' if others else f'data.val_fraction {config.val_fraction:g}'}); "
                          f"ask for at most {held} or hold out more")  # fmt: skip
    return train, val


def _count_bytes(config: DataConfig, tokenizer: JsonTokenizer | None, ids: NDArray[np.unsignedinteger]) -> float | None:
    """Bytes of text that the validation ids stand for: exactly by a byte-level BPE, else as declared, else unknown."""
    known = tokenizer.count_id_bytes(ids) if tokenizer else None
    if known is None:
        return None if config.bytes_per_token is None else config.bytes_per_token * len(ids)
    if config.bytes_per_token is not None:
        raise MisuseError(f"data.bytes_per_token {config.bytes_per_token:g}: {config.tokenizer} tells it exactly "
                          f"({known / len(ids):.4g} on the validation tokens); leave it out")  # fmt: skip
    return float(known)


def _count_sources(
    train: _Part, val: _Part, names: Mapping[str, str]
) -> tuple[tuple[SourceCount, ...], tuple[tuple[int, int], ...]]:
    """Tokens of each file on either side, and (number of its row, tokens) of the validation ids from their beginning.

    `names`: what a file is called, by its real path: as the patterns found it, links and all.
    """
    counts: dict[str, list[int]] = {}
    for side, part in enumerate((train, val)):
        for segment in part.segments:
            counts.setdefault(names[segment.path], [0, 0])[side] += segment.count
    rows = tuple(SourceCount(name, None, None, *pair) for name, pair in sorted(counts.items()))
    numbers = {row.source: number for number, row in enumerate(rows)}
    return rows, tuple((numbers[names[segment.path]], segment.count) for segment in val.segments)


def _hash_ids(ids: NDArray[np.unsignedinteger], vocab_size: int) -> str:
    """SHA-256 of the val.bin that these ids would be."""
    return hashlib.sha256(ids.astype(choose_dtype(vocab_size)).tobytes()).hexdigest()
