"""compose.yaml, up with real containers: every service healthy, adapters asked for through both gateways, a worker killed.

The tests run in order over one mesh; `scripts/test-deploy.sh compose` runs them.
"""

import json
import os
import secrets
import socket
import subprocess
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import containers
import pytest
from waiting import until

PROJECT = "weft-test"
GOLDEN = containers.ROOT / "crates/engine/tests/golden"
SERVICES = {
    "gateway-1", "gateway-2", "registry-1", "registry-2", "cache-daemon", "worker-1", "worker-2", "nats", "redis", "s3", "prometheus",
}  # fmt: skip
ADAPTERS = ["rank4", "rank8", "rank16"]
MODEL = "tiny"


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def http(url, key=None, body=None, timeout=30):
    """Status, headers and JSON (or text) of an answer."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode(), headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        answer = error
    text = answer.read().decode()
    kind = answer.headers.get("content-type", "")
    return answer.status, answer.headers, json.loads(text) if kind.startswith("application/json") else text


class Mesh:
    """The project of compose.yaml with settings for a test."""

    def __init__(self, images, binaries):
        names = ["GATEWAY_1_PORT", "GATEWAY_1_ADMIN_PORT", "GATEWAY_2_PORT", "GATEWAY_2_ADMIN_PORT", "PROMETHEUS_PORT"]
        self.ports = {name: free_port() for name in names}
        self.admin_key = secrets.token_hex(16)
        self.weft = binaries / "weft"
        own = {
            "WEFT_ADMIN_KEY": self.admin_key,
            "S3_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "NATS_PASSWORD": secrets.token_hex(16),
            "REDIS_PASSWORD": secrets.token_hex(16),
            "MODEL_DIR": str(GOLDEN),
            "MODEL_FILE": MODEL,
            "WORKER_THREADS": "1",
        }
        self.environment = os.environ | images | own | {name: str(port) for name, port in self.ports.items()}

    def compose(self, *arguments):
        program = containers.need("docker-compose", "docker-compose")
        command = [program, "-p", PROJECT, "-f", containers.ROOT / "compose.yaml", *arguments]
        return containers.run(*map(str, command), env=self.environment)

    def container(self, service):
        return self.compose("ps", "-q", service).strip()

    def state(self, service):
        container = self.container(service)
        return json.loads(containers.docker("inspect", container))[0]["State"] if container else {"Status": "absent"}

    def health(self):
        return {service: self.state(service).get("Health", {}).get("Status") for service in SERVICES}

    def url(self, port):
        return f"http://127.0.0.1:{self.ports[port]}"

    def admin(self, *arguments):
        environment = self.environment | {"WEFT_ADMIN_URL": self.url("GATEWAY_1_ADMIN_PORT")}
        return json.loads(containers.run(str(self.weft), *arguments, env=environment))

    def ask(self, gateway, key, model):
        body = {"model": model, "prompt": "The quick brown", "max_tokens": 8, "temperature": 0}
        return http(f"{self.url(f'GATEWAY_{gateway}_PORT')}/v1/completions", key, body)


@pytest.fixture(scope="module")
def mesh(binaries):
    with containers.daemon():
        mesh = Mesh(containers.build_images(binaries), binaries)
        mesh.compose("down", "-v", "--remove-orphans")
        try:
            mesh.compose("up", "-d")
            yield mesh
        except BaseException:
            print(mesh.compose("logs", "--no-color", "--tail", "60"))
            raise
        finally:
            mesh.compose("down", "-v", "--remove-orphans")


def test_every_service_becomes_healthy(mesh):
    defined = set(mesh.compose("config", "--services").split())
    assert defined == SERVICES
    try:
        until(lambda: set(mesh.health().values()) == {"healthy"}, 240, lambda: mesh.health())
    except AssertionError:
        print(mesh.compose("logs", "--no-color", "--tail", "40"))
        raise


def test_nothing_runs_as_root_or_may_write_outside_its_volumes(mesh):
    for service in sorted(SERVICES - {"nats", "redis", "prometheus"}):
        facts = json.loads(containers.docker("inspect", mesh.container(service)))[0]
        host = facts["HostConfig"]
        assert facts["Config"]["User"] == "10001:10001", service
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and "no-new-privileges:true" in host["SecurityOpt"], service


def test_only_gateways_and_prometheus_can_be_reached_and_only_from_here(mesh):
    published = {}
    for service in SERVICES:
        ports = json.loads(containers.docker("inspect", mesh.container(service)))[0]["NetworkSettings"]["Ports"]
        for port, bound in ports.items():
            for binding in bound or []:
                published.setdefault(service, set()).add((port, binding["HostIp"]))
    gateway = {("8080/tcp", "127.0.0.1"), ("8081/tcp", "127.0.0.1")}
    assert published == {"gateway-1": gateway, "gateway-2": gateway, "prometheus": {("9090/tcp", "127.0.0.1")}}


@pytest.fixture(scope="module")
def key(mesh):
    """A tenant's key; its adapters are published."""
    mesh.admin("tenant", "create", "harbour")
    for adapter in ADAPTERS:
        mesh.admin("publish", str(GOLDEN / "adapters" / adapter), "--tenant", "harbour")
    return mesh.admin("key", "create", "--tenant", "harbour")["secret"]


@pytest.fixture(scope="module")
def texts(mesh, key):
    """What each adapter answers through the first gateway: one text each, all different."""
    answers = {adapter: mesh.ask(1, key, adapter) for adapter in ADAPTERS}
    assert {answer[0] for answer in answers.values()} == {200}, answers
    return {adapter: answer[2]["choices"][0]["text"] for adapter, answer in answers.items()}


def test_both_gateways_answer_with_the_adapter_asked_for(mesh, key, texts):
    assert len(set(texts.values())) == len(ADAPTERS), texts
    for adapter in ADAPTERS:
        # The other gateway hears of the key and of the adapter over its own registry.
        status, headers, answer = until(lambda: (lambda a: a if a[0] == 200 else None)(mesh.ask(2, key, adapter)), 30)
        assert headers["x-weft-adapter"] == f"harbour/{adapter}@1"
        assert answer["choices"][0]["text"] == texts[adapter]


def test_both_workers_are_used_and_share_one_daemons_files(mesh, key, texts):
    def workers():
        return {mesh.ask(gateway, key, model)[1]["x-weft-worker"] for gateway in (1, 2) for model in [*ADAPTERS, "base"] * 4}

    until(lambda: workers() == {"worker-1", "worker-2"}, 60)


def test_prometheus_scrapes_every_service_and_knows_the_alerts(mesh, key):
    prometheus = mesh.url("PROMETHEUS_PORT")

    def targets():
        found = http(f"{prometheus}/api/v1/targets")[2]["data"]["activeTargets"]
        return {(target["labels"]["job"], target["labels"]["instance"]): target["health"] for target in found}

    until(lambda: len(targets()) == 7 and set(targets().values()) == {"up"}, 60, targets)
    rules = http(f"{prometheus}/api/v1/rules")[2]["data"]["groups"][0]["rules"]
    assert {rule["name"] for rule in rules} >= {"WeftNoWorker", "WeftWrongAdapterRefused"}
    # No alert of a healthy mesh fires; each that reads a gauge finds it.
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
    for metric in ["gateway_workers_ready", "gateway_limits_shared", "bus_connected", "registry_damaged_objects"]:
        found = until(lambda: http(f"{prometheus}/api/v1/query?query={metric}")[2]["data"]["result"], 30)
        assert found, metric


def test_no_container_had_to_be_started_twice(mesh, key, texts):
    restarts = {s: json.loads(containers.docker("inspect", mesh.container(s)))[0]["RestartCount"] for s in SERVICES}
    assert set(restarts.values()) == {0}, restarts


def test_limits_are_kept_in_redis_and_the_bus_is_nats(mesh, key):
    for admin in ("GATEWAY_1_ADMIN_PORT", "GATEWAY_2_ADMIN_PORT"):
        status, _, ready = http(f"{mesh.url(admin)}/readyz")
        assert status == 200 and ready["limits"]["kept_in"] == "redis" and ready["limits"]["shared"], ready
        assert ready["degraded"] == [], ready
        assert ready["workers_ready"] == 2, ready


def test_a_killed_worker_is_not_noticed_and_comes_back(mesh, key, texts):
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(mesh.ask, gateway, key, adapter) for gateway in (1, 2) for adapter in ADAPTERS * 3]
        containers.docker("kill", "--signal", "KILL", mesh.container("worker-1"))
        answers = [future.result() for future in asked]
    assert {answer[0] for answer in answers} == {200}, answers
    assert {answer[2]["choices"][0]["text"] for answer in answers} == set(texts.values())
    # Docker does not start again what `docker kill` ended; an operator does.
    mesh.compose("up", "-d", "worker-1")
    until(lambda: mesh.health()["worker-1"] == "healthy", 60, mesh.health)


def test_a_gateway_that_is_told_to_end_drains_and_the_other_serves_on(mesh, key, texts):
    container = mesh.container("gateway-1")
    containers.docker("stop", container)
    assert json.loads(containers.docker("inspect", container))[0]["State"]["ExitCode"] == 0
    assert mesh.ask(2, key, ADAPTERS[0])[2]["choices"][0]["text"] == texts[ADAPTERS[0]]
    mesh.compose("up", "-d", "gateway-1")
    until(lambda: mesh.health()["gateway-1"] == "healthy", 60, mesh.health)


def test_a_registry_may_be_gone_and_what_was_published_stays(mesh, key, texts):
    containers.docker("kill", mesh.container("registry-1"))
    for gateway in (1, 2):
        assert mesh.ask(gateway, key, ADAPTERS[1])[2]["choices"][0]["text"] == texts[ADAPTERS[1]]
    # Both gateways reach the other one, so that writes go on.
    until(lambda: mesh.admin("tenant", "create", f"late-{secrets.token_hex(4)}"), 60, lambda: mesh.compose("ps"))


def test_what_is_missing_in_the_environment_is_named(mesh):
    for name in ["WEFT_ADMIN_KEY", "S3_SECRET_ACCESS_KEY", "NATS_PASSWORD", "REDIS_PASSWORD", "MODEL_DIR", "MODEL_FILE"]:
        environment = {key: value for key, value in mesh.environment.items() if key != name}
        command = ["docker-compose", "-f", containers.ROOT / "compose.yaml", "config"]
        done = subprocess.run(command, env=environment, text=True, capture_output=True)
        assert done.returncode != 0 and name in done.stderr, name


def test_the_build_context_has_all_that_the_workspace_needs(mesh, tmp_path):
    """Compiling from source needs a public image; that every crate and its sources get into the build can be seen without."""
    recipe = tmp_path / "Dockerfile"
    recipe.write_text('FROM scratch\nCOPY . /src\nCMD ["none"]\n')
    containers.docker("build", "-t", "weft-test-context", "-f", str(recipe), str(containers.ROOT))
    container = containers.docker("create", "weft-test-context").strip()
    containers.docker("cp", f"{container}:/src", str(tmp_path))
    containers.docker("rm", container)

    def crates(folder):
        text = containers.run("cargo", "metadata", "--no-deps", "--offline", "--locked", "--format-version", "1", cwd=folder)
        return {package["name"]: package["targets"] for package in json.loads(text)["packages"]}

    inside = crates(tmp_path / "src")
    assert set(inside) == set(crates(containers.ROOT))
    missing = [target["src_path"] for targets in inside.values() for target in targets if not Path(target["src_path"]).exists()]
    assert missing == []
    assert not (tmp_path / "src/target").exists() and not (tmp_path / "src/.git").exists()
