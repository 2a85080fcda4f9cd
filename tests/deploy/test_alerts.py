"""The alert rules: valid, firing when they should, and about metrics that exist."""

import re
import subprocess
from pathlib import Path

import yaml
from charts import ROOT, SETS, render
from containers import need

RULES = ROOT / "charts/weft/files/alerts.yaml"


def test_promtool_takes_rules_and_configuration():
    promtool = need("promtool", "prometheus")
    subprocess.run([promtool, "check", "rules", RULES], check=True, capture_output=True)
    # The path of the rules is that in the container.
    subprocess.run([promtool, "check", "config", "--syntax-only", ROOT / "compose/prometheus.yaml"], check=True, capture_output=True)


def test_each_rule_fires_on_its_trouble_and_on_nothing_else():
    done = subprocess.run([need("promtool", "prometheus"), "test", "rules", Path(__file__).with_name("alerts_test.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    named = {test["alertname"] for group in yaml.safe_load(Path(__file__).with_name("alerts_test.yaml").read_text())["tests"] for test in group["alert_rule_test"]}
    assert named == {rule["alert"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}


def test_every_metric_of_a_rule_exists():
    sources = "".join(path.read_text() for folder in ["crates", "services"] for path in (ROOT / folder).rglob("*.rs"))
    for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]:
        metrics = re.findall(r"\b(?:gateway|worker|registry|cache_daemon|bus|peer)_[a-z_]+", rule["expr"])
        assert metrics or rule["alert"] == "WeftTargetDown", rule
        for metric in metrics:
            assert f'"{metric}"' in sources, f"{rule['alert']}: {metric}"


def test_every_alert_is_explained():
    explained = re.findall(r"^\| `(Weft\w+)` \|", (ROOT / "docs/deployment.md").read_text(), re.M)
    assert explained == [rule["alert"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]]


def test_the_chart_ships_the_very_same_rules():
    rule = render(SETS["everything"])["PrometheusRule", "weft"]
    assert rule["spec"] == yaml.safe_load(RULES.read_text())


def test_jobs_have_the_names_that_the_rules_go_by():
    jobs = {job["job_name"] for job in yaml.safe_load((ROOT / "compose/prometheus.yaml").read_text())["scrape_configs"]}
    monitors = [manifest for (kind, _), manifest in render(SETS["everything"]).items() if kind == "ServiceMonitor"]
    renamed = {relabel["replacement"] for monitor in monitors for relabel in monitor["spec"]["endpoints"][0]["relabelings"]}
    assert jobs == renamed == {"weft-gateway", "weft-adapter-registry", "weft-cache-daemon", "weft-worker"}


def test_a_monitor_finds_its_service_and_the_service_its_port():
    objects = render(SETS["everything"])
    for (kind, name), manifest in objects.items():
        if kind == "ServiceMonitor":
            wanted = manifest["spec"]["selector"]["matchLabels"].items()
            services = [o for (k, _), o in objects.items() if k == "Service" and wanted <= o["metadata"]["labels"].items()]
            assert len(services) == 1, name
            assert manifest["spec"]["endpoints"][0]["port"] in [port["name"] for port in services[0]["spec"]["ports"]]
            assert manifest["metadata"]["labels"]["release"] == "prometheus"
