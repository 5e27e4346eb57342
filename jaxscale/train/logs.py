"""What workers leave in their log files: their names, the last words of one that died, and nothing secret in either.

<study>/logs/<host>-<pid of the parent>-<seat>.<start>.log      one file a start; leases and attempts name it
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

__all__ = ["hide_secrets", "name_log", "read_last_words"]

SECRET_NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?$", re.IGNORECASE)
"""How the names of environment variables end whose values are nobody else's business."""
MIN_SECRET = 6
"""Shorter values are words that occur anyway."""
NOISE = re.compile(r"^([IW]\d{4} |WARNING: All log messages|worker ended with code )")
"""Lines of C++ libraries at every start, and what a parent added: not last words."""


def name_log(study_dir: Path, name: str) -> Path:
    """The log file of a worker of this process; its folder is made."""
    logs = Path(study_dir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return logs / f"{socket.gethostname()}-{os.getpid()}-{name}.log"


def read_last_words(log: Path) -> str:
    """The last line of a dead worker's log, and how it ended where its parent noted that."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line for line in lines if not NOISE.match(line)]
    ended = [line for line in lines if line.startswith("worker ended with code ")]
    words = ": ".join([*ended[-1:], own[-1][:300] if own else "it left no message"])
    return hide_secrets(words)


def hide_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text without the values of secret environment variables.

    >>> hide_secrets("401 for key abcdef123", {"WANDB_API_KEY": "abcdef123", "HOME": "/root"})
    '401 for key ***'
    """
    for name, value in (os.environ if environment is None else environment).items():
        if SECRET_NAMES.search(name) and len(value) >= MIN_SECRET:
            text = text.replace(value, "***")
    return text
