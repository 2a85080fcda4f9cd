"""Endpoints that break the promise that everything stands on end the registry's start, by name."""

import pytest
from between import Between
from mesh import store_flags
from processes import Process, free_port


def start_of_a_registry(binaries, folder, endpoint, bucket):
    """What a registry says that did not start."""
    flags = {"listen": f"127.0.0.1:{free_port()}", **store_flags(endpoint, bucket)}
    command = [binaries / "weft-adapter-registry", *(f"--{flag}={value}" for flag, value in flags.items())]
    registry = Process("registry", command, folder).start()
    try:
        assert registry.ended() == 1, registry.said()
    finally:
        registry.kill()
    said = registry.said()
    assert "listening on" not in said
    assert f"object store endpoint cannot be used: bucket {bucket} at {endpoint}: " in said
    return said


@pytest.mark.parametrize(
    ("header", "promise"),
    [
        ("if-none-match", "if-none-match: * does not stop a write over an existing object"),
        ("if-match", "if-match does not stop a write over another state"),
    ],
)
def test_an_endpoint_that_does_not_see_a_condition(binaries, tmp_path, between, bucket, header, promise):
    between.strips = header
    assert promise in start_of_a_registry(binaries, tmp_path, between.url, bucket)


def test_an_endpoint_that_checks_without_a_lock(binaries, tmp_path, paused_moto, bucket):
    proxy = Between(paused_moto)
    try:
        said = start_of_a_registry(binaries, tmp_path, proxy.url, bucket)
    finally:
        proxy.close()
    assert "racing if-none-match: * writes won" in said
