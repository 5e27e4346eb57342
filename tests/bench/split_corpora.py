"""Text to train on when the tasks of shared/evals are asked: those tasks stand in the last part of two corpora.

    python tests/bench/split_corpora.py --out /tmp/corpora95
    jaxscale run configs/isoflop_english.py --data.files '/tmp/corpora95/*' --recipe.evals '../shared/evals/*.jsonl'

Of sword_tdavid and sword_mhcc the first 95.0% of the characters are written (cut back to the end of a line, so that no
sentence is torn); every other corpus is linked. With --check the items are looked up in both parts.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import re
from pathlib import Path

CUT = ("sword_tdavid", "sword_mhcc")
SHARE = 0.95


def split_corpora(corpora: Path, out: Path) -> dict[str, str]:
    """Write the folder; the text left out of each file that was cut."""
    out.mkdir(parents=True, exist_ok=True)
    left = {}
    for file in sorted(corpora.glob("*.txt.xz")):
        name = file.name.removesuffix(".txt.xz")
        target = out / (f"{name}.txt" if name in CUT else file.name)
        target.unlink(missing_ok=True)
        if name not in CUT:
            target.symlink_to(file.resolve())
            continue
        text = lzma.decompress(file.read_bytes()).decode()
        kept = text[: text.rfind("\n", 0, int(len(text) * SHARE)) + 1]
        target.write_text(kept, encoding="utf-8", newline="")
        left[name] = text[len(kept) :]
    return left


def count_items(texts: dict[str, str], evals: Path) -> dict[str, str]:
    """How many items of each task have their question and right answer standing in the text of their corpus."""
    squeezed, found = {name: _squeeze(text) for name, text in texts.items()}, {}
    for file in sorted(evals.glob("*.jsonl")):
        items = [json.loads(line) for line in file.read_text().splitlines()]
        text = next(text for name, text in squeezed.items() if name in file.name)
        held = sum(_squeeze(f"{item['question']} {item['choices'][item['label']]}") in text for item in items)
        found[file.stem] = f"{held} of {len(items)} items"
    return found


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text).lower()


def main() -> None:
    shared = Path(os.environ.get("JAXSCALE_SHARED", Path(__file__).parents[3] / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--corpora", type=Path, default=shared / "corpora")
    parser.add_argument("--evals", type=Path, default=shared / "evals")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    left = split_corpora(args.corpora, args.out)
    for name, text in left.items():
        print(f"{name}: the last {len(text):,} characters are left out")
    if args.check:
        kept = {name: (args.out / f"{name}.txt").read_text(encoding="utf-8") for name in CUT}
        trained, held_out = count_items(kept, args.evals), count_items(left, args.evals)
        for task in trained:
            print(f"{task}: {trained[task]} stand in the training text, {held_out[task]} in what is left out")


if __name__ == "__main__":
    main()
