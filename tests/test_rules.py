"""Verification rules as classes: the built-in ones judge as the server does, and one's own works on both sides."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from goodspeed import rules
from goodspeed.__main__ import app
from goodspeed.errors import InvalidRequest, RuleFault
from goodspeed.messages import Draft
from goodspeed.rule_checking import check_rule
from goodspeed.rules import RULES, Coupled, Drawn, Ratio, checked_judgement, rule_named, use_rule
from goodspeed.sampling import Domain, SamplingParams, position_keys
from goodspeed.sampling.warping import RowParams, sample
from goodspeed.scenarios import AgentGroup, Contender, Scenario, Server
from goodspeed.scenarios.simulating import simulate_scenario
from goodspeed.stream import check_draft
from goodspeed.verification import DraftDistribution, Judgement, pack_q
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server.settings import ServerSettings
from tests.fake_server import FakeServer
from tests.linking import QUICK, linked
from tests.serving import linked as link_to
from tests.serving import serving, tiny_settings
from tests.test_agent_with_server import NEW_TOKENS, PROMPTS, drafters

MATCH = f"{Path(__file__).parents[1] / 'bench/examples/match.py'}:Match"


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What a test makes known is known to no other."""
    known = dict(rules._known)
    yield
    rules._known.clear()
    rules._known.update(known)


class Credulous(Ratio):
    """Takes every draft for granted."""

    name = "credulous"

    def judge(self, log_p: Tensor, drafted: Sequence[int], evidence: Sequence[Any], seed: int, base: int) -> Judgement:
        stood = len(drafted)
        return Judgement(stood, super().judge(log_p[stood:], [], [], seed, base + stood).token)


class Forgetful(Ratio):
    """Forgets that what it rejects has had its chance: draws again from the whole target."""

    name = "forgetful"

    def judge(self, log_p: Tensor, drafted: Sequence[int], evidence: Sequence[Any], seed: int, base: int) -> Judgement:
        stood = super().judge(log_p, drafted, evidence, seed, base).accepted
        return Judgement(stood, super().judge(log_p[stood : stood + 1], [], [], seed, base + stood).token)


class Fragile(Ratio):
    name = "fragile"

    def read(self, evidence: bytes, drafted: Sequence[int], vocab_size: int) -> Sequence[Any]:
        return [evidence[1000 + place] for place, _ in enumerate(drafted)]


@pytest.mark.parametrize("rule", [Coupled(), Ratio(secret=0), "match"], ids=["coupled", "ratio", "match"])
def test_lossless_rules_pass(rule: Any) -> None:
    tried = rule_named(use_rule(MATCH)) if rule == "match" else rule
    findings = check_rule(tried, trials=600, seed=3)
    assert [finding.drafts for finding in findings] == ["drawn", "settled", "none"]
    assert all(finding.lossless for finding in findings), findings
    assert findings[0].accepted > 0.05


def test_coins_and_draws_are_used_once() -> None:
    """A seed is known to both sides and used again: neither side's noise may follow from it, nor come twice."""
    tokens, weights = np.arange(8), np.ones(8, dtype=np.float32)
    log_p = torch.full((2, 8), 1 / 8).log()
    doubtful = pack_q([DraftDistribution(np.array([0, 1]), np.array([1, 1]))])  # it stands in one case of four
    drawn, stood = [], []
    for rule in (Ratio(secret=1), Ratio(secret=1), Ratio(secret=2)):
        drawn.append([rule.draw(tokens, weights, 5, 9).token for _ in range(64)])
        stood.append([rule.judge(log_p, [0], rule.read(doubtful, [0], 8), 5, 9).accepted for _ in range(64)])
    for first, again, other in (drawn, stood):
        assert first == again != other
        assert len(set(first)) > 1
    assert [Ratio().draw(tokens, weights, 5, 9).token for _ in range(64)] != drawn[0]


@pytest.mark.parametrize("rule", [Credulous(secret=0), Forgetful(secret=0)], ids=["credulous", "forgetful"])
def test_rules_that_bend_the_text_are_found_out(rule: Ratio) -> None:
    drawn, settled, none = check_rule(rule, trials=600, seed=3)
    assert not drawn.lossless
    assert not settled.lossless
    assert none.lossless, "without drafts it is the target's own draw"


def test_a_rule_that_fails_on_what_a_peer_sends_is_told_of() -> None:
    with pytest.raises(InvalidRequest, match="the rule fragile fails: IndexError"):
        check_rule(Fragile(), trials=1)
    rules._known["fragile"] = Fragile()
    with pytest.raises(InvalidRequest, match="what was sent with the draft cannot be read") as refused:
        check_draft(Draft(1, 3, [1, 2], q=b"xx"), 4, 9, "fragile")
    assert refused.value.code == "invalid_q"


class Odd(Ratio):
    """Judges as it was told to."""

    name = "odd"

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def judge(self, log_p: Tensor, drafted: Sequence[int], evidence: Sequence[Any], seed: int, base: int) -> Judgement:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]  # as somebody else's class might


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (Judgement(3, 0), "the rule odd accepted 3 tokens: it must be 0 to 2"),
        (Judgement(-1, 0), "the rule odd accepted -1 tokens: it must be 0 to 2"),
        (Judgement(1.0, 0), "the rule odd answered Judgement.*'float'"),  # type: ignore[arg-type]
        (Judgement(0, 5), "the rule odd drew the token 5: it must be 0 to 4"),
        (Judgement(0, -1), "the rule odd drew the token -1: it must be 0 to 4"),
        (Judgement(0, None), "the rule odd answered Judgement.*'NoneType'"),  # type: ignore[arg-type]
        (Judgement(0, 0, (0.5,)), "the rule odd has wrong ratios"),
        (Judgement(0, 0, (0.5, float("nan"))), "the rule odd has wrong ratios"),
        (Judgement(0, 0, None, (0.5,)), "the rule odd has wrong odds"),
        (Judgement(0, 0, None, (0.5, -1.0)), "the rule odd has wrong odds"),
        (Judgement(0, 0, None, (0.5, float("inf"))), "the rule odd has wrong odds"),
        ((0, 0), "the rule odd answered tuple: it must be a Judgement"),
        (ZeroDivisionError("q"), "the rule odd raised ZeroDivisionError: q"),
        (InvalidRequest("q"), "the rule odd raised InvalidRequest: q"),
    ],
)  # fmt: skip
def test_a_judgement_that_cannot_be_is_the_rules_fault(answer: Any, sentence: str) -> None:
    with pytest.raises(RuleFault, match=sentence):
        checked_judgement(Odd(answer), torch.zeros(3, 5), [1, 2], [], 0, 1)
    with pytest.raises(RuleFault, match="the rule odd "):
        check_rule(Odd(Judgement(9, 0) if isinstance(answer, Judgement) else answer), trials=1)


def test_a_judgement_of_numpys_numbers_is_one_of_integers() -> None:
    answer = Judgement(np.int64(2), torch.tensor(4))  # type: ignore[arg-type]
    assert checked_judgement(Odd(answer), torch.zeros(3, 5), [1, 2], [], 0, 1) == Judgement(2, 4)


@pytest.mark.parametrize("failing", ["draw", "read", "judge"])
def test_the_simulator_names_a_rule_that_fails_with_contender_and_seed(failing: str) -> None:
    def fail(*_: object) -> None:
        raise LookupError("nothing")

    rules._known["odd"] = type("Failing", (Ratio,), {"name": "odd", failing: fail})()
    server = Server(capacity=4, rounds="barrier", rule="odd")
    scenario = Scenario("x", (AgentGroup("a", acceptance=0.8),), server=server, schedulers=(Contender("fixed"),))
    with pytest.raises(RuleFault, match="fixed, seed 0: the rule odd raised LookupError: nothing"):
        simulate_scenario(scenario)


async def test_a_rule_that_fails_ends_the_server_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from goodspeed.rules import Ratio\nfrom goodspeed.verification import Judgement\n"
        "class Own(Ratio):\n    name = 'odd'\n    def judge(self, *_):\n        return Judgement(99, 0)\n"
    )
    with pytest.raises(RuleFault, match="the rule odd accepted 99 tokens: it must be 0 to "):
        async with (
            asyncio.timeout(30),
            serving(tiny_settings(rule=f"{tmp_path / 'own.py'}:Own")) as (server, address),
            link_to(address) as peer,
        ):
            await peer.open(1, [1, 2, 3], max_draft=0)
            await server.until(asyncio.Event())


@pytest.mark.parametrize("error", [AttributeError("x"), AssertionError(), RuntimeError("x"), OverflowError("x")])
def test_whatever_a_rule_cannot_read_counts_as_a_draft_that_is_refused(error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    rules._known["odd"] = type("Failing", (Ratio,), {"name": "odd", "read": fail})()
    with pytest.raises(InvalidRequest, match="what was sent with the draft cannot be read") as refused:
        check_draft(Draft(1, 3, [1, 2], q=b"xx"), 4, 9, "odd")
    assert refused.value.code == "invalid_q"


def test_judging_alone_draws_what_the_server_draws_for_a_batch() -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(temperature=1.0, seed=11)
    keys = torch.from_numpy(position_keys([11] * 5, range(7, 12), Domain.SHARED))
    expected = sample(logits, RowParams.of([params] * 5, logits.device), keys).tolist()
    rule, log_p = Coupled(), logits.log_softmax(-1)
    assert rule.judge(log_p, expected[:4], [], 11, 7) == Judgement(4, expected[4])
    wrong = [*expected[:2], (expected[2] + 1) % 300, 0]
    assert rule.judge(log_p, wrong, [], 11, 7) == Judgement(2, expected[2])


async def test_a_rule_of_ones_own_on_both_sides(tmp_path: Path) -> None:
    params = SamplingParams(temperature=0.8, seed=2)
    texts = set()
    async with serving(tiny_settings(rule=MATCH)) as (server, address):
        for drafter in drafters()[1:4]:
            async with Agent(address, drafter, cache=TokenizerCache(tmp_path), backoff=QUICK) as agent:
                assert agent.link.welcome.rule == "match"
                completion = await agent.complete(TextRequest(PROMPTS[0], params, max_new_tokens=NEW_TOKENS))
            assert len(completion.tokens) == NEW_TOKENS
            texts.add(tuple(completion.tokens))
        assert server.snapshot().rule == "match"
    assert len(texts) == 1, "its draws do not depend on drafts"


async def test_an_agent_without_the_servers_rule_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="verified by the rule 'unheard-of' there, which is not here: install"):
        async with linked(FakeServer(rule="unheard-of"), TokenizerCache(tmp_path)):
            pass


def test_what_a_peer_names_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('it was run')")
    monkeypatch.chdir(tmp_path)
    for name in ("trap:Rule", "trap.py:Rule", "os:system", "match(x=1)"):
        with pytest.raises(InvalidRequest, match="which is not here"):
            rule_named(name)


def test_its_user_may_name_one_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOODSPEED_RULE", MATCH)
    assert rule_named("match").name == "match"
    with pytest.raises(InvalidRequest, match="'another' there"):
        rule_named("another")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("class Own:\n    name = 'own'", "is no rule: Own has no shares_noise"),
        ("from goodspeed.rules import Ratio\nclass Own(Ratio):\n    pass", "'ratio', which is a built-in one's"),
        ("from goodspeed.rules import Ratio\nclass Own(Ratio):\n    name = ''", "must be 1 to 64 characters"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(InvalidRequest, match=sentence):
        ServerSettings(rule=f"{tmp_path / 'own.py'}:Own")


def test_a_name_that_does_not_exist_is_named_with_the_nearest() -> None:
    with pytest.raises(InvalidRequest, match=r"rule 'coupld' does not exist: did you mean coupled\? choose auto"):
        ServerSettings(rule="coupld")


def test_the_simulator_lets_a_rule_judge_by_itself() -> None:
    def goodput(rule: str) -> float:
        server = Server(capacity=4, rounds="barrier", rule=rule)
        group = AgentGroup("a", acceptance=0.8)
        scenario = Scenario("x", (group,), duration_s=30.0, server=server, schedulers=(Contender("fixed"),))
        return simulate_scenario(scenario).runs[0].total

    published, matching = goodput("ratio"), goodput(MATCH)
    assert matching < 0.8 * published, "one that shares nothing accepts less"
    rules._known["same"] = type("Same", (Ratio,), {"name": "same"})()
    assert goodput("same") == pytest.approx(published, rel=0.1), "the published one, judged token by token"


def test_the_command_says_so_and_fails_where_a_rule_is_lossy(tmp_path: Path) -> None:
    good = CliRunner().invoke(app, ["check-rule", "ratio", "--trials", "300"])
    assert (good.exit_code, good.stdout.count("as the target alone")) == (0, 3)
    (tmp_path / "own.py").write_text(
        "from goodspeed.rules import Ratio\nfrom goodspeed.verification import Judgement\n"
        "class Own(Ratio):\n    name = 'own'\n    def judge(self, log_p, drafted, evidence, seed, base):\n"
        "        return Judgement(len(drafted), 0)\n"
    )
    bad = CliRunner().invoke(app, ["check-rule", f"{tmp_path / 'own.py'}:Own", "--trials", "300"])
    assert (bad.exit_code, bad.stdout.count("NOT as the target alone")) == (1, 3)


def test_every_built_in_rule_is_one() -> None:
    for name in RULES:
        rule = rule_named(name)
        token, evidence = rule.draw(np.array([3, 1]), np.array([1.0, 0.5], dtype=np.float32), 5, 9)
        assert token in (3, 1)
        assert len(list(rule.read(evidence, [token], 4))) in (0, 1)
        assert isinstance(Drawn(token, evidence), tuple)
        rule.read(rule.settled(2), [2], 4)
