"""The Grafana dashboard: what an operator looks at, made of the metrics that servers and agents tell.

`goodspeed-server dashboard` prints it. `$server` are instances of servers, `$api` those of agents that answer clients,
`$agent` are agents as they call themselves; all of them can be chosen on the dashboard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

__all__ = ["dashboard", "expressions"]

Kind: TypeAlias = Literal["stat", "timeseries"]

_SERVER = '{instance=~"$server"}'
_OF_AGENT = '{instance=~"$server", agent=~"$agent"}'
_API = '{instance=~"$api"}'
_PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
_STAT_HEIGHT, _GRAPH_HEIGHT = 4, 8


class _Curve(NamedTuple):
    expression: str
    legend: str


class _Panel(NamedTuple):
    title: str
    says: str
    unit: str
    curves: Sequence[_Curve]
    stacked: bool = False
    least: float | None = 0.0
    """Of the axis; so is `most`."""
    most: float | None = None


def _rate(counter: str, which: str = _SERVER) -> str:
    return f"rate(goodspeed_{counter}{which}[$__rate_interval])"


def _total(counter: str, which: str = _SERVER, by: str = "") -> str:
    return f"sum{f' by ({by}) ' if by else ''}({_rate(counter, which)})"


def _share(part: str, whole: str, by: str = "") -> str:
    return f"{_total(part, by=by)} / {_total(whole, by=by)}"


def _quantiles(histogram: str, which: str = _SERVER, by: str = "") -> list[_Curve]:
    labels = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    return [
        _Curve(f"histogram_quantile({quantile}, {_total(f'{histogram}_bucket', which, labels)})", f"{legend}{name}")
        for quantile, name in ((0.5, "median"), (0.95, "95%"), (0.99, "99%"))
    ]


_ACCEPTANCE = _share("spec_decode_num_accepted_tokens_total", "spec_decode_num_draft_tokens_total")

_STATS = (
    _Panel("Goodput", "Committed tokens.", "tokens/s", [_Curve(f"sum(goodspeed_goodput{_SERVER})", "")]),
    _Panel("Agents", "Links.", "short", [_Curve(f"sum(goodspeed_agents{_SERVER})", "")]),
    _Panel("Running", "Texts that have a row.", "short", [_Curve(f"sum(goodspeed_num_requests_running{_SERVER})", "")]),
    _Panel("Waiting", "Texts without one.", "short", [_Curve(f"sum(goodspeed_num_requests_waiting{_SERVER})", "")]),
    _Panel("Acceptance", "Of the drafted tokens that were verified.", "percentunit", [_Curve(_ACCEPTANCE, "")]),
    _Panel("KV slab", "In use.", "percentunit", [_Curve(f"max(goodspeed_kv_cache_usage_perc{_SERVER})", "")]),
    _Panel("Engine busy", "In forward passes.", "percentunit", [_Curve(f"max({_rate('busy_seconds_total')})", "")]),
    _Panel("Fairness", "Jain's index; 1 is alike.", "percentunit", [_Curve(f"min(goodspeed_jain_index{_SERVER})", "")]),
)

_ROWS: dict[str, Sequence[_Panel]] = {
    "Agents": (
        _Panel(
            "Goodput of each agent", "Committed tokens, all of its streams.", "tokens/s",
            [_Curve(f"sum by (agent) (goodspeed_agent_goodput{_OF_AGENT})", "{{agent}}")], stacked=True,
        ),
        _Panel(
            "Budgets", "Drafted tokens that a round may verify, the mean of an agent's streams.", "short",
            [_Curve(f"avg by (agent) (goodspeed_agent_budget{_OF_AGENT})", "{{agent}}")],
        ),
        _Panel(
            "Estimated acceptance rate", "What budgets are planned by.", "percentunit",
            [_Curve(f"avg by (agent) (goodspeed_agent_alpha{_OF_AGENT})", "{{agent}}")], most=1,
        ),
        _Panel(
            "Streams of each agent", "That have a row.", "short",
            [_Curve(f"sum by (agent) (goodspeed_agent_streams{_OF_AGENT})", "{{agent}}")], stacked=True,
        ),
    ),
    "Speculation and fairness": (
        _Panel(
            "Tokens", "Committed, drafted and accepted: all that is drafted and not accepted was in vain.", "tokens/s",
            [
                _Curve(_total("generation_tokens_total"), "committed"),
                _Curve(_total("spec_decode_num_draft_tokens_total"), "drafted"),
                _Curve(_total("spec_decode_num_accepted_tokens_total"), "accepted"),
            ],
        ),
        _Panel(
            "Tokens a draft brings", "Mean acceptance length, the recovered or bonus token included.", "short",
            [_Curve(f"1 + {_share('spec_decode_num_accepted_tokens_total', 'spec_decode_num_drafts_total')}", "mean")],
        ),
        _Panel(
            "Acceptance by position", "The share of drafts whose token there is accepted; drafts differ in length.",
            "percentunit",
            [
                _Curve(
                    f"{_total('spec_decode_num_accepted_tokens_per_pos_total', by='position')} / "
                    f"scalar({_total('spec_decode_num_drafts_total')}) > 0",
                    "{{position}}",
                )
            ], most=1,
        ),
        _Panel(
            "Utility", "Of the streams' goodputs, and what plain decoding would bring: speculation is worth the gap.",
            "short",
            [
                _Curve(f"goodspeed_utility{_SERVER}", "{{instance}}"),
                _Curve(f"goodspeed_plain_utility{_SERVER}", "{{instance}} plain"),
            ], least=None,
        ),
        _Panel(
            "Fairness", "Jain's index of the streams' goodputs: 1 where all are alike, 1/n where one has it all.",
            "percentunit", [_Curve(f"goodspeed_jain_index{_SERVER}", "{{instance}}")], most=1,
        ),
        _Panel(
            "Prices", "From which chance of acceptance on a drafted token is worth the engine's time, where the "
            "scheduler says so; and the utility that one more token a pass would bring: 0 where nothing holds back.",
            "short",
            [
                _Curve(f"goodspeed_draft_price{_SERVER}", "{{instance}} draft"),
                _Curve(f"goodspeed_capacity_price{_SERVER}", "{{instance}} capacity"),
            ],
        ),
    ),
    "Rounds and engine": (
        _Panel(
            "Where a round's time goes", "Means.", "s",
            [_Curve(_share("round_phase_seconds_sum", "round_phase_seconds_count", by="phase"), "{{phase}}")],
            stacked=True,
        ),
        _Panel("Forward pass", "Of the target.", "s", _quantiles("forward_seconds")),
        _Panel("Rounds", "Passes.", "ops", [_Curve(_rate("rounds_total"), "{{instance}}")]),
        _Panel(
            "Engine", "Share of the time in passes, and of the slab in use.", "percentunit",
            [
                _Curve(_rate("busy_seconds_total"), "{{instance}} busy"),
                _Curve(f"goodspeed_kv_cache_usage_perc{_SERVER}", "{{instance}} KV slab"),
            ], most=1,
        ),
        _Panel(
            "Texts", "With a row, and in the queue.", "short",
            [
                _Curve(f"goodspeed_num_requests_running{_SERVER}", "{{instance}} running"),
                _Curve(f"goodspeed_num_requests_waiting{_SERVER}", "{{instance}} waiting"),
            ],
        ),
        _Panel("Event loop lag", "Above a tenth of a second, links suffer.", "s", _quantiles("loop_lag_seconds")),
    ),
    "Texts": (
        _Panel("Time to first token", "At the server.", "s", _quantiles("time_to_first_token_seconds")),
        _Panel("Inter-token latency", "At the server.", "s", _quantiles("inter_token_latency_seconds")),
        _Panel(
            "Texts that end", "By reason.", "ops",
            [_Curve(_total("request_success_total", by="finished_reason"), "{{finished_reason}}")], stacked=True,
        ),
        _Panel(
            "Prompts", "Tokens that went through the target, and those that did not have to.", "tokens/s",
            [
                _Curve(_total("prompt_tokens_total"), "prompts"),
                _Curve(_total("prefix_cache_hits_total"), "prompts, held already"),
            ],
        ),
        _Panel(
            "Refusals", "By the code that the peer is told.", "ops",
            [_Curve(_total("refusals_total", by="code"), "{{code}}")], stacked=True,
        ),
        _Panel(
            "Scrapes", "1 where Prometheus gets an answer.", "short", [_Curve(f"up{_SERVER}", "{{instance}}")], most=1
        ),
    ),
    "Links, and what went wrong": (
        _Panel(
            "Links", "Of agents and of whoever looks or steers, and connections that are none yet.", "short",
            [
                _Curve(f"goodspeed_links{_SERVER}", "{{instance}} links"),
                _Curve(f"goodspeed_connections_pending{_SERVER}", "{{instance}} pending"),
            ],
        ),
        _Panel(
            "Rows kept for links that were lost", "Until their agents are back, or somebody needs them.", "short",
            [_Curve(f"goodspeed_streams_parked{_SERVER}", "{{instance}}")],
        ),
        _Panel(
            "Texts that went on on another link", "In the row that was kept, or from their transcript alone.", "ops",
            [_Curve(_total("streams_resumed_total", by="how"), "{{how}}")], stacked=True,
        ),
        _Panel(
            "Found out", "Accounts whose drafts were not what they claimed, since the server began.", "short",
            [_Curve(f"goodspeed_found_out_total{_SERVER}", "{{instance}}")],
        ),
        _Panel(
            "Out of memory", "Passes, or pieces of one, that were run again in smaller ones.", "ops",
            [_Curve(_rate("out_of_memory_total"), "{{instance}}")],
        ),
        _Panel(
            "Throttled", "Of links that send too fast: 1 is a link that is never read.", "short",
            [_Curve(_rate("throttled_seconds_total"), "{{instance}}")],
        ),
    ),
    "The server's process": (
        _Panel("Memory", "Resident.", "bytes", [_Curve(f"process_resident_memory_bytes{_SERVER}", "{{instance}}")]),
        _Panel("Open files", "Links among them.", "short", [_Curve(f"process_open_fds{_SERVER}", "{{instance}}")]),
        _Panel(
            "Tasks and threads", "With a steady load neither grows.", "short",
            [
                _Curve(f"goodspeed_server_tasks{_SERVER}", "{{instance}} tasks"),
                _Curve(f"goodspeed_server_threads{_SERVER}", "{{instance}} threads"),
            ],
        ),
    ),
    "APIs of agents": (
        _Panel("Linked", "1 where there is a link to the server; offline is 1 where the draft answers alone.", "short",
               [
                   _Curve(f"goodspeed_agent_linked{_API}", "{{instance}}"),
                   _Curve(f"goodspeed_agent_offline{_API}", "{{instance}} offline"),
               ], most=1),
        _Panel("Being written", "Choices.", "short",
               [_Curve(f"goodspeed_num_requests_running{_API}", "{{instance}}")], stacked=True),
        _Panel("Came to nothing", "Choices that failed or were given up, and those that no target verified.", "ops",
               [
                   _Curve(_rate("request_failure_total", _API), "{{instance}}"),
                   _Curve(_rate("request_unverified_total", _API), "{{instance}} unverified"),
               ], stacked=True),
        _Panel("Time to first token", "As clients see it.", "s", _quantiles("time_to_first_token_seconds", _API)),
        _Panel("Time per output token", "As clients see it.", "s",
               _quantiles("request_time_per_output_token_seconds", _API)),
        _Panel("Whole texts", "From the request to the last token.", "s",
               _quantiles("e2e_request_latency_seconds", _API)),
    ),
}  # fmt: skip


def expressions() -> Iterator[str]:
    """Every PromQL expression on it."""
    for panel in (*_STATS, *(panel for row in _ROWS.values() for panel in row)):
        yield from (curve.expression for curve in panel.curves)


def dashboard() -> dict[str, Any]:
    """It, as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    width = _COLUMNS // len(_STATS)
    for place, stat in enumerate(_STATS):
        panels.append(_panel(len(panels), "stat", stat, (place * width, 0, width, _STAT_HEIGHT)))
    y = _STAT_HEIGHT
    for title, row in _ROWS.items():
        grid = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": grid, "collapsed": False})
        y += 1
        across = 2 if len(row) % 3 else 3
        width = _COLUMNS // across
        for place, panel in enumerate(row):
            at = (place % across * width, y + place // across * _GRAPH_HEIGHT, width, _GRAPH_HEIGHT)
            panels.append(_panel(len(panels), "timeseries", panel, at))
        y += -(-len(row) // across) * _GRAPH_HEIGHT
    return {
        "uid": "goodspeed",
        "title": "GoodSpeed",
        "tags": ["goodspeed", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "refresh": 1,
                },
                _variable("server", "Server", "label_values(goodspeed_rounds_total, instance)"),
                {
                    **_variable("agent", "Agent", 'label_values(goodspeed_agent_streams{instance=~"$server"}, agent)'),
                    # A list of a hundred names would make every question long.
                    "allValue": ".*",
                },
                _variable("api", "Agent's API", "label_values(goodspeed_agent_linked, instance)"),
            ]
        },
        "panels": panels,
    }


def _panel(number: int, kind: Kind, panel: _Panel, at: tuple[int, int, int, int]) -> dict[str, Any]:
    custom = {
        "fillOpacity": 20 if panel.stacked else 5,
        "lineWidth": 1,
        "showPoints": "never",
        "stacking": {"mode": "normal" if panel.stacked else "none"},
    }
    options: dict[str, dict[str, Any]] = {
        "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "value"},
        "timeseries": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }
    limits = {name: limit for name, limit in (("min", panel.least), ("max", panel.most)) if limit is not None}
    defaults = {"unit": panel.unit, **limits, "custom": custom if kind == "timeseries" else {}}
    return {
        "id": number + 1,
        "type": kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": _PROMETHEUS,
        "gridPos": dict(zip("xywh", at, strict=True)),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options[kind],
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": _PROMETHEUS,
                "expr": curve.expression,
                "legendFormat": curve.legend or panel.title.lower(),
            }
            for place, curve in enumerate(panel.curves)
        ],
    }


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    """One whose values Prometheus knows; all of them unless somebody chooses.

    All of them are those that its query finds, and not whatever there is: servers and APIs share names of metrics.
    """
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _PROMETHEUS,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }
