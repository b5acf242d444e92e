"""What `/metrics` tells of a server at work."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from goodspeed.messages import Draft, Open, Verdict
from goodspeed.scheduling import Scheduler
from goodspeed.stream import Commit
from goodspeed_server.metrics import ServerMetrics, _by_name
from goodspeed_server.observer import RoundRecord
from goodspeed_server.tokens import TokenStore
from tests.monitor_examples import AGENT, SNAPSHOT
from tests.planted import Agent, PlantedEngine, make_rounds
from tests.serving import GREEDY, linked, serving, tiny_settings
from tests.stepping import Grants

PROMPT = [5, 17, 3]


def get(address: str, token: str | None = None) -> tuple[int, str]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(address.replace("ws:", "http:") + "/metrics", headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(text: str) -> dict[str, float]:
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_tokens_drafts_and_times_are_counted() -> None:
    async with serving() as (server, address), linked(address) as peer:
        greedy = await peer.generate(1, PROMPT, max_draft=0, max_new_tokens=8)
        await peer.generate(2, PROMPT, greedy, max_new_tokens=8)
        await peer.open(3, PROMPT, max_new_tokens=8)
        while any(map(server._rounds.is_prefilling, server._rounds.live)):
            await asyncio.sleep(0)
        status, text = await asyncio.to_thread(get, address)
        found = samples(text)
        snapshot = server.snapshot()
    assert status == 200
    assert found["goodspeed_generation_tokens_total"] == 16 == snapshot.committed
    assert found["goodspeed_spec_decode_num_draft_tokens_total"] == snapshot.drafted > 0
    assert found["goodspeed_spec_decode_num_accepted_tokens_total"] == snapshot.accepted > 0
    per_position = [value for name, value in found.items() if "per_pos_total" in name]
    assert sum(per_position) == snapshot.accepted
    assert found["goodspeed_spec_decode_num_accepted_tokens_per_pos_total position=0"] == max(per_position)
    assert found["goodspeed_request_success_total finished_reason=length"] == 2
    assert found["goodspeed_time_to_first_token_seconds_count"] == 2
    assert found["goodspeed_num_requests_running"] == 1
    assert found["goodspeed_num_requests_waiting"] == 0
    assert 0 < found["goodspeed_kv_cache_usage_perc"] < 1
    assert found["goodspeed_round_phase_seconds_count phase=verify"] == found["goodspeed_rounds_total"] > 0
    assert found["goodspeed_agent_streams agent=test"] == 1
    assert found["goodspeed_jain_index"] == 1.0


async def test_a_process_tells_what_it_holds() -> None:
    async with serving() as (_, address):
        before = samples((await asyncio.to_thread(get, address))[1])
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(8):
                await stack.enter_async_context(linked(address))
            now = samples((await asyncio.to_thread(get, address))[1])
    assert now["goodspeed_server_tasks"] >= before["goodspeed_server_tasks"] + 16, "they are those of this very moment"
    assert now["process_open_fds"] >= before["process_open_fds"] + 16  # both ends are this process's
    assert now["process_resident_memory_bytes"] > 2**20
    assert now["goodspeed_server_threads"] >= 1


@pytest.mark.parametrize("early_stop", [True, False])
async def test_prices_are_told_where_the_scheduler_says_them(early_stop: bool) -> None:
    settings = tiny_settings(rounds={"early_stop": early_stop, "capacity": 8})
    async with serving(settings) as (server, address), linked(address) as peer, linked(address) as other:
        await peer.open(1, PROMPT, max_new_tokens=30)
        # It is in every pass from the second on, and without a budget it has no price.
        await other.open(1, PROMPT, max_new_tokens=30, max_draft=0)
        length = len(PROMPT)

        async def prices(scheduler: Scheduler) -> tuple[float | None, float]:
            nonlocal length
            server._rounds.planner.scheduler = scheduler
            for _ in range(2):  # The first is of what was granted before.
                await peer.send(Draft(1, length, []))
                verdict = await peer.expect(Verdict)
                length += len(verdict.tokens)
            found = samples((await asyncio.to_thread(get, address))[1])
            return found.get("goodspeed_draft_price"), found["goodspeed_capacity_price"]

        worth_s = 1e-12  # A token that is worth so little pays only where it is sure to be accepted.
        assert await prices(Grants(2, worth_s, price=0.25)) == (1.0, 0.25)
        assert await prices(Grants(2, price=0.5)) == (None, 0.5)


async def test_the_papers_scheduler_tells_the_price_of_the_capacity() -> None:
    async with serving(tiny_settings(rounds={"capacity": 1})) as (_, address), linked(address) as peer:
        await peer.open(1, PROMPT)
        await peer.send(Draft(1, len(PROMPT), []))
        await peer.expect(Verdict)
        found = samples((await asyncio.to_thread(get, address))[1])
    # Of a stream that may draft four the capacity takes one: the next is worth about the square of its acceptance rate.
    assert 0 < found["goodspeed_capacity_price"] < 1
    assert "goodspeed_draft_price" not in found


async def test_where_tokens_are_asked_for_metrics_take_a_monitors(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens.json")
    secrets = {role: store.create(role, role) for role in ("agent", "monitor", "admin")}
    async with serving(tiny_settings(tokens=tmp_path / "tokens.json")) as (_, address):
        answers = {role: (await asyncio.to_thread(get, address, secret))[0] for role, secret in secrets.items()}
        assert answers == {"agent": 403, "monitor": 200, "admin": 200}
        assert (await asyncio.to_thread(get, address))[0] == 401
        found = samples((await asyncio.to_thread(get, address, secrets["monitor"]))[1])
    assert found["goodspeed_refusals_total code=forbidden"] == found["goodspeed_refusals_total code=unauthorized"] == 1


async def test_what_a_peer_is_refused_is_counted_by_its_code() -> None:
    async with serving() as (_, address), linked(address) as peer:
        await peer.send(Open(1, [], 0, GREEDY, 8, 4))
        code = (await peer.failure()).code
        found = samples((await asyncio.to_thread(get, address))[1])
    assert found[f"goodspeed_refusals_total code={code}"] == 1


def test_links_of_one_name_are_one_series() -> None:
    rows = [
        replace(AGENT, name="box" + "x" * 100, streams=streams, goodput=goodput, alpha=alpha)
        for streams, goodput, alpha in ((3, 30.0, 0.5), (0, 0.0, 0.0), (1, 10.0, 0.9))
    ]
    ((name, values),) = _by_name(rows).items()
    assert len(name) == 64
    assert (values["streams"], values["goodput"]) == (4.0, 40.0)
    assert values["alpha"] == pytest.approx(0.6)


RECORD = RoundRecord(
    at=1.0, gather_s=0.0, plan_s=0.0, verify_s=0.0, forward_s=0.0, judge_s=0.0, commit_s=0.0,
    streams=4, prompts=0, prefilled=0, drafted=12, accepted=7, committed=11,
)  # fmt: skip


def test_what_a_round_has_brought_is_told_once_for_all_its_verdicts() -> None:
    metrics, rounds = ServerMetrics(), make_rounds(PlantedEngine(4))
    agent = Agent()
    for stream in range(4):
        agent.open(rounds, stream)

    def told(name: str, **labels: str) -> float | None:
        return metrics._registry.get_sample_value(f"goodspeed_{name}_total", labels)

    def tell(accepted: list[int]) -> None:
        for live, right in zip(rounds.live, accepted, strict=True):
            metrics.committed(live, 3, Commit(1, right, (0,), None, 3), 1.0)

    tell([0, 2, 3, 2])
    assert told("generation_tokens") == 0.0
    metrics.round_over(RECORD)
    tell([1, 0, 0, 0])
    metrics.round_over(RECORD)
    assert (told("generation_tokens"), told("spec_decode_num_drafts")) == (16.0, 8.0)
    assert (told("spec_decode_num_draft_tokens"), told("spec_decode_num_accepted_tokens")) == (24.0, 8.0)
    by_position = [told("spec_decode_num_accepted_tokens_per_pos", position=str(number)) for number in range(4)]
    assert by_position == [4.0, 3.0, 1.0, 0.0]


def test_of_a_server_that_nobody_has_looked_at_there_is_nothing_to_tell() -> None:
    metrics = ServerMetrics()
    assert metrics._registry.get_sample_value("goodspeed_agents") is None
    metrics.text(SNAPSHOT)
    assert metrics._registry.get_sample_value("goodspeed_agents") == float(len(SNAPSHOT.agents))
