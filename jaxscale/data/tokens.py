"""The token files of a DataConfig: built once, found again by what decides their content.

The key of the cache hashes the fields that change the tokens and (path, size, modification time) of every
input, so a second call opens what the first one built. What a run reads of them is chosen when they are opened
(select.py), and a field that came later is no part of the key at its default: files built before it stay good.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

from jaxscale.config import DataConfig
from jaxscale.data.corpus import Corpus, find_corpus
from jaxscale.data.encode import Progress, write_tokens
from jaxscale.data.files import DataInfo, SourceCount, TokenFiles, find_damage
from jaxscale.data.groups import check_mixture
from jaxscale.data.select import needs_index, select_text
from jaxscale.data.store import keep_folder
from jaxscale.data.tokenizer import identify_tokenizer
from jaxscale.errors import MisuseError
from jaxscale.runs import ADDED_FIELDS

__all__ = ["DataInfo", "SourceCount", "TokenFiles", "build_tokens"]

FORMAT = 1
"""Raised when the same text and config give other tokens than before."""
IRRELEVANT = ("cache", "max_epochs", "declared_train_tokens", "files", "tokenizer", "val_files",
              "mixture", "unique_tokens", "quality_from", "quality_keep")  # fmt: skip
"""Fields that do not change the tokens, or that enter the key by content instead of by name; those of the last line
choose among the tokens."""
LEAST_DOCUMENT_BYTES = 256


def build_tokens(config: DataConfig, progress: Progress | None = None, verify: bool = False) -> TokenFiles:
    """Token files of this text and tokenizer, from the cache or built now.

    `progress` hears (bytes done, bytes in all) while they are built. Sizes are checked on every call, and
    with `verify` the SHA-256 of each file as well; what is damaged is built again.
    MisuseError: unreadable or missing text, impossible config, too little validation text, fewer training
    tokens than `declared_train_tokens`. VerdictError: no disk space.
    """
    _check_config(config)
    corpus = find_corpus(config)
    validation = find_corpus(config, "val_files") if config.val_files else None
    folder = keep_folder(
        Path(config.cache).expanduser(),
        _hash_inputs(config, corpus, validation),
        partial(find_damage, contents=verify, indexed=needs_index(config)),
        lambda temporary: write_tokens(config, corpus, temporary, progress, validation),
    )
    files = select_text(TokenFiles.open(folder), config)
    _check_declared(config, files.info)
    return files


def _hash_inputs(config: DataConfig, corpus: Corpus, validation: Corpus | None = None) -> str:
    later = {one.name: one.default for one in fields(config) if one.name in ADDED_FIELDS["data"][1]}
    told = {name: value for name, value in asdict(config).items()
            if name not in IRRELEVANT and not (name in later and value == later[name])}  # fmt: skip
    content = [FORMAT, told, identify_tokenizer(config.tokenizer), corpus.identity]
    content += [validation.identity] if validation else []
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _check_config(config: DataConfig) -> None:
    if not 0 < config.val_fraction < 1:
        raise MisuseError(f"data.val_fraction {config.val_fraction:g}: a share between 0 and 1, as in 0.05")
    if config.val_tokens < 2:
        raise MisuseError(f"data.val_tokens {config.val_tokens}: at least 2, as in 131072")
    if config.document_bytes < LEAST_DOCUMENT_BYTES:
        raise MisuseError(f"data.document_bytes {config.document_bytes}: at least {LEAST_DOCUMENT_BYTES}, "
                          f"as in 65536")  # fmt: skip
    if config.quality_keep != 1 and not config.quality_from:
        raise MisuseError(f"data.quality_keep {config.quality_keep:g}: is read only with data.quality_from, the text "
                          f"that documents are to be like; give both")  # fmt: skip
    if not 0 < config.quality_keep <= 1:
        raise MisuseError(f"data.quality_keep {config.quality_keep:g}: a share above 0 and up to 1, as in 0.5")
    if config.unique_tokens is not None and not config.unique_tokens >= 2:
        raise MisuseError(f"data.unique_tokens {config.unique_tokens:g}: at least 2, as in 1e6")
    check_mixture(config.mixture)


def _check_declared(config: DataConfig, info: DataInfo) -> None:
    declared = config.declared_train_tokens
    if declared is not None and info.train_tokens < declared:
        raise MisuseError(f"data.declared_train_tokens {declared:g}: {info.source} has only "
                          f"{info.train_tokens} training tokens; declare those and plan again")  # fmt: skip
