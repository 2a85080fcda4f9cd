"""The chart as Helm, Kubernetes and the services themselves understand it."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import pytest
import yaml
from certificates import certificate
from charts import CHART, COMPONENTS, EVERYTHING, INSECURE, MODEL, NEEDED, ROOT, SETS, TLS, container, merged, notes, pod, render, workloads
from settings import check
from values_table import table

# Kinds of operators that may be there; their schemas are not Kubernetes'.
FOREIGN = {"ServiceMonitor", "PrometheusRule", "Certificate"}
KUBERNETES = ["1.27", "1.31", "1.34"]


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_helm_finds_nothing_to_complain_of(values):
    found = helm.lint(CHART, values)
    assert found["errors"] == [] and [m for m in found["messages"] if m["severity"] > 1] == []


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_every_object_is_one_of_kubernetes(values, version):
    seen = set()
    for (kind, _), manifest in render(values).items():
        if kind not in FOREIGN:
            kubernetes_validate.validate(manifest, version, strict=True)
            seen.add(kind)
    assert seen >= {"Deployment", "DaemonSet", "Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceAccount"}


def sample(secret, key):
    """What may stand in a secret."""
    samples = {"admin-key": "an-admin-key", "access-key-id": "AKIA", "secret-access-key": "hush", "token": "hf_x"}
    urls = {"weft-nats": "nats://weft:pw@nats:4222", "weft-redis": "rediss://:pw@redis:6379"}
    return samples.get(key) or urls[secret]


def variables(manifest, folder):
    """The environment of the service, with references followed and mounted secrets put into a folder."""
    fields = {"status.podIP": "10.1.2.3", "metadata.name": "weft-worker-0", "spec.nodeName": "node-1"}
    found = {}
    for variable in container(manifest)["env"]:
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            found[variable["name"]] = fields[source["fieldRef"]["fieldPath"]]
        elif "secretKeyRef" in source:
            found[variable["name"]] = sample(source["secretKeyRef"]["name"], source["secretKeyRef"]["key"])
        else:
            value = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], variable["value"])
            found[variable["name"]] = value
    service = COMPONENTS[manifest["metadata"]["labels"]["app.kubernetes.io/component"]]
    secrets = {volume["name"] for volume in pod(manifest)["volumes"] if "secret" in volume}
    mounts = [mount["mountPath"] for mount in container(manifest)["volumeMounts"] if mount["name"] in secrets]
    for number, mount in enumerate(mounts):
        real = folder / str(number)
        real.mkdir()
        certificate(real, service)
        found = {name: value.replace(f"{mount}/", f"{real}/") for name, value in found.items()}
    return {name: value for name, value in found.items() if name.startswith("WEFT_")}


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_the_services_take_every_rendered_setting(values, binaries):
    found = workloads(render(values))
    assert set(found) == set(COMPONENTS)
    for component, manifest in found.items():
        (program,) = container(manifest)["command"]
        with tempfile.TemporaryDirectory() as folder:
            wrong = check(str(binaries / program), container(manifest).get("args", []), variables(manifest, Path(folder)))
        assert wrong is None, f"{component}: {wrong}"


def test_what_a_service_does_not_know_would_be_found(binaries):
    """The check above can fail."""
    for component, value in [("gateway", {"max_requests": 1}), ("worker", {"dtype": "q3"}), ("registry", {"rank_max": 0})]:
        values = merged(SETS["insecure"], {component: {"settings": value}})
        manifest = workloads(render(values))[component]
        with tempfile.TemporaryDirectory() as folder:
            wrong = check(str(binaries / container(manifest)["command"][0]), [], variables(manifest, Path(folder)))
        assert wrong, value


def plain(manifest):
    return {v["name"]: v["value"] for v in container(manifest)["env"] if "value" in v}


def test_numbers_are_written_out():
    found = workloads(render(SETS["everything"]))
    assert plain(found["worker"])["WEFT_KV_MEMORY_BYTES"] == "34359738368"
    assert plain(found["worker"])["WEFT_ADAPTER_PINNED_FRACTION_MAX"] == "0.25"
    assert plain(found["worker"])["WEFT_BATCH_INVARIANT"] == "true"
    assert plain(found["registry"])["WEFT_PACKAGE_BYTES_MAX"] == "21474836480"
    assert plain(found["cache-daemon"])["WEFT_DISK_BYTES_MAX"] == "107374182400"
    assert plain(found["gateway"])["WEFT_TRUSTED_PROXIES"] == "10.0.0.0/8,fd00::/8"


def refused(values):
    with pytest.raises(helm.HelmError) as error:
        render(values)
    return str(error.value)


def test_without_certificates_or_a_word_for_plaintext_nothing_is_rendered():
    text = refused(merged(NEEDED, MODEL))
    assert "insecureNetwork" in text and "tls.secrets" in text
    assert "exclude each other" in refused(merged(NEEDED, MODEL, TLS, INSECURE))
    assert "tls.certManager.issuerName" in refused(merged(NEEDED, MODEL, {"tls": {"certManager": {"enabled": True}}}))


@pytest.mark.parametrize("path", ["admin.existingSecret", "nats.existingSecret", "s3.bucket"])
def test_what_has_no_good_default_is_asked_for(path):
    section, key = path.split(".")
    assert f"{path} is not set" in refused(merged(SETS["insecure"], {section: {key: ""}}))


def test_a_model_is_asked_for_and_only_one():
    assert "no base model" in refused(merged(NEEDED, INSECURE))
    assert "exclude each other" in refused(merged(SETS["insecure"], {"model": {"id": "org/name"}}))
    assert "model.path needs" in refused(merged(NEEDED, INSECURE, {"model": {"path": "/models/x"}}))
    assert "exclude each other" in refused(merged(SETS["insecure"], {"model": {"persistence": {"enabled": True}}}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"gatway": {}},
        {"gateway": {"replica": 3}},
        {"gateway": {"replicas": "two"}},
        {"gateway": {"settings": {"Max-Requests": 1}}},
        {"image": {"pullPolicy": "Sometimes"}},
        {"image": {"digest": "sha256:12"}},
        {"service": {"port": 0}},
        {"model": {"path": "relative.gguf"}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_chart_does_not_know(wrong):
    assert "schema" in refused(merged(SETS["insecure"], wrong))


def test_settings_that_the_chart_wires_cannot_be_torn_out():
    for component, name in [("gateway", "listen"), ("worker", "advertise"), ("registry", "nats_url"), ("cacheDaemon", "dir"), ("cacheDaemon", "neighbours_listen")]:
        text = refused(merged(SETS["insecure"], {component: {"settings": {name: "x"}}}))
        assert f"{component}.settings.{name}" in text


def test_secrets_are_referred_to_and_never_written():
    for values in SETS.values():
        for manifest in workloads(render(values)).values():
            secret = {"WEFT_ADMIN_KEY", "WEFT_ADMIN_KEYS", "WEFT_NATS_URL", "WEFT_REDIS_URL", "WEFT_S3_SECRET_ACCESS_KEY", "WEFT_S3_ACCESS_KEY_ID"}
            assert secret & set(plain(manifest)) == set()
            assert not any(word in " ".join(container(manifest).get("args", [])) for word in ["key", "secret", "password", "url"])
    kinds = {kind for kind, _ in render(SETS["everything"])}
    assert "Secret" not in kinds and "ConfigMap" not in kinds


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_pods_are_as_restricted_as_they_can_be(values):
    for component, manifest in workloads(render(values)).items():
        spec = pod(manifest)
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for one in spec["containers"] + spec.get("initContainers", []):
            own = one["securityContext"]
            assert own["readOnlyRootFilesystem"] and own["allowPrivilegeEscalation"] is False and own["capabilities"]["drop"] == ["ALL"]
            assert one["resources"]["requests"], f"{component}: {one['name']}"
            # Only the folders of the node are handed over by root.
            assert own.get("runAsUser") != 0 or (one["name"] == "own-folders" and own["capabilities"]["add"] == ["CHOWN"])
        assert not any(key in spec for key in ["hostNetwork", "hostPID", "hostIPC"])


def test_workers_and_the_daemon_of_their_node_meet_at_the_same_paths():
    for name in ["insecure", "everything"]:
        found = workloads(render(SETS[name]))
        daemon, worker = found["cache-daemon"], found["worker"]

        def shared(manifest):
            hosts = {v["name"]: v["hostPath"]["path"] for v in pod(manifest)["volumes"] if "hostPath" in v}
            return {m["mountPath"]: hosts[m["name"]] for m in container(manifest)["volumeMounts"] if m["name"] in hosts}

        assert shared(daemon) == shared(worker) and len(shared(daemon)) == (3 if name == "everything" else 2)
        assert all("ml-weft" in path for path in shared(daemon).values()), "two releases must not share a folder"
        assert plain(worker)["WEFT_CACHE"] == plain(daemon)["WEFT_LISTEN"] == "unix:/run/weft/cache.sock"
        assert plain(daemon)["WEFT_DIR"] in shared(daemon)
        # Everywhere where a worker may run.
        assert pod(daemon).get("nodeSelector") == pod(worker).get("nodeSelector")
        assert pod(daemon).get("tolerations", []) == pod(worker).get("tolerations", [])
        read_only = {m["mountPath"]: m["readOnly"] for m in container(worker)["volumeMounts"] if m["mountPath"] in shared(worker)}
        assert all(read_only.values())


def selects(selector, manifest):
    labels = manifest["spec"]["template"]["metadata"]["labels"]
    return all(labels.get(key) == value for key, value in selector.items())


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_selectors_and_ports_lead_to_one_workload_each(values):
    objects = render(values)
    found = workloads(objects)
    for (kind, name), manifest in objects.items():
        if kind == "Service":
            selected = [component for component in found if selects(manifest["spec"]["selector"], found[component])]
            assert len(selected) == 1, name
            names = {port["name"] for port in container(found[selected[0]])["ports"]}
            assert {port["targetPort"] for port in manifest["spec"]["ports"]} <= names
        if kind in ("PodDisruptionBudget", "NetworkPolicy"):
            key = "selector" if kind == "PodDisruptionBudget" else "podSelector"
            assert sum(selects(manifest["spec"][key]["matchLabels"], one) for one in found.values()) == 1, name
        if kind == "HorizontalPodAutoscaler":
            target = manifest["spec"]["scaleTargetRef"]
            assert "replicas" not in objects[target["kind"], target["name"]]["spec"], "the autoscaler would be overruled at each upgrade"
    # Probes and listeners agree.
    for component, manifest in found.items():
        ports = {port["name"]: port["containerPort"] for port in container(manifest)["ports"]}
        listens = {int(value.rsplit(":", 1)[1]) for name, value in plain(manifest).items() if name.endswith("LISTEN") and "unix" not in value}
        assert set(ports.values()) == listens, component
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
            assert container(manifest)[probe]["httpGet"]["port"] in ports, component


def test_who_may_reach_whom():
    objects = render(SETS["insecure"])
    found = workloads(objects)

    def allowed(component):
        policy = objects["NetworkPolicy", f"weft-{component}"]["spec"]
        assert policy["policyTypes"] == ["Ingress"]
        who = {}
        for rule in policy["ingress"]:
            for port in rule["ports"]:
                peers = rule.get("from")
                pods = [p["podSelector"]["matchLabels"] for p in peers or [] if "podSelector" in p]
                who[port["port"]] = {c for c in found for s in pods if selects(s, found[c])} or ("all" if peers is None else "operators")
        return who

    assert allowed("gateway") == {8080: "all", 8081: "operators"}
    assert allowed("registry") == {7001: {"gateway", "worker"}, 7101: "operators"}
    assert allowed("cache-daemon") == {7002: {"cache-daemon"}, 7102: "operators"}
    assert allowed("worker") == {7003: {"gateway"}, 7103: "operators"}
    assert not [name for kind, name in render(merged(SETS["insecure"], {"networkPolicy": {"enabled": False}})) if kind == "NetworkPolicy"]


def test_daemons_find_each_other_unless_that_is_turned_off(binaries):
    values = merged(SETS["cert-manager"], {"cacheDaemon": {"neighbours": {"enabled": False}}})
    for is_on, objects in [(True, render(SETS["cert-manager"])), (False, render(values))]:
        daemon = workloads(objects)["cache-daemon"]
        with tempfile.TemporaryDirectory() as folder:
            given = variables(daemon, Path(folder))
            assert check(str(binaries / "weft-cache-daemon"), [], given) is None
            # What others are told is the Pod's own address, and the port where it listens for them; without that, nothing.
            told = {name: given[name] for name in ["WEFT_NEIGHBOURS_LISTEN", "WEFT_ADVERTISE"] if name in given}
            assert told == ({"WEFT_NEIGHBOURS_LISTEN": "0.0.0.0:7002", "WEFT_ADVERTISE": "10.1.2.3:7002"} if is_on else {})
            wrong = check(str(binaries / "weft-cache-daemon"), [], given | {"WEFT_NEIGHBOURS_LISTEN": "unix:/run/weft/n.sock"})
            assert "neighbours_listen is unix:/run/weft/n.sock" in wrong
        ports = {port["name"]: port["containerPort"] for port in container(daemon)["ports"]}
        rules = objects["NetworkPolicy", "weft-cache-daemon"]["spec"]["ingress"]
        allowed = {port["port"] for rule in rules for port in rule["ports"]}
        assert set(ports.values()) == allowed == ({7002, 7102} if is_on else {7102})


def test_a_new_mesh_gets_its_first_base():
    """A registry is not ready before a worker has told it the base: the worker must reach one that is not."""
    objects = render(SETS["insecure"])
    host = plain(workloads(objects)["worker"])["WEFT_REGISTRY"].split(":")[0]
    assert objects["Service", host]["spec"]["publishNotReadyAddresses"] is True
    host = plain(workloads(objects)["gateway"])["WEFT_REGISTRY"].split(":")[0]
    assert "publishNotReadyAddresses" not in objects["Service", host]["spec"]


def mounted_secrets(manifest):
    return [volume["secret"]["secretName"] for volume in pod(manifest)["volumes"] if "secret" in volume]


def test_each_service_has_the_certificate_that_names_it():
    objects = render(SETS["cert-manager"])
    for component, service in COMPONENTS.items():
        made = objects["Certificate", f"weft-{component}"]["spec"]
        assert mounted_secrets(workloads(objects)[component]) == [made["secretName"]]
        assert made["uris"] == [f"spiffe://weft.ml/weft/{service}"]
        assert {"server auth", "client auth"} <= set(made["usages"])
    for component, manifest in workloads(render(SETS["secrets"])).items():
        assert mounted_secrets(manifest) == [f"{component.replace('-', '')}-cert"]
    without_one = merged(SETS["secrets"], {"tls": {"secrets": {"worker": ""}}})
    assert "tls.secrets.worker is not set" in refused(without_one)
    assert "tls.certManager.enabled exclude each other" in refused(merged(SETS["secrets"], TLS))


def test_a_release_may_have_any_name():
    for name in ["weft", "prod", "weft-blue", "a-very-long-name-of-a-release-that-helm-allows"]:
        objects = render(SETS["everything"], name=name)
        for (kind, found), manifest in objects.items():
            assert len(found) <= 63 and re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", found), found
            for value in manifest["metadata"]["labels"].values():
                assert len(value) <= 63
    both = set(render(SETS["everything"], name="one")) & set(render(SETS["everything"], name="two"))
    assert both == set(), "two releases in one namespace"


def test_notes_warn_of_plaintext_and_of_a_moving_tag():
    assert "plaintext" in notes(SETS["insecure"]) and "plaintext" not in notes(SETS["cert-manager"])
    assert "image.tag is latest" in notes(SETS["guide"]) and "image.tag is latest" not in notes(SETS["insecure"])


def test_schema_and_readme_know_the_same_values_as_the_chart():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    def same(value, schema, path):
        if schema.get("additionalProperties") is False:
            assert set(value) == set(schema["properties"]) - {"global"}, path
            for key, inner in value.items():
                same(inner, schema["properties"][key], f"{path}.{key}")

    same(values, schema, "")
    assert table(CHART / "values.yaml") in (CHART / "README.md").read_text(), "run tests/deploy/values_table.py --write"
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version


def test_everything_is_really_everything():
    """The set that the other tests use turns on every switch."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def switches(value, path=()):
        for key, inner in value.items():
            if isinstance(inner, dict):
                yield from switches(inner, (*path, key))
            elif key == "enabled" and inner is False:
                yield ".".join(path)

    def get(path):
        value = merged(EVERYTHING, TLS)
        for key in path.split("."):
            value = value.get(key, {})
        return value.get("enabled")

    # The claim has a set of its own: with it no volume may be named.
    assert [path for path in switches(values) if not get(path)] == ["model.persistence"]


def test_helm_test_asks_a_gateway_whether_it_is_ready(binaries):
    objects = render(merged(SETS["insecure"], {"service": {"port": 8088}}))
    pod = objects["Pod", "weft-ready"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    program, *words = pod["spec"]["containers"][0]["command"]
    assert "http://weft:8088/readyz" in words
    # The words are those of the program: it fails because nothing answers, not because it does not know them.
    words[words.index("http://weft:8088/readyz")] = "http://127.0.0.1:1/readyz"
    done = subprocess.run([binaries / program, *words], text=True, capture_output=True)
    assert done.returncode == 1 and "does not answer" in done.stderr, done.stderr
