"""The chart, rendered by the real Helm, and what is in its objects."""

import copy
from pathlib import Path

import helm_python as helm
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "weft"
NAMESPACE = "ml"

# What every install must say: there is no default for these.
NEEDED = {
    "admin": {"existingSecret": "weft-admin"},
    "nats": {"existingSecret": "weft-nats"},
    "s3": {"bucket": "adapters"},
}
MODEL = {"model": {"path": "/models/base.gguf", "volume": {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}}}}
INSECURE = {"insecureNetwork": True}
TLS = {"tls": {"certManager": {"enabled": True, "issuerName": "mesh"}}}
# `charts/lorax` of the guide "Orchestrating and serving LLM deployments with LoRAX": its example of a values file, unchanged.
GUIDE = yaml.safe_load("""
image:
  repository: ghcr.io/predibase/lorax
  tag: latest
server:
  args:
    - --model-id
    - mistralai/Mistral-7B-Instruct-v0.1
    - --max-input-length
    - "4096"
resources:
  limits:
    nvidia.com/gpu: 1
  requests:
    cpu: "2"
    memory: "8Gi"
service:
  type: ClusterIP
metrics:
  enabled: true
""")
# Everything on that is off by default.
EVERYTHING = {
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "redis": {"existingSecret": "weft-redis", "tlsSecret": "weft-redis-tls", "clientCertificate": True},
    "s3": {"bucket": "adapters", "endpoint": "https://s3.example", "prefix": "mesh/", "existingSecret": "weft-s3"},
    "nats": {"existingSecret": "weft-nats", "tlsSecret": "weft-nats-tls", "clientCertificate": True},
    "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}, "prometheusRule": {"enabled": True}},
    "gateway": {
        "autoscaling": {"enabled": True},
        "ingress": {"enabled": True, "className": "nginx", "hosts": ["weft.example"], "tls": [{"hosts": ["weft.example"], "secretName": "t"}]},
        "settings": {"max_concurrent_requests": 2048, "body_bytes_max": 16777216, "trusted_proxies": ["10.0.0.0/8", "fd00::/8"]},
    },
    "registry": {"settings": {"package_bytes_max": 21474836480}},
    "cacheDaemon": {"memoryBytes": 8589934592, "settings": {"fetches_max": 16}},
    "worker": {
        "autoscaling": {"enabled": True},
        "settings": {"kv_memory_bytes": 34359738368, "adapter_pinned_fraction_max": 0.25, "batch_invariant": True},
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    },
}


def merged(*values):
    """The later of two values wins, as with several `-f` of Helm."""
    result = {}
    for value in values:
        merge(result, copy.deepcopy(value))
    return result


def merge(into, value):
    for key, new in value.items():
        if isinstance(new, dict) and isinstance(into.get(key), dict):
            merge(into[key], new)
        else:
            into[key] = new


SETS = {
    "insecure": merged(NEEDED, MODEL, INSECURE),
    "cert-manager": merged(NEEDED, MODEL, TLS),
    "secrets": merged(NEEDED, MODEL, {"tls": {"secrets": {name: f"{name.lower()}-cert" for name in ["gateway", "registry", "cacheDaemon", "worker"]}}}),
    "guide": merged(NEEDED, INSECURE, GUIDE),
    "everything": merged(NEEDED, MODEL, TLS, EVERYTHING),
    "claim": merged(NEEDED, INSECURE, {"model": {"id": "org/name", "persistence": {"enabled": True}, "fetch": {"tokenSecret": "hub"}}}),
}


def render(values, name="weft"):
    """Every object, by (kind, name)."""
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values, name=name, namespace=NAMESPACE)
    found = {}
    for file, text in files.items():
        if not file.endswith(".yaml"):
            continue
        for manifest in filter(None, yaml.safe_load_all(text)):
            key = (manifest["kind"], manifest["metadata"]["name"])
            assert key not in found, f"{file} makes {key} again"
            found[key] = manifest
    return found


def notes(values):
    with helm.Chart.load(CHART) as chart:
        return chart.render(values, name="weft", namespace=NAMESPACE)["weft/templates/NOTES.txt"]


def workloads(objects):
    """Deployments and DaemonSets by component."""
    found = {}
    for (kind, _), manifest in objects.items():
        if kind in ("Deployment", "DaemonSet", "StatefulSet"):
            found[manifest["metadata"]["labels"]["app.kubernetes.io/component"]] = manifest
    return found


def pod(manifest):
    return manifest["spec"]["template"]["spec"]


def container(manifest):
    """The container of the service."""
    (found,) = pod(manifest)["containers"]
    return found


# Component of the chart, and the service as certificates name it.
COMPONENTS = {"gateway": "gateway", "registry": "adapter-registry", "cache-daemon": "cache-daemon", "worker": "worker"}
