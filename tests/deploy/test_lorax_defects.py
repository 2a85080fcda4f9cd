"""What is wrong with, or absent from, the chart of LoRAX 0.3: one test each, which that chart would fail."""

import re

import helm_python as helm
import pytest
import yaml
from charts import CHART, COMPONENTS, INSECURE, MODEL, NEEDED, ROOT, SETS, container, merged, pod, render, workloads

SECTIONS = {"gateway": "gateway", "registry": "registry", "cache-daemon": "cacheDaemon", "worker": "worker"}


def one(component, value):
    """The workload of this component with these values in its section."""
    return workloads(render(merged(SETS["insecure"], {SECTIONS[component]: value})))[component]


# There: rendered only if another value is set, so never.
@pytest.mark.parametrize("component", COMPONENTS)
def test_a_priority_class_reaches_the_pod(component):
    assert pod(one(component, {"priorityClassName": "high"}))["priorityClassName"] == "high"


# There: declared and used by no template.
@pytest.mark.parametrize("component", COMPONENTS)
def test_annotations_and_labels_reach_their_objects(component):
    manifest = one(component, {"annotations": {"a/b": "1"}, "podAnnotations": {"c/d": "2"}, "podLabels": {"e": "3"}})
    assert manifest["metadata"]["annotations"]["a/b"] == "1"
    assert manifest["spec"]["template"]["metadata"]["annotations"]["c/d"] == "2"
    assert manifest["spec"]["template"]["metadata"]["labels"]["e"] == "3"


# Another value where "something else of its kind" would not be valid.
OTHER = {
    "image.pullPolicy": "Always",
    "image.digest": "sha256:" + "0" * 64,
    "server.args": ["--model-id", "org/other", "--max-stop-sequences", "3"],
    "service.type": "LoadBalancer",
    "service.port": 8088,
    "metrics.interval": "30s",
    "tls.certManager.issuerKind": "ClusterIssuer",
    "tls.certManager.duration": "24h",
    "tls.certManager.renewBefore": "8h",
    "model.path": "/models/other",
    "model.id": "org/other",
    "model.volume": {"hostPath": {"path": "/srv/models"}},
    "model.persistence.accessModes": ["ReadOnlyMany"],
    "cacheDaemon.hostPath": "/mnt/weft",
    "cacheDaemon.memoryHostPath": "/run/weft",
    "gateway.ingress.hosts": ["other.example"],
    "networkPolicy.clients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
    "networkPolicy.operators": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
    "imagePullSecrets": ["other"],
    "podSecurityContext.seccompProfile": {"type": "Unconfined"},
}


# Whether anything is rendered at all is what these decide.
REFUSING = {"insecureNetwork", "tls.certManager.enabled"}


def others(path, value):
    if path in OTHER:
        return [OTHER[path]]
    if isinstance(value, bool):
        return [False, True]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, str):
        return ["other"]
    return [[{"key": "other"}] if isinstance(value, list) else {"other": "other"}]


def leaves(value, path=""):
    for key, inner in value.items():
        name = f"{path}{key}"
        if isinstance(inner, dict) and inner and name not in OTHER:
            yield from leaves(inner, f"{name}.")
        else:
            yield name, inner


def nested(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


LEAVES = dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
RENDERED = {name: render(values) for name, values in SETS.items()}


# The same defect, for every value that there is.
@pytest.mark.parametrize("path", LEAVES)
def test_every_value_changes_something(path):
    def changes(name, value):
        try:
            return render(merged(SETS[name], nested(path, value))) != RENDERED[name]
        except helm.HelmRenderError:
            # It does not go with this set: another one has to show it.
            return path in REFUSING

    # Those with more in them first.
    sets = sorted(SETS, key=lambda name: -len(RENDERED[name]))
    assert any(changes(name, value) for value in others(path, LEAVES[path]) for name in sets), f"{path} is in no template"


# There: none of these.
@pytest.mark.parametrize(
    "kind",
    ["HorizontalPodAutoscaler", "PodDisruptionBudget", "Ingress", "ServiceMonitor", "PrometheusRule", "ServiceAccount", "NetworkPolicy", "Certificate"],
)
def test_what_was_missing_can_be_had(kind):
    assert [name for found, name in RENDERED["everything"] if found == kind]


# There: the model lies in an emptyDir, and is fetched again by every Pod.
def test_a_claim_holds_the_model():
    claim = RENDERED["claim"]["PersistentVolumeClaim", "weft-model"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    volumes = {volume["name"]: volume for volume in pod(workloads(RENDERED["claim"])["worker"])["volumes"]}
    assert volumes["model"]["persistentVolumeClaim"]["claimName"] == "weft-model"
    fetch = pod(workloads(RENDERED["claim"])["worker"])["initContainers"][0]
    assert "exit 0" in fetch["args"][0], "a model that is there already is not fetched again"


# There: /data with adapters in an emptyDir, lost with each Pod.
def test_adapters_stay_on_the_node():
    for component in ("cache-daemon", "worker"):
        volumes = {volume["name"]: volume for volume in pod(workloads(RENDERED["insecure"])[component])["volumes"]}
        assert "hostPath" in volumes["cache"]


# There: no startupProbe, so that a large model is killed while it is read.
@pytest.mark.parametrize("component", COMPONENTS)
def test_a_slow_start_is_not_a_hang(component):
    found = container(workloads(RENDERED["insecure"])[component])
    assert found["startupProbe"]["httpGet"]["path"] == found["livenessProbe"]["httpGet"]["path"] == "/livez"
    # Readiness alone looks at what may take long or depends on others.
    assert found["readinessProbe"]["httpGet"]["path"] == "/readyz"


def grace_seconds(manifest):
    """What the service takes from SIGTERM to its end at most, by its own settings."""
    values = {v["name"]: v.get("value") for v in container(manifest)["env"]}
    grace = float(values.get("WEFT_SHUTDOWN_GRACE_S") or 0) + float(values.get("WEFT_SHUTDOWN_GRACE_MS") or 0) / 1000
    assert grace > 0
    return grace + float(values.get("WEFT_DRAIN_DELAY_MS") or 0) / 1000


# There: the kubelet kills after 30 seconds what may take 90 to end.
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("grace", [None, 0, 300])
@pytest.mark.parametrize("delay", [None, 0, 2500])
def test_the_kubelet_waits_longer_than_a_drain_takes(component, grace, delay):
    value = {} if grace is None else {"shutdownGraceSeconds": grace}
    if component in ("gateway", "registry") and delay is not None:
        value["drainDelayMs"] = delay
    if grace == 0:
        value["shutdownGraceSeconds"] = 1
    manifest = one(component, value)
    assert pod(manifest)["terminationGracePeriodSeconds"] >= grace_seconds(manifest) + 5


# There: `latest`, beside an appVersion that is something else.
def test_the_image_is_that_of_the_chart():
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    for manifest in workloads(RENDERED["insecure"]).values():
        assert container(manifest)["image"] == f"weft:{version}"
    digest = "sha256:" + "a" * 64
    for manifest in workloads(render(merged(SETS["insecure"], {"image": {"digest": digest}}))).values():
        assert {c["image"] for c in [container(manifest), *pod(manifest).get("initContainers", [])]} == {f"weft@{digest}"}


# There: args are handed on unseen, with a port that contradicts the probes'.
def test_the_guides_values_are_honoured():
    objects = render(SETS["guide"])
    found = workloads(objects)
    worker = container(found["worker"])
    assert {container(manifest)["image"] for manifest in found.values()} == {"ghcr.io/predibase/lorax:latest"}
    assert worker["args"] == ["--max-input-length", "4096"]
    assert {v["name"]: v.get("value") for v in worker["env"]}["WEFT_MODEL"] == "/models/mistralai/Mistral-7B-Instruct-v0.1"
    fetch = pod(found["worker"])["initContainers"][0]
    assert {v["name"]: v.get("value") for v in fetch["env"]}["MODEL_ID"] == "mistralai/Mistral-7B-Instruct-v0.1"
    assert worker["resources"] == {"limits": {"nvidia.com/gpu": 1}, "requests": {"cpu": "2", "memory": "8Gi"}}
    assert objects["Service", "weft"]["spec"]["type"] == "ClusterIP"
    for component, port in [("gateway", "8081"), ("registry", "7101"), ("cache-daemon", "7102"), ("worker", "7103")]:
        annotations = found[component]["spec"]["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/scrape"] == "true" and annotations["prometheus.io/port"] == port
    off = render(merged(SETS["guide"], {"metrics": {"enabled": False}}))
    assert not any("annotations" in m["spec"]["template"]["metadata"] for m in workloads(off).values())


@pytest.mark.parametrize("joined", [False, True])
def test_launcher_flags_go_to_the_service_that_has_them(joined):
    pairs = [
        ("--model-id", "/models/base.gguf"), ("--quantize", "q4"), ("--max-total-tokens", "8192"), ("--max-batch-prefill-tokens", "512"),
        ("--max-concurrent-requests", "256"), ("--max-best-of", "4"), ("--max-stop-sequences", "6"), ("--cors-allow-origin", "https://a"),
        ("--port", "80"), ("--hostname", "0.0.0.0"),
    ]  # fmt: skip
    args = [f"{flag}={value}" for flag, value in pairs] if joined else [word for pair in pairs for word in pair]
    model = {"model": {"volume": MODEL["model"]["volume"]}}
    found = workloads(render(merged(NEEDED, INSECURE, model, {"server": {"args": [*args, "--json-output"]}})))

    def split(words):
        return [piece for word in words for piece in word.split("=", 1)]

    worker, gateway = container(found["worker"]), container(found["gateway"])
    assert split(worker["args"]) == [
        "--quantize", "q4", "--max-total-tokens", "8192", "--max-batch-prefill-tokens", "512", "--max-stop-sequences", "6",
    ]  # fmt: skip
    assert split(gateway["args"]) == [
        "--max-concurrent-requests", "256", "--max-best-of", "4", "--max-stop-sequences", "6", "--cors-allow-origin", "https://a",
    ]  # fmt: skip
    assert {v["name"]: v.get("value") for v in worker["env"]}["WEFT_MODEL"] == "/models/base.gguf"
    assert "initContainers" not in pod(found["worker"])
    with pytest.raises(helm.HelmError, match="follows no flag"):
        render(merged(SETS["insecure"], {"server": {"args": ["4096"]}}))
