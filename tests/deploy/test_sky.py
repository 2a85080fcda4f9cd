"""sky/: SkyPilot's own parser takes the files, and what they would run is taken by the real programs."""

import os
import re
import subprocess

import pytest
import sky
import yaml
from certificates import certificate
from charts import ROOT

FILES = ["all-in-one", "worker-pool"]
# A `docker run` that checks the settings of what it would start instead: options as the files use them, then image, program, flags.
DOCKER = r"""#!/usr/bin/env python3
import os, subprocess, sys
args, env, with_value = sys.argv[1:], {}, {"--name", "--network", "-v", "-e", "--tmpfs", "--restart", "--stop-timeout"}
if args[0] != "run":
    sys.exit(0)
args.pop(0)
mounted = {}
while args[0].startswith("-"):
    option = args.pop(0)
    value = args.pop(0) if option in with_value else None
    if option == "-v":
        here, there = value.split(":")[:2]
        mounted[there] = here
    if option == "-e":
        name, _, given = value.partition("=")
        env[name] = given if "=" in value else os.environ[name]
image, program, *flags = args
binaries = os.environ["BINARIES"]
assert image == "registry.example/weft:test", image
for there, here in mounted.items():
    env = {name: value.replace(there + "/", here + "/") for name, value in env.items()}
with open(os.environ["CALLS"], "a") as calls:
    print(program, *flags, file=calls)
if program == "weft":
    known = subprocess.run([f"{binaries}/weft", "up", "--help"], text=True, capture_output=True, check=True).stdout.split()
    sys.exit(", ".join(flag for flag in flags[1:] if flag.startswith("--") and flag not in known) or 0)
sys.exit(subprocess.run([f"{binaries}/{program}", *flags, "--check-settings"], env=env).returncode)
"""


def task(name):
    return sky.Task.from_yaml(str(ROOT / "sky" / f"{name}.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_skypilot_takes_the_file_and_loses_nothing_of_it(name):
    written = yaml.safe_load((ROOT / "sky" / f"{name}.yaml").read_text())
    parsed = task(name)
    assert parsed.name == written["name"] and parsed.run == written["run"] and parsed.setup == written["setup"]
    assert parsed.num_nodes == written.get("num_nodes", 1)
    assert set(parsed.envs) >= set(written["envs"]) and set(parsed.secrets) == set(written["secrets"])
    (resources,) = parsed.resources
    assert resources.cpus == "16+" and resources.memory == "64+"
    # The data plane may be open to the world; the admin API and the services never.
    assert resources.ports == (["8080"] if name == "all-in-one" else None)
    # Nothing that is secret has a default.
    assert all(value.get_secret_value() == "" if hasattr(value, "get_secret_value") else value == "" for value in parsed.secrets.values())


def run(name, folder, binaries, **variables):
    """Runs the file's `run` with a stand-in for docker; what it started, and how it ended."""
    stand_in = folder / "bin" / "docker"
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text(DOCKER)
    stand_in.chmod(0o755)
    (folder / "bin" / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (folder / "bin" / "sudo").chmod(0o755)
    written = yaml.safe_load((ROOT / "sky" / f"{name}.yaml").read_text())
    own = {
        "HOME": str(folder), "PATH": f"{folder}/bin:{os.environ['PATH']}", "BINARIES": str(binaries), "CALLS": str(folder / "calls"),
        "IMAGE": "registry.example/weft:test",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_TASK_ID": "sky-2026-weft",
    }  # fmt: skip
    values = {key: str(value) for key, value in (written["envs"] | written["secrets"]).items()} | own | variables
    done = subprocess.run(["bash", "-c", written["run"]], env=values, text=True, capture_output=True)
    calls = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return done, calls


def test_the_flags_of_the_embedded_mesh_exist(tmp_path, binaries):
    done, calls = run("all-in-one", tmp_path, binaries, WEFT_ADMIN_KEY="k")
    assert done.returncode == 0, done.stderr
    assert len(calls) == 1 and "--admin-listen 127.0.0.1:8081" in calls[0]


def certificates(folder):
    """Of the worker and of the daemon, each of an authority of its own; both are trusted."""
    found = {}
    for service, before in [("worker", ""), ("cache-daemon", "CACHE_")]:
        made = folder / f"of-{service}"
        made.mkdir()
        certificate(made, service)
        found |= {f"{before}TLS_CERT": (made / "tls.crt").read_text(), f"{before}TLS_KEY": (made / "tls.key").read_text()}
        found["TLS_CA"] = found.get("TLS_CA", "") + (made / "ca.crt").read_text()
    return found


def test_the_settings_of_the_pool_hold(tmp_path, binaries):
    secrets = {"WEFT_NATS_URL": "tls://weft:pw@nats.example:4222", "WEFT_S3_ACCESS_KEY_ID": "AKIA", "WEFT_S3_SECRET_ACCESS_KEY": "hush"}
    mesh = {"REGISTRY": "registry.example:7001", "S3_ENDPOINT": "https://s3.example"}
    done, calls = run("worker-pool", tmp_path, binaries, **secrets, **mesh, **certificates(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [call.split()[0] for call in calls] == ["weft-cache-daemon", "weft-worker"]
    # Each node says its own address; daemon and worker meet at one socket, and daemons at their ports.
    assert "--advertise 10.0.0.2:7003" in calls[1]
    assert "--neighbours-listen 0.0.0.0:7002 --advertise 10.0.0.2:7002" in calls[0]
    sockets = [re.search(r"unix:\S+", call)[0] for call in calls]
    assert sockets[0] == sockets[1]
    assert not any("hush" in call or "pw@" in call for call in calls), "secrets are in no argument"
    for service in ["worker", "cache-daemon"]:
        assert (tmp_path / f"weft-tls/{service}/tls.key").stat().st_mode & 0o077 == 0


def test_a_pool_that_was_told_too_little_does_not_start(tmp_path, binaries):
    store = {"S3_ENDPOINT": "https://s3.example", "WEFT_S3_ACCESS_KEY_ID": "AKIA", "WEFT_S3_SECRET_ACCESS_KEY": "hush"}
    cases = [
        ("s3_endpoint", {"REGISTRY": "registry.example:7001"}),
        ("s3_access_key_id", {"REGISTRY": "registry.example:7001", "S3_ENDPOINT": "https://s3.example"}),
        ("registry", {"REGISTRY": "nowhere", **store}),
    ]
    for index, (missing, told) in enumerate(cases):
        folder = tmp_path / str(index)
        folder.mkdir()
        done, _ = run("worker-pool", folder, binaries, **told, **certificates(folder))
        assert done.returncode != 0 and missing in done.stderr, done.stderr
