"""compose.yaml without containers: the services take their settings, and what must be said of each is said."""

import re

import pytest
import yaml
from charts import ROOT
from settings import check

GIVEN = {
    "WEFT_ADMIN_KEY": "admin-key", "S3_SECRET_ACCESS_KEY": "secret-of-the-s3-server", "NATS_PASSWORD": "pw", "REDIS_PASSWORD": "pw",
    "MODEL_DIR": "/srv/models", "MODEL_FILE": "base.gguf",
}  # fmt: skip
OURS = ["gateway-1", "gateway-2", "registry-1", "registry-2", "cache-daemon", "worker-1", "worker-2", "s3"]


def filled(text):
    """The file with its variables put in, as compose does it."""

    def value(match):
        if match[0] == "$$":
            return "$"
        if match[1] in GIVEN:
            return GIVEN[match[1]]
        assert match[2] == "-", f"{match[0]}: required, and not in the list of the file's head"
        return match[3]

    return re.sub(r"\$\$|\$\{(\w+):([-?])([^}]*)\}", value, text)


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load(filled((ROOT / "compose.yaml").read_text()))["services"]


def test_what_must_be_given_stands_in_the_files_head():
    text = (ROOT / "compose.yaml").read_text()
    head = text[: text.index("\n\n")]
    assert set(re.findall(r"\$\{(\w+):\?", text)) == set(GIVEN)
    assert all(name in head for name in GIVEN)


@pytest.mark.parametrize("name", [name for name in OURS if name != "s3"])
def test_each_service_takes_its_settings(services, binaries, name):
    service = services[name]
    program, *flags = service["command"]
    assert check(str(binaries / program), flags, {key: str(value) for key, value in service["environment"].items()}) is None


@pytest.mark.parametrize("name", [*OURS, "nats", "redis", "prometheus"])
def test_each_service_has_a_health_check_and_comes_back(services, name):
    assert set(services) == {*OURS, "nats", "redis", "prometheus"}
    service = services[name]
    assert service["restart"] == "unless-stopped" and service["healthcheck"]["test"]
    assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
    if name in OURS:
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        # The probe is the image's own, at a port on which the service listens.
        test, variables = service["healthcheck"]["test"], service["environment"]
        listens = [value for key, value in variables.items() if key.endswith("LISTEN")] + service["command"]
        assert test[:3] == ["CMD", "weft", "probe"] and any(re.search(r":\d+", test[3])[0] in str(place) for place in listens)


def test_nobody_is_killed_while_it_drains(services):
    for name in OURS[:-1]:
        variables = services[name]["environment"]
        # The longest default of a grace (docs/settings.md) where none is set.
        grace = int(variables.get("WEFT_SHUTDOWN_GRACE_S", 30)) + int(variables.get("WEFT_DRAIN_DELAY_MS", 0)) / 1000
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > grace


def test_workers_see_the_daemons_files_where_it_has_them(services):
    def mounts(name):
        return {volume.split(":")[0]: volume.split(":")[1] for volume in services[name]["volumes"]}

    daemon = services["cache-daemon"]["environment"]
    for worker in ("worker-1", "worker-2"):
        assert {key: mounts(worker)[key] for key in mounts("cache-daemon")} == mounts("cache-daemon")
        assert services[worker]["environment"]["WEFT_CACHE"] == daemon["WEFT_LISTEN"]
        assert services[worker]["environment"]["WEFT_ADVERTISE"] == f"{worker}:7003"
        assert all(volume.endswith(":ro") for volume in services[worker]["volumes"] if "cache" in volume)
    assert daemon["WEFT_DIR"] == mounts("cache-daemon")["cache"]


def test_the_daemon_can_be_found_by_one_of_another_node(services):
    daemon = services["cache-daemon"]["environment"]
    host, port = daemon["WEFT_ADVERTISE"].split(":")
    assert host in services and daemon["WEFT_NEIGHBOURS_LISTEN"] == f"0.0.0.0:{port}"
