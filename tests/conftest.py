"""Eight CPU devices, strict numerics, and where the shared reference data lie."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import pytest

collect_ignore = ["bench", "faults/long.py", "faults/inject"]
"""Programs: benchmarks pin cores and set flags for themselves, long faults take minutes, inject is for others."""

SHARED = Path(os.environ.get("JAXSCALE_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public scaling data that is not part of the project; tests that need it skip without it."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent (set JAXSCALE_SHARED)")
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden plans")
