"""The corpus to token files, in one pass: split, drop repeated lines, encode, write, hash, count.

Training documents are written as they come. Held-out pieces wait in a bounded sample until all training lines
have been seen; then the lines that occur in training are dropped from them, in either order of appearance.
A BPE needs a pass before that one, to collect the text it is trained on. Memory is bounded by the sample, the
line hashes (about 16 bytes a line) and one batch of documents. A large corpus is read and encoded by several processes
(`portions`), to the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from jaxscale.config import DataConfig
from jaxscale.data.contamination import Cleaner, find_cleaner
from jaxscale.data.corpus import Corpus
from jaxscale.data.documents import Document
from jaxscale.data.files import (
    DataInfo,
    Decontaminated,
    FileInfo,
    Meta,
    TokenWriter,
    choose_dtype,
    hash_data,
    hash_file,
)
from jaxscale.data.lines import LineSet, drop_seen_lines
from jaxscale.data.portions import Portions
from jaxscale.data.split import HashSample, cut_pieces, is_held_out
from jaxscale.data.store import sync_file
from jaxscale.data.tally import Tally
from jaxscale.data.tokenizer import (
    BPE_SAMPLE_BYTES,
    SEPARATOR,
    TOKENIZER_FILE,
    Tokenizer,
    load_tokenizer,
    parse_bpe_size,
    train_bpe,
)
from jaxscale.errors import MisuseError

__all__ = ["Progress", "count_held_bytes", "write_tokens"]

Progress = Callable[[int, int], None]
"""Hears (bytes done, bytes in all), in bytes on disk; a corpus that is read twice counts twice."""

BATCH_BYTES = 4 << 20
HELD_BYTES_PER_TOKEN = 32
"""Held-out text kept for each wanted validation token: many times what a token stands for, because pieces
lose the lines that occur in training."""


def write_tokens(
    config: DataConfig,
    corpus: Corpus,
    folder: Path,
    progress: Progress | None = None,
    validation: Corpus | None = None,
    portions: Portions | None = None,
) -> None:
    """Write train.bin, val.bin, documents.npy, tokenizer.json (not for bytes) and, last, meta.json into `folder`.

    `validation`: the corpus of data.val_files, to be validated on in place of what is held out.
    `portions`: the parts of a corpus that several processes work on; what a killed build left in them is used.
    """
    passes = 2 if portions or parse_bpe_size(config.tokenizer) else 1
    report = _scale_progress(corpus, passes, progress)
    cleaner = find_cleaner(config)
    if portions:
        portions.read(report(0))
    sample = partial(_sample_training, config, corpus, cleaner, portions, report(0))
    tokenizer = _make_tokenizer(config, sample, folder, portions)
    dtype = choose_dtype(tokenizer.vocab_size)
    tally, seen, held = Tally(), _start_lines(config), HashSample(count_held_bytes(config))
    with TokenWriter(folder / "train.bin", dtype) as writer:
        if portions:
            portions.write_train(writer, dtype, seen, held, tally, report(1))
        else:
            sample_held = None if validation else held
            training = _split_corpus(config, corpus, cleaner, sample_held, tally, report(passes - 1))
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
    info = _summarize(config, corpus, tokenizer, tally, hash_data(train, val, dtype), cleaner)
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


def count_held_bytes(config: DataConfig) -> int:
    """Held-out text that is kept in memory to take the validation text from."""
    return (config.val_bytes or config.val_tokens) * HELD_BYTES_PER_TOKEN


def _make_tokenizer(
    config: DataConfig, sample: Callable[[], list[bytes]], folder: Path, portions: Portions | None
) -> Tokenizer:
    """Leaves its tokenizer.json in `folder`, unless tokens are bytes."""
    if config.tokenizer == "bytes":
        return load_tokenizer(None)

    def make(path: Path) -> None:
        if size := parse_bpe_size(config.tokenizer):
            train_bpe(sample(), size, path)
        else:
            path.write_bytes(Path(config.tokenizer).expanduser().read_bytes())

    path = folder / TOKENIZER_FILE
    if portions:
        portions.keep_tokenizer(path, make)
    else:
        make(path)
    sync_file(path)
    return load_tokenizer(path)


def _sample_training(
    config: DataConfig,
    corpus: Corpus,
    cleaner: Cleaner | None,
    portions: Portions | None,
    report: Callable[[int], None] | None,
) -> list[bytes]:
    """Training text for a BPE: documents with the smallest hashes, without their repeated lines."""
    if portions:
        documents = list(portions.sample())
    else:
        sample, counted = HashSample(BPE_SAMPLE_BYTES), Tally()
        for document in corpus.read(config, report):
            if not is_held_out(document.text, config.val_fraction):
                sample.add(counted.clean(document, cleaner) if cleaner else document)
        documents = list(sample)
    kept, _ = _drop_lines(documents, _start_lines(config))
    return [document.text for document in kept]


def _split_corpus(
    config: DataConfig,
    corpus: Corpus,
    cleaner: Cleaner | None,
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
            yield tally.clean(document, cleaner) if cleaner else document


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
    """The first `val_tokens` of the held-out pieces, or whole pieces of `val_bytes`; MisuseError: they give fewer."""
    for piece in held:
        documents, dropped = _drop_lines([piece], seen)
        tally.val_lines_dropped += dropped
        for document in documents:
            ids = tokenizer.encode([document.text])[0]
            if config.val_bytes is None:
                ids = ids[: config.val_tokens - sum(tally.val_tokens.values())]
            writer.write(ids)
            tally.val_text.update(document.text + SEPARATOR)
            tally.count_val(document.source, len(ids), tokenizer.count_bytes(document.text, len(ids)))
        if _lacks_val(config, tally) <= 0:
            return
    field, unit = ("val_tokens", "tokens") if config.val_bytes is None else ("val_bytes", "bytes")
    wanted = getattr(config, field)
    found = wanted - _lacks_val(config, tally)
    if config.val_files:
        raise MisuseError(f"data.{field} {wanted}: data.val_files have only {found} {unit} that are not in the "
                          f"training text; ask for at most {found} or name more files")  # fmt: skip
    raise MisuseError(f"data.{field} {wanted}: the held-out text has only {found} {unit} "
                      f"({tally.held_out_documents} documents at data.val_fraction {config.val_fraction:g}); "
                      f"ask for at most {found}, raise data.val_fraction or give more text")  # fmt: skip


def _lacks_val(config: DataConfig, tally: Tally) -> int:
    """Validation tokens, or bytes, that are still wanted."""
    if config.val_bytes is None:
        return config.val_tokens - sum(tally.val_tokens.values())
    return config.val_bytes - tally.val_bytes


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


def _summarize(
    config: DataConfig, corpus: Corpus, tokenizer: Tokenizer, tally: Tally, data_sha256: str, cleaner: Cleaner | None
) -> DataInfo:
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
        val_text_sha256=tally.val_text.hexdigest() if config.val_bytes else "",
        decontaminated=_summarize_cuts(cleaner, tally) if cleaner else None,
    )


def _summarize_cuts(cleaner: Cleaner, tally: Tally) -> Decontaminated:
    return Decontaminated(
        items=cleaner.items,
        items_found=len(tally.items_found),
        items_too_short=cleaner.too_short,
        paragraphs_cut=sum(tally.paragraphs_cut.values()),
        bytes_cut=sum(tally.bytes_cut.values()),
    )
