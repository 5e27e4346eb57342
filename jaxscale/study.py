"""Reading a study file: a Python module whose get_study() returns one frozen Study."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from jaxscale.config import Study
from jaxscale.errors import MisuseError

__all__ = ["load_study"]


def load_study(path: str | Path) -> Study:
    """Import the file at `path` and call its get_study(); MisuseError says what is wrong with it."""
    file = Path(path)
    if not file.is_file():
        raise MisuseError(f"study {str(path)!r}: no such file; the shipped ones are in configs/")
    spec = importlib.util.spec_from_file_location(f"jaxscale_study_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise MisuseError(f"study {str(path)!r}: not a Python file; a study is a .py file with get_study()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        study = module.get_study()
    except Exception as error:
        raise MisuseError(f"study {str(path)!r}: {type(error).__name__}: {error}") from error
    if not isinstance(study, Study):
        raise MisuseError(f"study {str(path)!r}: get_study() returned {type(study).__name__}, not a Study")
    return study
