"""Which commit: of the code that runs, and of the repository that a file lies in. Empty text outside git."""

from __future__ import annotations

import subprocess
from functools import lru_cache
from pathlib import Path

__all__ = ["code_commit", "committed_bytes", "folder_commit"]


@lru_cache(maxsize=1)
def code_commit() -> str:
    """Commit of the checkout the package lies in, with "+" when it has changes; empty for an installed package."""
    root = Path(__file__).resolve().parents[1]
    return folder_commit(root) if (root / ".git").exists() else ""


def folder_commit(folder: Path) -> str:
    """Commit of the repository that holds a folder, 12 hex digits, with "+" when tracked files have changes."""
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD").decode().strip()
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no").strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+" if changed else "")


def committed_bytes(file: Path) -> bytes | None:
    """The file as the last commit of its repository holds it; None where it is not committed."""
    try:
        return _git(file.resolve().parent, "show", f"HEAD:./{file.name}")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, timeout=10, check=True).stdout
