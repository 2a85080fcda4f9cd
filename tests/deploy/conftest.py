"""Where the binaries are that the tests run."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def binaries():
    """The folder of the release binaries; scripts/test-deploy.sh builds them."""
    folder = Path(os.environ.get("WEFT_TEST_BINARIES", ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release"))
    assert (folder / "weft-gateway").exists(), f"{folder} has no weft-gateway: cargo build --release --bins"
    return folder
