"""Imports only go down: the analysis side runs on a laptop in a second, without Flax or a mesh."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxscale"

ORDER = [
    {"errors"},
    {"config"},
    {"params", "format", "limits", "checkout", "axes", "storage", "plain"},
    {"flops", "hardware"},
    {"runs", "laws", "study", "layout", "vary"},
    {"memory"},
    {"rates", "batchlaw", "trunks", "hopeless", "leases"},
    {"resolve"},
    {"plan", "sweep", "data", "model", "allocate"},
    {"tuning", "spend", "variants"},
    {"tables", "where", "collect", "evals"},
    {"source"},
    {"fit"},
    {"fitted"},
    {"forecast", "flatness", "budget", "curves", "critical", "transfer"},
    {"constrain", "composition", "batch", "mixing"},
    {"backtest", "simulate", "nextcells", "downstream", "bysource", "compare"},
    {"register"},
    {"train", "report"},
    {"mup", "bench", "preflight", "launch"},
    {"cli"},
    {"__init__", "__main__"},
]
"""Rooms from the ground up; a room imports rooms below it, and its own modules."""


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("jaxscale"):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("jaxscale.")}
    return found


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", _files(), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_down(file: Path) -> None:
    level = {room: height for height, rooms in enumerate(ORDER) for room in rooms}
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    room = parts[0]
    assert room in level, f"{room} has no place in ORDER"
    for module in _imports(file):
        other = _room(module)
        assert other == room or level[other] < level[room], f"{room} imports {other}"


def _loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "room",
    ["plan", "laws", "fit", "forecast", "collect", "source", "report", "sweep", "backtest", "simulate", "downstream"],
)
def test_the_analysis_side_loads_neither_flax_nor_orbax(room: str) -> None:
    assert not {"flax", "orbax", "grain"} & _loaded_by(f"import jaxscale.{room}")


def test_help_loads_no_numerical_library() -> None:
    code = "from jaxscale.cli import dispatch\nassert dispatch(['--help']) == 0"
    assert not {"jax", "flax", "pandas", "numpy", "altair"} & _loaded_by(code)


def test_planning_and_fit_help_load_no_flax() -> None:
    code = "from jaxscale.cli import dispatch\ntry: dispatch(['fit', '--help'])\nexcept SystemExit: pass"
    assert "flax" not in _loaded_by(code)
    assert "flax" not in _loaded_by("import jaxscale.cli.study")


def test_the_parent_of_workers_loads_no_jax() -> None:
    """It hears signals at any moment, and an import that a signal breaks off may take the process down."""
    rooms = ("cli.work", "cli.study", "cli.together", "train.pool", "evals.record")
    code = "\n".join(f"import jaxscale.{room}" for room in rooms)
    assert not {"jax", "jaxlib", "flax"} & _loaded_by(code)
