"""Alerts and the dashboard name only metrics, labels and values that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from stream.metrics import METRICS, PREFIX, shown_names

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "dashboards" / "fraudstream.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [rule["expr"] for rule in RULES] + [target["expr"] for panel in PANELS for target in panel["targets"]]

_NAME = re.compile(r"\b(?:fraudstream|process|python)_[a-z0-9_]+")
_PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"}
_SELECTOR = re.compile(r"(fraudstream_[a-z0-9_]+)\{([^}]*)\}")
_BY = re.compile(r"by \(([^)]*)\)")
_SCRAPED = {"job", "instance", "le"}


def _labels(shown: str) -> set[str]:
    name = max(
        (name for name in METRICS if shown.startswith(PREFIX + name)),
        key=len,
    )
    return set(METRICS[name].labels) | _SCRAPED


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_named_exists(expression):
    named = set(_NAME.findall(expression))
    assert named
    assert named <= shown_names() | _PROCESS


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_label_named_is_on_its_metric(expression):
    metrics = [name for name in _NAME.findall(expression) if name.startswith(PREFIX)]
    for shown, selector in _SELECTOR.findall(expression):
        assert {part.split("=")[0].rstrip("!~") for part in selector.split(",")} <= _labels(shown)
    for labels in _BY.findall(expression):
        for metric in metrics[:1]:
            assert {label.strip() for label in labels.split(",")} <= _labels(metric)


def test_every_alert_says_what_and_what_to_do():
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 10
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"].endswith((".", "?"))


def test_dashboard_can_be_provisioned():
    assert DASHBOARD["uid"] == "fraudstream"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_alerts_fire_and_stay_silent_as_promtool_plays_it():
    for arguments in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml")):
        told = subprocess.run(["promtool", *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stdout + told.stderr
