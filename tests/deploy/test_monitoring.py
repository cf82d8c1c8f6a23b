"""The dashboard and the alert rules of deploy/monitoring use the metrics that an API process has, with their labels."""

import json
import re
from pathlib import Path

import pytest
import yaml

from hidream.server.metrics import Metrics

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"


def labels_by_metric():
    """The labels of each series, by the name that a query uses."""
    found = {}
    for collector in Metrics(None, 15)._registry._collector_to_names:
        names, labels = [collector._name], set(collector._labelnames)
        if collector._type == "counter":
            names = [f"{collector._name}_total"]
        if collector._type == "histogram":
            names, labels = [f"{collector._name}_{part}" for part in ("bucket", "sum", "count")], labels | {"le"}
        found |= dict.fromkeys(names, labels)
    return found


def alerts():
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def panels():
    board = json.loads((FOLDER / "dashboard.json").read_text())
    return [
        pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
        for panel in board["panels"]
        for target in panel["targets"]
    ]


@pytest.mark.parametrize("query", [*(pytest.param(query, id=name) for name, query in alerts().items()), *panels()])
def test_a_query_names_metrics_and_labels_that_exist(query):
    known = labels_by_metric()
    names = set(re.findall(r"hidream_\w+", query))
    assert names, query
    assert names <= known.keys(), names - known.keys()
    used = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
    used |= set(re.findall(r"[{,](\w+)=", query))
    assert used <= set.union(*(known[name] for name in names)), used


def test_every_metric_is_on_the_dashboard():
    shown = " ".join(query.values[0] for query in panels())
    collectors = Metrics(None, 15)._registry._collector_to_names
    assert [each._name for each in collectors if each._name not in shown] == ["hidream_info"]


def test_the_panels_lie_beside_each_other():
    cells = set()
    for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not own & cells, panel["title"]
        assert max(x for x, _ in own) < 24, panel["title"]
        cells |= own
