"""The examination: what is good, what is not, and what to do."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest

from goodspeed import catalog
from goodspeed.credentials import NOBODY, Credentials
from goodspeed.errors import ModelError
from goodspeed_agent.agent import Agent
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.doctor import Finding, examination, judge_drafting, judge_round_trip, judge_speed, show
from goodspeed_agent.drafters import Drafter, NoDrafter, SuffixDrafter
from goodspeed_agent.drafters.model import ModelDrafter
from goodspeed_agent.report import Completion, Speculation
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.tokens import TokenStore
from tests.serving import serving, tiny_settings, tiny_tokenizer
from tests.stepping import Grants, SlowEngine
from tests.test_agent_counting import overtake_now_and_then
from tests.tiny_models import tiny_llama

QUICK = Backoff(first_s=0.01, longest_s=0.01, give_up_after_s=0.05)


async def examined(
    url: str, drafter: Drafter | ModelError, folder: Path, credentials: Credentials = NOBODY
) -> list[Finding]:
    shown: list[Finding] = []

    def load() -> Drafter:
        if isinstance(drafter, ModelError):
            raise drafter
        return drafter

    make = partial(Agent, url, cache=TokenizerCache(folder), backoff=QUICK, credentials=credentials)
    findings = await examination(make, load, shown.append)
    assert findings == shown
    return findings


async def test_every_line_of_a_server_that_is_there(tmp_path: Path) -> None:
    drafter = ModelDrafter(tiny_llama(), "same", catalog.fingerprint(tiny_tokenizer()))
    async with serving(tiny_settings(model="tiny")) as (_, address):
        findings = await examined(address, drafter, tmp_path)
    assert [finding.what for finding in findings] == [
        "link", "protocol", "target", "tokenizer", "round trip", "drafting", "budget"
    ]  # fmt: skip
    lines = {finding.what: finding for finding in findings}
    assert address in lines["link"].value
    assert lines["target"].value.startswith("tiny, coupled rule, waits for drafts")
    assert lines["tokenizer"].value == "of same: the same as the target's"
    assert "100% of them accepted" in lines["budget"].value


async def test_only_what_the_server_verified_is_judged_where_it_decodes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of the guesses are overtaken, which says nothing against the draft."""
    monkeypatch.setattr("goodspeed_server.server.EngineMeter", SlowEngine)
    drafter = ModelDrafter(tiny_llama(), "same", catalog.fingerprint(tiny_tokenizer()))
    async with asyncio.timeout(60), serving(tiny_settings(rounds={"rounds": "rolling"})) as (server, address):
        server._rounds.planner.scheduler = Grants(4, needs_no_capacity=True)
        overtake_now_and_then(server)
        lines = {finding.what: finding for finding in await examined(address, drafter, tmp_path)}
    assert "decodes on while drafts are made" in lines["target"].value
    assert "100% of them accepted" in lines["budget"].value


async def test_without_a_draft_nothing_is_said_of_drafts_to_come(tmp_path: Path) -> None:
    async with serving() as (_, address):
        *_, last = await examined(address, NoDrafter(), tmp_path)
    assert (last.what, last.state, last.advice) == ("drafting", "fair", "--draft suffix fits every target")
    assert "none drafts nothing" in last.value


def test_guesses_that_all_came_too_late_are_told_as_such() -> None:
    completion = Completion("", [1] * 10, "length", 1, Speculation(num_sent_tokens=9))
    finding = judge_drafting(completion, 120.0, 100.0)
    assert finding.state == "bad"
    assert "all 9 guesses came after the server had decoded past them" in finding.value
    assert "--draft suffix" in finding.advice


async def test_a_drafter_of_any_tokenizer_that_knows_nothing_yet(tmp_path: Path) -> None:
    async with serving() as (_, address):
        lines = {finding.what: finding for finding in await examined(address, SuffixDrafter(), tmp_path)}
    assert lines["tokenizer"].value == "of suffix: fits every target"
    assert "drafting" in lines


async def test_where_there_is_no_link_what_to_do_is_told_once(tmp_path: Path) -> None:
    (finding,) = await examined("ws://127.0.0.1:9", SuffixDrafter(), tmp_path)
    assert (finding.what, finding.state, finding.advice) == ("link", "bad", "")
    assert "no link to" in finding.value
    assert "check the address" in finding.value


async def test_a_draft_that_is_missing_is_told_with_what_to_do(tmp_path: Path) -> None:
    (finding,) = await examined("ws://127.0.0.1:9", ModelError("there is no such model"), tmp_path)
    assert (finding.what, finding.state, finding.value) == ("draft", "bad", "there is no such model")
    assert finding.advice


async def test_a_token_that_does_not_do_is_told_apart_from_an_address_that_does_not(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    secret = TokenStore(tokens).create("wall-screen", "monitor")
    async with serving(tiny_settings(tokens=tokens)) as (_, address):
        for credentials, sentence in (
            (Credentials(secret), "the token 'wall-screen' is monitor's"),
            (Credentials("gst_another"), "this token is not known here"),
        ):
            (finding,) = await examined(address, SuffixDrafter(), tmp_path, credentials)
            assert (finding.what, finding.state) == ("link", "bad")
            assert sentence in finding.value
            assert "give a token of role agent" in finding.advice


async def test_a_draft_of_another_tokenizer_is_told(tmp_path: Path) -> None:
    async with serving() as (_, address):
        (finding,) = await examined(address, ModelDrafter(tiny_llama(), "foreign", "another"), tmp_path)
    assert (finding.what, finding.state) == ("draft", "bad")


@pytest.mark.parametrize(("round_trip_s", "state"), [(0.001, "good"), (0.05, "fair"), (0.3, "bad")])
def test_a_round_trip_is_judged_by_what_the_server_decodes_meanwhile(round_trip_s: float, state: str) -> None:
    finding = judge_round_trip(round_trip_s, 100.0)
    assert (finding.state, bool(finding.advice)) == (state, state != "good")
    assert f"{round_trip_s * 100:.1f} tokens" in finding.value


@pytest.mark.parametrize(("guesses_per_s", "state"), [(None, "fair"), (250.0, "good"), (120.0, "fair"), (50.0, "bad")])
def test_a_draft_is_to_be_quicker_than_its_target(guesses_per_s: float | None, state: str) -> None:
    assert judge_speed("one", guesses_per_s, 100.0).state == state


@pytest.mark.parametrize(
    ("accepted", "times", "state", "advice"),
    [
        ((), 1.2, "fair", "drafts do not pay here"),
        ((3, 3), 1.2, "good", ""),
        ((1, 0), 1.2, "fair", "goodspeed tune"),
        ((3, 3), 0.6, "fair", "cost more than they save"),
        ((1, 0), 0.6, "fair", "goodspeed tune"),
    ],
)
def test_a_budget_is_judged_by_what_is_accepted_and_what_it_brings(
    accepted: tuple[int, ...], times: float, state: str, advice: str
) -> None:
    speculation = Speculation(4 * len(accepted))
    for count in accepted:
        speculation.verified(count)
    finding = judge_drafting(Completion("", [1] * 10, "length", 1, speculation), 100.0 * times, 100.0)
    assert (finding.state, bool(finding.advice)) == (state, state != "good")
    assert advice in finding.advice
    assert f"{times:.2f} times" in finding.value


def test_findings_are_lines_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding("link", "ws://x", "fair", "do [this]")
    show(as_json=True)(finding)
    assert json.loads(capsys.readouterr().out) == {
        "what": "link", "value": "ws://x", "state": "fair", "advice": "do [this]"
    }  # fmt: skip
    show(as_json=False)(finding)
    assert capsys.readouterr().out.splitlines() == ["! link       ws://x", "             do [this]"]
