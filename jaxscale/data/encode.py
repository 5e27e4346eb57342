"""The corpus to token files, in one pass: split, drop repeated lines, encode, write, hash, count.

Training documents are written as they come. Held-out pieces wait in a bounded sample until all training lines
have been seen; then the lines that occur in training are dropped from them, in either order of appearance.
A BPE needs a pass before that one, to collect the text it is trained on. Memory is bounded by the sample, the
line hashes (about 16 bytes a line) and one batch of documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from jaxscale.config import DataConfig
from jaxscale.data.corpus import Corpus
from jaxscale.data.documents import Document
from jaxscale.data.files import DataInfo, FileInfo, Meta, TokenWriter, hash_data, hash_file
from jaxscale.data.lines import LineSet, drop_seen_lines
from jaxscale.data.split import HashSample, cut_pieces, is_held_out
from jaxscale.data.store import sync_file
from jaxscale.data.tally import Tally
from jaxscale.data.tokenizer import (
    BPE_SAMPLE_BYTES,
    TOKENIZER_FILE,
    Tokenizer,
    load_tokenizer,
    parse_bpe_size,
    train_bpe,
)
from jaxscale.errors import MisuseError

__all__ = ["Progress", "write_tokens"]

Progress = Callable[[int, int], None]
"""Hears (bytes done, bytes in all), in bytes on disk; a corpus that is read twice counts twice."""

BATCH_BYTES = 4 << 20
HELD_BYTES_PER_TOKEN = 32
"""Held-out text kept for each wanted validation token: many times what a token stands for, because pieces
lose the lines that occur in training."""


def write_tokens(
    config: DataConfig, corpus: Corpus, folder: Path, progress: Progress | None = None, validation: Corpus | None = None
) -> None:
    """Write train.bin, val.bin, documents.npy, tokenizer.json (not for bytes) and, last, meta.json into `folder`.

    `validation`: the corpus of data.val_files, to be validated on in place of what is held out.
    """
    passes = 2 if parse_bpe_size(config.tokenizer) else 1
    report = _scale_progress(corpus, passes, progress)
    tokenizer = _make_tokenizer(config, corpus, folder, report)
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    tally, seen = Tally(), _start_lines(config)
    held = HashSample(config.val_tokens * HELD_BYTES_PER_TOKEN)
    training = _split_corpus(config, corpus, None if validation else held, tally, report(passes - 1))
    with TokenWriter(folder / "train.bin", dtype) as writer:
        _write_train(training, seen, tokenizer, writer, tally)
        train = writer.finish()
    if validation:
        _hold_corpus(config, corpus, validation, held, tally)
    _check_split(config, corpus, tally)
    with TokenWriter(folder / "val.bin", dtype) as writer:
        _write_val(config, held, seen, tokenizer, writer, tally)
        val = writer.finish()
    files = {"train.bin": train, "val.bin": val}
    for path in (tally.log.save(folder), folder / TOKENIZER_FILE):
        if path.exists():
            files[path.name] = FileInfo(path.stat().st_size, hash_file(path))
    info = _summarize(config, corpus, tokenizer, tally, hash_data(train, val, dtype))
    meta = Meta(info, dtype, files, tally.list_sources(), asdict(config), val_spans=tally.list_val_spans())
    (folder / "meta.json").write_text(meta.to_json())
    sync_file(folder / "meta.json")


def _scale_progress(
    corpus: Corpus, passes: int, progress: Progress | None
) -> Callable[[int], Callable[[int], None] | None]:
    """For pass number p, a function of the bytes that pass has read."""
    size_bytes = corpus.size_bytes

    def report(number: int) -> Callable[[int], None] | None:
        if progress is None:
            return None
        return lambda done: progress(number * size_bytes + done, passes * size_bytes)

    return report


def _make_tokenizer(
    config: DataConfig, corpus: Corpus, folder: Path, report: Callable[[int], Callable[[int], None] | None]
) -> Tokenizer:
    """Leaves its tokenizer.json in `folder`, unless tokens are bytes."""
    if config.tokenizer == "bytes":
        return load_tokenizer(None)
    path = folder / TOKENIZER_FILE
    if size := parse_bpe_size(config.tokenizer):
        train_bpe(_sample_training(config, corpus, report(0)), size, path)
    else:
        path.write_bytes(Path(config.tokenizer).expanduser().read_bytes())
    sync_file(path)
    return load_tokenizer(path)


def _sample_training(config: DataConfig, corpus: Corpus, report: Callable[[int], None] | None) -> list[bytes]:
    """Training text for a BPE: documents with the smallest hashes, without their repeated lines."""
    sample, seen = HashSample(BPE_SAMPLE_BYTES), _start_lines(config)
    for document in corpus.read(config, report):
        if not is_held_out(document.text, config.val_fraction):
            sample.add(document)
    documents, _ = _drop_lines(list(sample), seen)
    return [document.text for document in documents]


def _split_corpus(
    config: DataConfig,
    corpus: Corpus,
    held: HashSample | None,
    tally: Tally,
    report: Callable[[int], None] | None,
) -> Iterator[Document]:
    """The training documents; the held-out ones go to `held` in pieces, if it is there."""
    for document in corpus.read(config, report):
        if is_held_out(document.text, config.val_fraction):
            if held is not None:
                _hold(config, document, held, tally)
        else:
            yield document


def _hold_corpus(config: DataConfig, corpus: Corpus, validation: Corpus, held: HashSample, tally: Tally) -> None:
    """The text of data.val_files to `held`; of a file that is also trained on, only what is held out of it."""
    trained = {item.path.resolve() for item in corpus.inputs}
    shared = {item.source for item in validation.inputs if item.path.resolve() in trained}
    for document in validation.read(config):
        if document.source not in shared or is_held_out(document.text, config.val_fraction):
            _hold(config, document, held, tally)


def _hold(config: DataConfig, document: Document, held: HashSample, tally: Tally) -> None:
    tally.held_out_documents += 1
    for piece in cut_pieces(document, config):
        held.add(piece)


def _start_lines(config: DataConfig) -> LineSet | None:
    return LineSet() if config.drop_repeated_lines else None


def _drop_lines(documents: list[Document], seen: LineSet | None) -> tuple[list[Document], int]:
    """Documents without the lines that came before, and how many those were; empty ones are left out."""
    texts, dropped = [document.text for document in documents], 0
    if seen is not None:
        texts, dropped = drop_seen_lines(texts, seen)
    pairs = zip(documents, texts, strict=True)
    return [Document(document.source, text) for document, text in pairs if text.strip()], dropped


def _write_train(
    documents: Iterable[Document],
    seen: LineSet | None,
    tokenizer: Tokenizer,
    writer: TokenWriter,
    tally: Tally,
) -> None:
    for batch in _batch_documents(documents):
        kept, dropped = _drop_lines(batch, seen)
        tally.lines_dropped += dropped
        for document, ids in zip(kept, tokenizer.encode([d.text for d in kept]), strict=True):
            writer.write(ids)
            tally.count_train(document, len(ids))


def _batch_documents(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size_bytes = 0
    for document in documents:
        batch.append(document)
        size_bytes += len(document.text)
        if size_bytes >= BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _write_val(
    config: DataConfig,
    held: HashSample,
    seen: LineSet | None,
    tokenizer: Tokenizer,
    writer: TokenWriter,
    tally: Tally,
) -> None:
    """The first `val_tokens` of the held-out pieces; MisuseError when they give fewer."""
    missing = config.val_tokens
    for piece in held:
        documents, dropped = _drop_lines([piece], seen)
        tally.val_lines_dropped += dropped
        for document in documents:
            ids = tokenizer.encode([document.text])[0][:missing]
            writer.write(ids)
            tally.count_val(document.source, len(ids), tokenizer.count_bytes(document.text, len(ids)))
            missing -= len(ids)
        if not missing:
            return
    found = config.val_tokens - missing
    if config.val_files:
        raise MisuseError(f"data.val_tokens {config.val_tokens}: data.val_files have only {found} tokens that are not "
                          f"in the training text; ask for at most {found} or name more files")  # fmt: skip
    raise MisuseError(f"data.val_tokens {config.val_tokens}: the held-out text has only {found} tokens "
                      f"({tally.held_out_documents} documents at data.val_fraction {config.val_fraction:g}); "
                      f"ask for at most {found}, raise data.val_fraction or give more text")  # fmt: skip


def _check_split(config: DataConfig, corpus: Corpus, tally: Tally) -> None:
    """Both sides of the split hold something, or a MisuseError says how to get there."""
    kept, held = sum(tally.documents.values()), tally.held_out_documents
    if kept and held:
        return
    if not kept and not held:
        raise MisuseError(f"{corpus.description}: holds no text; name other files in data.files")
    if kept and config.val_files:
        raise MisuseError(f"data.val_files {', '.join(config.val_files)}: hold no text to validate on; name others")
    side = "held out for validation" if kept else "left for training"
    raise MisuseError(f"{corpus.description}: of {kept + held} documents none is {side} at data.val_fraction "
                      f"{config.val_fraction:g}; change it, give more text, or lower data.document_bytes "
                      f"(now {config.document_bytes}) so that long files give more documents")  # fmt: skip


def _summarize(config: DataConfig, corpus: Corpus, tokenizer: Tokenizer, tally: Tally, data_sha256: str) -> DataInfo:
    val_tokens = sum(tally.val_tokens.values())
    return DataInfo(
        source=corpus.description,
        tokenizer=config.tokenizer,
        vocab_size=tokenizer.vocab_size,
        documents=sum(tally.documents.values()),
        held_out_documents=tally.held_out_documents,
        train_tokens=sum(tally.train_tokens.values()),
        train_bytes=sum(tally.train_bytes.values()),
        val_tokens=val_tokens,
        val_bytes=tally.val_bytes,
        val_bytes_per_token=tally.val_bytes / val_tokens,
        lines_dropped=tally.lines_dropped,
        val_lines_dropped=tally.val_lines_dropped,
        data_sha256=data_sha256,
    )
