"""What we ship for Prometheus, and what the dashboard asks of it, tried on a real one that scrapes a real run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import shutil
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from openai import AsyncOpenAI

from goodspeed_server.dashboard import dashboard, expressions
from goodspeed_server.tokens import TokenStore
from tests.system.processes import REPOSITORY, reaped, server, start_agent

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Prometheus is not installed, so nothing that is shipped for it was tried on it: apt-get install prometheus",
)

SHIPPED = REPOSITORY / "server" / "monitoring" / "prometheus.yml"
PROMPT = "    self.name = name\n    self.value = value\n" * 4
DEADLINE_S = 60.0
"""Within which it has to have seen everything; a few seconds are usual."""


async def test_a_real_prometheus_finds_what_every_panel_asks_for(tmp_path: Path) -> None:
    secrets = credentials(tmp_path)
    options = (
        "--scheduler=goodspeed", "--capacity=24", "--tokens", str(tmp_path / "tokens.json"),
        "--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "cert.pem"),
    )  # fmt: skip
    async with server(*options) as address, agent_api(address, secrets["agent"], tmp_path / "ca.pem") as api:
        # Whom a server refuses it counts.
        assert (await asyncio.to_thread(fetch, metrics_of(address), ca=tmp_path / "ca.pem"))[0] == 401
        targets = {
            shipped: urllib.parse.urlsplit(url).netloc
            for shipped, url in (("gpu.example:8765", address), ("127.0.0.1:11435", api))
        }
        async with prometheus(tmp_path, targets) as found, AsyncOpenAI(base_url=api, api_key="none") as client:
            # The paper's scheduler has no opinion of what a drafted token's chance has to be: one curve, and no other.
            wanted = list(questions(*targets.values()))
            (unanswered,) = (each for each in wanted if each.startswith("goodspeed_draft_price{"))
            left = [each for each in wanted if each != unanswered]
            try:
                async with asyncio.timeout(DEADLINE_S):
                    while left:
                        # Its answers are what is waited for: there is something to see as long as one is missing.
                        await client.completions.create(
                            model="pico-target", prompt=PROMPT, max_tokens=24, temperature=0,
                            extra_body={"ignore_eos": True},
                        )  # fmt: skip
                        left = [question for question in left if not await has_data(found, question)]
            except TimeoutError:
                raise AssertionError(f"nothing came of {left}; {await about_targets(found)}") from None
            assert await answers(found, unanswered) == []
            # Servers and APIs both tell it, and no server is counted for an API or the other way round.
            assert await instances(found, "goodspeed_num_requests_running") == set(targets.values())
            for name, at in zip(("server", "api"), targets.values(), strict=True):
                assert await instances(found, series_of(name)) == {at}
            (running,) = (
                question for question in expressions() if question.startswith("sum(goodspeed_num_requests_ru")
            )
            counted = running.replace("sum(", "count(").replace(
                "$server", as_grafana_quotes(targets["gpu.example:8765"])
            )
            assert [sample["value"][1] for sample in await answers(found, counted)] == ["1"]
        _, of_server = await asyncio.to_thread(
            fetch, metrics_of(address), ca=tmp_path / "ca.pem", token=secrets["monitor"]
        )
        _, of_agent = await asyncio.to_thread(fetch, metrics_of(api))
    for text in (of_server, of_agent):
        assert await promtool("check", "metrics", given=text) == (0, "")


async def test_the_shipped_configuration_is_one() -> None:
    assert await promtool("check", "config", "--syntax-only", str(SHIPPED)) == (0, "")


def questions(server_at: str, api_at: str) -> Iterator[str]:
    """What the panels and the variables ask, with everything chosen: as Grafana does it, of instances the list."""
    chosen = {
        "$__rate_interval": "1m",
        "$agent": ".*",
        "$server": as_grafana_quotes(server_at),
        "$api": as_grafana_quotes(api_at),
    }
    variables = [
        f"count by ({label.strip()}) ({series})"
        for variable in dashboard()["templating"]["list"]
        if variable["type"] == "query"
        for series, _, label in [variable["definition"].removeprefix("label_values(")[:-1].rpartition(",")]
    ]
    for question in (*expressions(), *variables):
        for name, value in chosen.items():
            question = question.replace(name, value)
        assert "$" not in question
        yield question


def as_grafana_quotes(value: str) -> str:
    """A value of a variable within a regular expression, within a string of PromQL."""
    return re.escape(value).replace("\\", "\\\\")


def series_of(name: str) -> str:
    """What a variable takes its values from."""
    (found,) = (variable for variable in dashboard()["templating"]["list"] if variable["name"] == name)
    return str(found["definition"]).removeprefix("label_values(").removesuffix(", instance)")


async def instances(found: str, series: str) -> set[str]:
    """Who tells it."""
    return {sample["metric"]["instance"] for sample in await answers(found, series)}


async def has_data(found: str, question: str) -> bool:
    """Whether there is a number behind a question."""
    return any(math.isfinite(float(sample["value"][1])) for sample in await answers(found, question))


async def answers(found: str, question: str) -> list[dict[str, Any]]:
    """Every series behind a question, which Prometheus has to understand."""
    url = f"{found}/api/v1/query?{urllib.parse.urlencode({'query': question})}"
    status, body = await asyncio.to_thread(fetch, url)
    assert status == 200, (question, body)
    return msgspec.convert(json.loads(body)["data"]["result"], list[dict[str, Any]])


async def about_targets(found: str) -> list[tuple[str, str]]:
    _, body = await asyncio.to_thread(fetch, f"{found}/api/v1/targets")
    return [(target["scrapeUrl"], target["lastError"]) for target in json.loads(body)["data"]["activeTargets"]]


def credentials(folder: Path) -> dict[str, str]:
    """Tokens and a certificate, in files; the tokens' secrets by role."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "cert.pem"))
    store = TokenStore(folder / "tokens.json")
    secrets = {"agent": store.create("edge", "agent"), "monitor": store.create("prometheus", "monitor")}
    (folder / "token").write_text(secrets["monitor"])
    return secrets


@contextlib.asynccontextmanager
async def agent_api(address: str, token: str, ca: Path) -> AsyncIterator[str]:
    """An agent that serves clients; yields where."""
    options = ("--server", address, "--token", token, "--ca", str(ca), "--draft", "suffix", "--port", "0")
    async with reaped(await start_agent("serve", *options)) as process:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("serving "), (await process.stderr.read()).decode()
        yield line.split()[-1]


@contextlib.asynccontextmanager
async def prometheus(folder: Path, targets: dict[str, str]) -> AsyncIterator[str]:
    """One with the shipped configuration, for this test's targets, files and pace; yields its address."""
    text = SHIPPED.read_text(encoding="utf-8")
    changes = {
        **targets,
        "/etc/prometheus/goodspeed-cert.pem": str(folder / "ca.pem"),
        "credentials_file: /etc/prometheus/goodspeed-token": f"credentials_file: {folder / 'token'}",
        "scrape_interval: 10s": "scrape_interval: 200ms",
    }
    for shipped, here in changes.items():
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, here)
    configuration = folder / "prometheus.yml"
    configuration.write_text(text)
    assert (await promtool("check", "config", str(configuration)))[0] == 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = f"127.0.0.1:{free.getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        "prometheus", "--config.file", str(configuration), "--storage.tsdb.path", str(folder / "data"),
        "--web.listen-address", place, stdout=PIPE, stderr=STDOUT,
    )  # fmt: skip
    async with reaped(process):
        assert process.stdout is not None
        said = []
        async with asyncio.timeout(DEADLINE_S):
            while b"ready to receive web requests" not in (line := await process.stdout.readline()):
                said.append(line)
                assert line, said
        reading = asyncio.create_task(process.stdout.read())
        yield f"http://{place}"
        process.terminate()
        await reading
        assert await process.wait() == 0


def metrics_of(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}/metrics"


def fetch(url: str, *, ca: Path | None = None, token: str | None = None) -> tuple[int, str]:
    """A GET: status and body, whatever the status is."""
    context = None if ca is None else ssl.create_default_context(cafile=ca)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def promtool(*arguments: str, given: str = "") -> tuple[int, str]:
    """Its exit status, and what it complains of."""
    process = await asyncio.create_subprocess_exec("promtool", *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    _, complaints = await process.communicate(given.encode())
    assert process.returncode is not None
    return process.returncode, complaints.decode()
