"""The text of a study: its token files built behind a progress bar, and the verb `data` that tells what they hold."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from rich.console import Console

from jaxscale.cli.options import StudyOptions, parse_study
from jaxscale.cli.progress import data_progress
from jaxscale.cli.tables import make_console
from jaxscale.config import DataConfig
from jaxscale.plain import to_plain, write_json
from jaxscale.vary import vary_study

if TYPE_CHECKING:
    from jaxscale.data.files import TokenFiles

__all__ = ["build_data", "build_files", "data", "text_is_here"]

SHOWN_SOURCES = 40


def data(argv: list[str]) -> int:
    """Build the token files of a study and say what they hold."""
    options = parse_study(StudyOptions, argv, "data", "Build the token files: counts, hashes, size.\n\n"
                          "example: jaxscale data configs/quickstart.py --data.files 'corpus/**/*.txt'")  # fmt: skip
    console = make_console()
    texts: dict[DataConfig, dict[str, Any]] = {}
    for name, own in vary_study(options.study).items():
        texts.setdefault(own.data, {"variants": []})["variants"].append(name)
    rows, sources = [], []
    for config, told in (texts or {options.study.data: {}}).items():
        rows.append(build_data(config, console) | told)
        shown = dict(rows[-1])
        for name, value in (shown | (shown.pop("decontaminated") or {})).items():
            console.print(f"{name:>22}  {value}", soft_wrap=True, markup=False)
        sources += [source | told for source in _print_sources(config, console)]
    if options.out is not None:
        plain = {"schema": "jaxscale.data/1", "rows": rows, "sources": sources}
        write_json(options.out, json.dumps(plain, indent=1))
    return 0


def _print_sources(config: DataConfig, console: Console) -> list[dict[str, Any]]:
    """What each source gives, what of it is read and what was cut out of it; a long list is cut for people only."""
    from jaxscale.data.select import count_read
    from jaxscale.data.tokens import build_tokens
    from jaxscale.tables import render_table

    rows = count_read(build_tokens(config))
    header = ("source", "documents", "train_tokens", "read_tokens", "share", "val_tokens")
    told = [[row[name] for name in header] for row in rows[:SHOWN_SOURCES]]
    table = render_table(f"{len(rows)} sources", [name.replace("_", " ") for name in header], told)
    more = f"\n... and {len(rows) - SHOWN_SOURCES} more" if len(rows) > SHOWN_SOURCES else ""
    console.print(f"{table}{more}", soft_wrap=True, markup=False)
    for row in rows:
        if row["paragraphs_cut"]:
            console.print(f"{'cut out of':>22}  {row['source']}: {row['paragraphs_cut']:,} paragraphs, "
                          f"{row['bytes_cut']:,} bytes", soft_wrap=True, markup=False)  # fmt: skip
    return rows


def build_data(config: DataConfig, console: Console) -> dict[str, Any]:
    """The text in numbers, built where it was not."""
    plain: dict[str, Any] = to_plain(build_files(config, console).info)
    return plain


def build_files(config: DataConfig, console: Console) -> TokenFiles:
    """The token files of a text, built behind a progress bar where they were not."""
    from jaxscale.data.tokens import build_tokens

    with data_progress(console) as bars:
        task = bars.add_task("reading the text", total=1.0)
        return build_tokens(config, lambda done, total: bars.update(task, completed=done / max(total, 1)))


def text_is_here(config: DataConfig) -> bool:
    import glob

    return not config.files or any(glob.glob(os.path.expanduser(pattern), recursive=True) for pattern in config.files)
