"""The folder that runs trained together share: who they are, and one checkpoint of all their states.

    runs/<study>/packs/<pack_id>/pack.json  checkpoints/

pack_id is a hash of the run ids in the order of their lanes, so the same runs find their states again. The folder is
removed when every member has its result.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxscale.plain import from_plain, read_json, write_json
from jaxscale.runs import run_dir

__all__ = ["Pack", "PackFolder", "open_packs"]


@dataclass(frozen=True)
class Pack:
    """Runs that train together, in the order of their lanes, and by which way."""

    run_ids: tuple[str, ...]
    way: str

    @property
    def pack_id(self) -> str:
        """First 12 hex digits of the SHA-256 of the run ids."""
        return hashlib.sha256(" ".join(self.run_ids).encode()).hexdigest()[:12]


class PackFolder:
    """A pack's folder under a study's."""

    def __init__(self, study_dir: Path, pack: Pack) -> None:
        self.pack = pack
        self.path = Path(study_dir) / "packs" / pack.pack_id

    @property
    def checkpoints(self) -> Path:
        """Folder that Orbax owns."""
        return self.path / "checkpoints"

    @property
    def saved_step(self) -> int:
        """The newest step that a checkpoint here claims to hold."""
        return max((int(path.name) for path in self.checkpoints.glob("*") if path.name.isdigit()), default=0)

    def prepare(self) -> None:
        """Create the folder and note the members."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "pack.json", json.dumps(asdict(self.pack), indent=1))

    def remove(self) -> None:
        """Every member has its result: nothing here is wanted any more."""
        shutil.rmtree(self.path, ignore_errors=True)

    def describe(self) -> dict[str, object]:
        """What a member's result says of it."""
        return {"id": self.pack.pack_id, "way": self.pack.way, "members": len(self.pack.run_ids)}


def open_packs(study_dir: Path) -> list[Pack]:
    """Every pack that has saved a state and has a run without result; what others left is removed."""
    files = sorted((Path(study_dir) / "packs").glob("*/pack.json"))
    found = []
    for file in files:
        pack = from_plain(read_json(file), Pack)
        if all((run_dir(study_dir, run_id) / "result.json").exists() for run_id in pack.run_ids):
            PackFolder(study_dir, pack).remove()  # killed between the last result and this
        elif _has_saved(file.parent / "checkpoints"):
            found.append(pack)
    return found


def _has_saved(checkpoints: Path) -> bool:
    return any(path.name.isdigit() for path in checkpoints.glob("*"))
