"""Who is found out, what becomes of it, and for how long it is remembered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from goodspeed.control import Trust
from goodspeed.credentials import Credentials
from goodspeed.errors import InvalidRequest
from goodspeed.messages import Draft, Opened, Verdict
from goodspeed.sampling import SamplingParams
from goodspeed.stream import Transcript
from goodspeed.verification import DraftDistribution, pack_q
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.audits import REMEMBER_S, Audits
from goodspeed_server.controlling import controlling
from goodspeed_server.server import VerificationServer
from goodspeed_server.tokens import TokenStore
from tests.serving import Peer, linked, serving, tiny_settings
from tests.test_agent_with_server import drafters
from tests.test_server import PROMPT
from tests.test_server_metrics import get, samples

WARM = SamplingParams(temperature=1.0, seed=7)
LIE = DraftDistribution(np.arange(32), np.array([1] + [65535] * 31))
"""Whatever the target thinks of token 0, it is likelier than this."""


def about(token: int) -> bytes:
    """The lie, told of a token."""
    tokens = LIE.tokens.copy()
    tokens[0], tokens[token % 32] = token, 0
    return pack_q([DraftDistribution(tokens, LIE.weights)])


async def write(peer: Peer, opened: Opened, tokens: Sequence[int], *, new_tokens: int) -> tuple[list[int], list[int]]:
    """Draft the same few tokens again and again, with a lie for each; the text, and the budgets that were granted."""
    transcript, budget, budgets = Transcript(PROMPT), opened.budget, [opened.budget]
    while transcript.finish is None:
        drafted = list(tokens[:budget])
        if budget:
            q = b"".join(map(about, drafted))
            await peer.send(Draft(opened.stream, transcript.length, drafted, q=q))
        verdict = await peer.expect(Verdict)
        transcript.apply(verdict, drafted)
        budget = verdict.budget
        budgets.append(budget)
    assert len(transcript.generated) == new_tokens
    return transcript.generated, budgets


async def lie(peer: Peer, stream: int = 1, *, new_tokens: int = 24) -> tuple[list[int], list[int]]:
    opened = await peer.open(stream, PROMPT, params=WARM, max_new_tokens=new_tokens, max_draft=4)
    return await write(peer, opened, [0] * 4, new_tokens=new_tokens)


def state(server: VerificationServer, name: str = "test") -> str:
    (found,) = (row.state for row in server.snapshot().agents if row.name == name)
    return found


async def test_who_lies_about_its_drafts_is_decoded_without_them(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tiny_settings(rule="ratio")) as (server, address):
        async with linked(address) as peer:
            text, budgets = await lie(peer)
            assert budgets[0] > 0
            assert text[: budgets[0]] == [0] * budgets[0], "its first lies are believed"
            found_out = next(number for number, budget in enumerate(budgets) if number and not budget)
            assert found_out <= 4
            assert not any(budgets[found_out:]), "and no more once it is found out"
            assert state(server) == "distrusted"
            assert server._rounds.live == ()
            _, again = await lie(peer, 2)
            assert not any(again), "nor are its other texts drafted"
        async with linked(address) as back:
            _, budgets = await lie(back)
            assert not any(budgets), "its next link is the same agent's"
            status, metrics = await asyncio.to_thread(get, address)
        assert status == 200
        assert samples(metrics)["goodspeed_found_out_total"] == 1 == server.snapshot().found_out
    (record,) = [record for record in caplog.records if "do not come of" in record.message]
    assert record.levelno == logging.WARNING
    assert "goodspeed-server ctl trust test" in record.message


async def test_an_operator_may_trust_it_again(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        serving(tiny_settings(rule="ratio")) as (server, address),
        controlling(address) as controls,
        linked(address) as peer,
    ):
        unchanged = await controls.ask(Trust("test"))
        assert [str(one) for one in unchanged.changed] == ["agent 'test' is trusted already"]
        await lie(peer)
        before = await controls.ask()
        found = before.agent("test")
        assert found is not None
        assert found.distrusted
        made = await controls.ask(Trust("test"))
        assert [str(one) for one in made.changed] == ["agent 'test': distrusted -> trusted"]
        found = made.agent("test")
        assert found is not None
        assert not found.distrusted
        assert state(server) == "ok"
        _, budgets = await lie(peer, 2)
        assert budgets[0] > 0
        assert budgets[-1] == 0, "it is found out again"


async def test_nobody_is_trusted_who_was_never_there() -> None:
    async with serving(tiny_settings(rule="ratio")) as (_, address), controlling(address) as controls:
        with pytest.raises(InvalidRequest, match="no agent 'nobody' is linked up"):
            await controls.ask(Trust("nobody"))


async def test_who_has_gone_can_be_trusted_again_by_its_name() -> None:
    async with serving(tiny_settings(rule="ratio")) as (_, address), controlling(address) as controls:
        async with linked(address) as peer:
            await lie(peer)
        async with linked(address, greet=False) as other:
            await other.greet(name="another")
            _, budgets = await lie(other)
            assert budgets[0] > 0, "another name from the same address is nobody's we know"
        assert [str(one) for one in (await controls.ask(Trust("test"))).changed] == [
            "agent 'test': distrusted -> trusted"
        ]
        async with linked(address) as peer:
            _, budgets = await lie(peer)
            assert budgets[0] > 0


async def test_a_tokens_holder_is_distrusted_whatever_it_calls_itself(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens.json")
    secrets = {name: store.create(name, "agent") for name in ("edge", "other")}
    cache = TokenizerCache(tmp_path / "cache")
    drafter = next(drafter for drafter in drafters() if drafter.name == "target")
    async with serving(tiny_settings(rule="ratio", tokens=tmp_path / "tokens.json")) as (server, address):
        standing = server._control._audits.joined("token edge", "one", 0.0)
        standing.distrusted = True
        for secret, name, drafted in (("edge", "two", False), ("other", "one", True)):
            async with Agent(
                address, drafter, name=name, cache=cache, credentials=Credentials(secrets[secret])
            ) as agent:
                await agent.complete(TextRequest("w1 w2 w3", WARM, max_new_tokens=12))
                (row,) = server.snapshot().agents
                assert (row.drafted > 0, row.state == "ok") == (drafted, drafted)


@pytest.mark.parametrize("rounds", ["barrier", "rolling"])
async def test_honest_agents_are_not_suspected_though_all_texts_have_one_seed(rounds: str, tmp_path: Path) -> None:
    """The same prompt with the same seed, over and over: evidence that was counted twice would soon be evidence."""
    settings = tiny_settings(rule="ratio", rounds={"rounds": rounds})
    drafter = next(drafter for drafter in drafters() if drafter.name == "almost")
    async with serving(settings) as (server, address):
        backoff = Backoff(first_s=0.01, longest_s=0.01, give_up_after_s=60.0)
        async with Agent(address, drafter, cache=TokenizerCache(tmp_path), backoff=backoff) as agent:
            for _ in range(12):
                await agent.complete(TextRequest("w5 w17 w3", WARM, max_new_tokens=16, ignore_eos=True))
            (row,) = server.snapshot().agents
            (account,) = server._control._accounts
    assert row.state == "ok"
    if rounds == "barrier":
        assert account.standing.audit.tokens == row.drafted > 50
        assert abs(row.surprise) < 5
        assert account.standing.audit.log_evidence < 7


class Memory(RuleBasedStateMachine):
    """What is remembered of whom, against a plain list of everything that happened."""

    MOST, AWAY_S = 3, 10.0

    def __init__(self) -> None:
        super().__init__()
        self.audits = Audits(remember_s=self.AWAY_S, most_away=self.MOST)
        self.now = 0.0
        self.links: dict[str, int] = {}
        self.found_out: set[str] = set()
        self.left_at: dict[str, float] = {}

    accounts = st.sampled_from("abcdefgh")

    @rule(account=accounts, lies=st.booleans())
    def join(self, account: str, lies: bool) -> None:
        if self.now - self.left_at.pop(account, self.now) >= self.AWAY_S:
            self.found_out.discard(account)
        standing = self.audits.joined(account, account.upper(), self.now)
        if account in self.found_out and self.links.get(account):
            assert standing.distrusted, "no link of its own ever made it forgotten"
        if standing.distrusted:
            assert account in self.found_out, "nobody is distrusted for what another did, or after its time"
        else:
            self.found_out.discard(account)
        self.links[account] = self.links.get(account, 0) + 1
        if lies:
            standing.distrusted = True
            self.found_out.add(account)

    @rule(account=accounts)
    def leave(self, account: str) -> None:
        if self.links.get(account):
            self.audits.left(account, self.now)
            self.links[account] -= 1
            if not self.links[account]:
                self.left_at[account] = self.now

    @rule(account=accounts)
    def trust(self, account: str) -> None:
        self.audits.trust(account.upper())
        assert not self.audits.distrusted(account.upper())
        self.found_out.discard(account)

    @rule(seconds=st.floats(0, 8))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def bounded(self) -> None:
        assert len(self.audits) <= sum(map(bool, self.links.values())) + self.MOST


TestMemory = Memory.TestCase


def test_a_crowd_of_new_names_does_not_wash_away_who_was_found_out() -> None:
    audits = Audits(most_away=4)
    for name in ("liar", "liar2"):
        audits.joined(name, name, 0.0).distrusted = True
        audits.left(name, 0.0)
    for number in range(100):
        audits.joined(f"fresh{number}", "fresh", 1.0).audit.tokens = 1
        audits.left(f"fresh{number}", 1.0)
    assert len(audits) == 4
    assert audits.joined("liar", "liar", 2.0).distrusted
    assert audits.joined("liar2", "liar2", 2.0).distrusted


def test_it_is_forgotten_in_time_and_no_sooner() -> None:
    for away_s, remembered in ((REMEMBER_S - 1.0, True), (REMEMBER_S, False)):
        audits = Audits()
        audits.joined("a", "name", 0.0).distrusted = True
        audits.left("a", 5.0)
        assert audits.joined("a", "name", 5.0 + away_s).distrusted == remembered


def test_evidence_outlives_links_too() -> None:
    audits = Audits()
    first = audits.joined("a", "one", 0.0)
    assert audits.joined("a", "two", 0.0) is first
    first.audit.tokens = 3
    audits.left("a", 1.0)
    audits.left("a", 1.0)
    assert audits.joined("a", "three", 2.0) is first
