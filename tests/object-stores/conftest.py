"""moto as a process, and proxies before it; scripts/test-api.sh says where the binaries are."""

import itertools
import os
import sys
from pathlib import Path

import pytest
from between import Between
from mesh import ROOT, Mesh
from processes import Process, free_port

NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def binaries():
    """The folder of the release binaries."""
    folder = Path(os.environ.get("WEFT_TEST_BINARIES", ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release"))
    assert (folder / "weft-gateway").exists(), f"{folder} has no weft-gateway: cargo build --release --bins"
    return folder


def started(folder, *pause_ms):
    port = free_port()
    command = [sys.executable, Path(__file__).with_name("moto_server.py"), port, *pause_ms]
    return port, Process("moto", command, folder, f"http://127.0.0.1:{port}/moto-api/data.json").start().until_ready()


@pytest.fixture(scope="session")
def moto(tmp_path_factory):
    """The port of a moto."""
    port, process = started(tmp_path_factory.mktemp("moto"))
    yield port
    process.kill()


@pytest.fixture(scope="session")
def paused_moto(tmp_path_factory):
    """The port of a moto that takes a while between a check and its write."""
    port, process = started(tmp_path_factory.mktemp("paused-moto"), 20)
    yield port
    process.kill()


@pytest.fixture
def bucket():
    """A bucket that nobody has used; the registry makes it."""
    return f"bucket-{next(NUMBERS)}"


@pytest.fixture
def between(moto):
    """A proxy before moto that passes everything on."""
    proxy = Between(moto)
    yield proxy
    proxy.close()


@pytest.fixture
def orderly(between):
    """The same, where one put ends before the next begins: moto checks a condition without a lock over the write."""
    between.one_at_a_time = True
    return between


@pytest.fixture
def mesh(binaries, tmp_path, orderly, bucket):
    """A mesh over an orderly moto, with a tenant."""
    mesh = Mesh(binaries, tmp_path, orderly.url, bucket)
    try:
        mesh.start().tell("POST", "/admin/v1/tenants", {"name": "harbour"})
        yield mesh
    finally:
        mesh.stop()
