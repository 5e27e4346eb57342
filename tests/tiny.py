"""A study small enough for tests: text made on the spot, cells of a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxscale.config import DataConfig, Grid, MeshConfig, ModelConfig, Recipe, Study

__all__ = ["make_study", "write_study", "write_text"]

WORDS = "the scaling law of small models holds for large ones when data and size grow together"


def write_text(folder: Path, documents: int = 60, words: int = 400) -> str:
    """Write documents of random words and return the glob that finds them."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        lines = [" ".join(rng.choice(WORDS.split(), 9)) for _ in range(words // 9)]
        (folder / f"{i:03}.txt").write_text("\n".join(lines))
    return str(folder / "*.txt")


def make_study(root: Path, **grid: object) -> Study:
    """Five sizes at each of two tiny budgets, a few hundred steps each."""
    fields = {"budgets": (6e8, 1.5e9), "widths": (4, 6, 8, 12, 16), "spread": 30.0, "min_steps": 10,
              "tokens_per_param": 10.0}  # fmt: skip
    return Study(
        name="tiny",
        model=ModelConfig(seq_len=16, head_dim=4, n_layers=1, base_d_model=8),
        recipe=Recipe(batch_min_tokens=128, batch_coefficient=0.5, microbatch_seqs=8),
        grid=Grid(**{**fields, **grid}),  # type: ignore[arg-type]
        data=DataConfig(
            files=(write_text(root / "text"),), val_tokens=2048, val_fraction=0.1, drop_repeated_lines=False,
            max_epochs=50, cache=str(root / "cache"),
        ),
        mesh=MeshConfig(compile_cache="~/.cache/jaxscale/test-xla"),
        bootstrap=50,
    )  # fmt: skip


def write_study(root: Path, body: str = "") -> Path:
    """A study file whose get_study() is `make_study`, edited by `body` (statements on `study`)."""
    file = root / "tiny.py"
    file.write_text(
        "import sys\nfrom dataclasses import replace\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from tiny import make_study\n\n"
        f"def get_study():\n    study = make_study(Path({str(root)!r}))\n    {body or 'pass'}\n    return study\n"
    )
    return file
