"""The dashboard asks for what there is, and the file in the tree is what the command prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from goodspeed_agent.api.metrics import ApiMetrics
from goodspeed_server.cli import app
from goodspeed_server.dashboard import dashboard, expressions
from goodspeed_server.metrics import ServerMetrics
from tests.monitor_examples import SNAPSHOT

MONITORING = Path(__file__).parents[1] / "server" / "monitoring"
METRIC = re.compile(r"goodspeed_\w+")


def told(text: bytes) -> set[str]:
    """Names as they stand in expressions: of a histogram its buckets, its sum and its count.

    When a counter began, which prometheus-client tells of each, is no figure of the server.
    """
    endings = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
    return {
        family.name + ending
        for family in text_string_to_metric_families(text.decode())
        if not family.name.endswith("_created")
        for ending in endings[family.type]
    }


def variables() -> dict[str, dict[str, Any]]:
    return {
        variable["name"]: variable
        for variable in dashboard()["templating"]["list"]
        if variable["type"] == "query"
    }  # fmt: skip


def asked() -> set[str]:
    queries = [variable["query"]["query"] for variable in variables().values()]
    return {name for expression in (*expressions(), *queries) for name in METRIC.findall(expression)}


def test_the_file_in_the_tree_is_what_the_command_prints() -> None:
    result = CliRunner().invoke(app, ["dashboard"])
    assert result.exit_code == 0
    assert (MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8") == result.stdout


def test_only_what_servers_and_agents_tell_is_asked_for() -> None:
    server, agent = told_by_a_server(), told(ApiMetrics(lambda: True, lambda: False).text())
    assert asked() - server - agent == set()


def test_whatever_a_server_tells_can_be_seen() -> None:
    told_of, seen = ({_whole(name) for name in names} for names in (told_by_a_server(), asked()))
    ours = {name for name in told_of - seen if name.startswith("goodspeed_")}
    # When each counter began, which the client library adds.
    assert {name for name in ours if not name.endswith("_created")} == set()


def _whole(name: str) -> str:
    """Of a histogram's parts the histogram."""
    return re.sub("_(bucket|sum|count)$", "", name)


def told_by_a_server() -> set[str]:
    """Of its metrics, and of what its door has it watch."""
    metrics = ServerMetrics()
    for name in ("links", "connections_pending"):
        metrics.watch(name, "", lambda: 0.0)
    return told(metrics.text(SNAPSHOT))


def test_all_servers_are_servers_and_all_apis_are_apis() -> None:
    """Both tell of `goodspeed_num_requests_running`, so that all of them is a list, of who tells what only they do."""
    server, agent = told(ServerMetrics().text(SNAPSHOT)), told(ApiMetrics(lambda: True, lambda: False).text())
    assert "goodspeed_num_requests_running" in server & agent
    for name, own in (("server", server - agent), ("api", agent - server)):
        variable = variables()[name]
        assert set(METRIC.findall(variable["definition"])) <= own
        assert (variable["includeAll"], "allValue" in variable) == (True, False)
    assert variables()["agent"]["allValue"] == ".*"


def test_panels_fill_rows_and_do_not_overlap() -> None:
    cells: dict[tuple[int, int], str] = {}
    for panel in panels():
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert cells.setdefault((x, y), panel["title"]) == panel["title"]
    height = 1 + max(y for _, y in cells)
    assert len(cells) == 24 * height


def test_every_panel_has_a_unit_a_description_and_legends() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for panel in panels():
        if panel["type"] == "row":
            continue
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert all(legends), panel["title"]
        assert len(set(legends)) == len(legends), panel["title"]


def panels() -> list[dict[str, Any]]:
    return msgspec.convert(dashboard()["panels"], list[dict[str, Any]])
