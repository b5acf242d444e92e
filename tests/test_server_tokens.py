"""Tokens: how they are kept, what they allow, and whom a server lets in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from typer.testing import CliRunner
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from goodspeed.credentials import Credentials
from goodspeed.errors import CorruptData, InvalidRequest, LinkLost, Overloaded, Refused
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.backoff import Backoff
from goodspeed_agent.drafters import SuffixDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server import server as server_module
from goodspeed_server.allowance import REPEATED, Allowance, Back
from goodspeed_server.cli import app
from goodspeed_server.doorkeeper import Doorkeeper
from goodspeed_server.monitor import fetch_snapshot
from goodspeed_server.server import VerificationServer, load_server
from goodspeed_server.settings import DoorSettings, ServerSettings, TlsSettings
from goodspeed_server.tokens import Token, TokenStore
from tests.serving import serving, tiny_settings

WORDS = "w5 w17 w3"


def test_a_secret_is_kept_as_a_hash_alone(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "deep" / "tokens.json")
    assert store.tokens() == ()
    secret = store.create("edge", "agent", weight=2.0, max_streams=3, tokens_per_minute=1000)
    content = (tmp_path / "deep" / "tokens.json").read_text()
    assert secret.startswith("gst_")
    assert secret not in content
    assert secret.removeprefix("gst_") not in content
    found = TokenStore(tmp_path / "deep" / "tokens.json").find(secret)
    assert found is not None
    assert (found.name, found.role, found.weight, found.max_streams, found.tokens_per_minute) == (
        "edge", "agent", 2.0, 3, 1000
    )  # fmt: skip
    for wrong in ("", secret[:-1], secret + "x", "gst_", "\udcff"):
        assert store.find(wrong) is None
    assert stat.S_IMODE((tmp_path / "deep" / "tokens.json").stat().st_mode) == 0o600


def test_what_one_process_changes_another_sees(tmp_path: Path) -> None:
    here, there = TokenStore(tmp_path / "tokens.json"), TokenStore(tmp_path / "tokens.json")
    first, second = here.create("a", "agent"), here.create("b", "monitor")
    assert [token.name for token in there.tokens()] == ["a", "b"]
    there.revoke("a")
    assert here.find(first) is None
    assert (found := here.find(second)) is not None
    assert found.name == "b"


def test_mistakes_are_named(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens.json")
    store.create("a", "agent")
    with pytest.raises(InvalidRequest, match="there is a token named 'a' already"):
        store.create("a", "monitor")
    with pytest.raises(InvalidRequest, match="there is no token named 'b': there are a"):
        store.revoke("b")
    with pytest.raises(InvalidRequest, match="weight is 0"):
        store.create("b", "agent", weight=0.0)
    with pytest.raises(InvalidRequest, match="max-streams is 0"):
        store.create("b", "agent", max_streams=0)
    with pytest.raises(InvalidRequest, match="is no name"):
        store.create("", "agent")
    assert [token.name for token in store.tokens()] == ["a"]
    (tmp_path / "tokens.json").write_text("[{")
    with pytest.raises(CorruptData, match="cannot be read as a file of tokens"):
        store.tokens()
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequest, match="cannot be written"):
        TokenStore(tmp_path / "file" / "tokens.json").create("a", "agent")


def test_commands_make_list_and_revoke(tmp_path: Path) -> None:
    file = str(tmp_path / "tokens.json")
    made = CliRunner().invoke(app, ["token", "create", "edge", "--weight", "2", "--tokens", file])
    assert made.exit_code == 0
    secret = made.stdout.strip()
    assert TokenStore(Path(file)).find(secret) is not None
    assert "not shown again" in made.stderr
    listed = CliRunner().invoke(app, ["token", "list", "--json", "--tokens", file])
    (about,) = json.loads(listed.stdout)
    assert (about["name"], about["weight"], "digest" in about) == ("edge", 2.0, False)
    assert "edge" in CliRunner().invoke(app, ["token", "list"], env={"GOODSPEED_TOKENS": file}).stdout
    assert CliRunner().invoke(app, ["token", "revoke", "edge", "--tokens", file]).exit_code == 0
    again = CliRunner().invoke(app, ["token", "revoke", "edge", "--tokens", file])
    assert (again.exit_code, "there is no token named 'edge'" in again.stderr) == (2, True)


def test_a_list_of_tokens_keeps_names_whole_and_everything_else_within_a_terminal(tmp_path: Path) -> None:
    file, names = tmp_path / "tokens.json", ["edge", "x" * 100, "Grüße 日本"]
    for name in names:
        TokenStore(file).create(name, "monitor", weight=999_999, max_streams=1_000_000)
    listed = CliRunner().invoke(app, ["token", "list"], env={"GOODSPEED_TOKENS": str(file), "COLUMNS": "80"})
    heading, *rows = listed.stdout.splitlines()
    at = heading.index("name")
    assert at < 80
    assert [row[at:] for row in rows] == names
    assert all(row.startswith("monitor  999999  1000000  no limit ") for row in rows)


def test_an_allowance_counts_streams_and_tokens() -> None:
    allowance = Allowance("edge", max_streams=2, tokens_per_minute=60)
    allowance.admit(0.0)
    allowance.admit(0.0)
    with pytest.raises(Overloaded, match="may have 2 streams at a time"):
        allowance.admit(0.0)
    allowance.ended()
    allowance.spend(90, 10.0)
    with pytest.raises(Overloaded, match="may have 60 tokens a minute") as refused:
        allowance.admit(10.0)
    # 90 of 60 are used, and one runs out a second.
    assert refused.value.retry_after_s == pytest.approx(31.0)
    allowance.admit(10.0 + refused.value.retry_after_s)
    allowance.limit(None, None)
    allowance.admit(42.0)


def test_a_text_whose_link_breaks_goes_on_and_is_not_had_again_and_again() -> None:
    allowance = Allowance("edge", tokens_per_minute=60)
    allowance.admit(0.0)
    allowance.spend(1060, 0.0)
    for _ in range(20):
        allowance.admit(0.0, Back("often broken", 10))
    allowance.admit(0.0, Back("stood still", 1000))
    allowance.admit(0.0, Back("another", 1000))
    for text in ("stood still", "another", None):
        with pytest.raises(Overloaded, match="may have 60 tokens a minute") as refused:
            allowance.admit(0.0, None if text is None else Back(text, 0))
        assert refused.value.retry_after_s == pytest.approx(1001.0)
    allowance.admit(1001.0, Back("stood still", 1000))
    allowance.spend(1000, 1001.0)
    allowance.admit(1001.0, Back("stood still", 1000))
    with pytest.raises(Overloaded):
        allowance.admit(1001.0, Back("stood still", 0))


@pytest.mark.parametrize("seed", range(20))
def test_breaking_links_brings_no_more_than_each_text_twice(seed: int) -> None:
    rng, allowance, longest = random.Random(seed), Allowance("edge", tokens_per_minute=60), 1000
    lengths = dict.fromkeys(range(5), 0)
    for _ in lengths:
        allowance.admit(0.0)
    allowance.spend(60, 0.0)
    had = 0
    for _ in range(2000):
        text = rng.choice(list(lengths))
        begins_at = rng.choice((0, lengths[text], rng.randint(0, lengths[text])))
        try:
            allowance.admit(0.0, Back(text, lengths[text] - begins_at))
        except Overloaded:
            continue
        lengths[text] = rng.choice((longest, rng.randint(begins_at, longest)))
        allowance.spend(lengths[text] - begins_at, 0.0)
        had += lengths[text] - begins_at
    assert longest * len(lengths) < had <= (2 * longest + REPEATED) * len(lengths)


def test_what_was_had_without_a_limit_is_no_debt_under_one() -> None:
    allowance = Allowance("edge")
    allowance.spend(10**6, 0.0)
    allowance.limit(None, 1000)
    allowance.admit(1.0)
    allowance.spend(2000, 1.0)
    allowance.limit(None, None)
    allowance.limit(None, 1000)
    allowance.admit(1.0)


def test_a_token_of_the_same_name_does_not_pay_for_the_one_before(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens.json")
    doorkeeper = Doorkeeper(store, DoorSettings())
    for limit in (None, 1000):
        store.create("edge", "agent", tokens_per_minute=limit)
        used = doorkeeper.allowance(store.tokens()[0])
        used.admit(0.0)
        used.spend(10**6, 0.0)
        store.revoke("edge")
    store.create("edge", "agent", tokens_per_minute=1000)
    allowance = doorkeeper.allowance(store.tokens()[0])
    allowance.admit(0.0)
    assert allowance.streams == 1
    assert doorkeeper.allowance(store.tokens()[0]) is allowance


def test_nothing_is_remembered_of_tokens_that_were_revoked(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens.json")
    doorkeeper = Doorkeeper(store, DoorSettings())
    for number in range(5):
        store.create(str(number), "agent")
    for token in store.tokens():
        doorkeeper.allowance(token).admit(0.0)
        doorkeeper.pace(token)
    kept = doorkeeper.allowance(store.tokens()[-1])
    for number in range(4):
        store.revoke(str(number))
    assert doorkeeper.no_longer_welcome([]) == []
    assert len(doorkeeper._allowances) == len(doorkeeper._paces) == 1
    assert doorkeeper.allowance(store.tokens()[0]) is kept
    (tmp_path / "tokens.json").write_text("not tokens")
    doorkeeper.no_longer_welcome([])
    assert len(doorkeeper._allowances) == len(doorkeeper._paces) == 1


async def test_tokens_are_looked_at_once_for_all_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be thousands of either."""
    async with guarded(tmp_path) as (server, address, store), contextlib.AsyncExitStack() as stack:
        secret = store.create("edge", "agent")
        for number in range(3):
            await stack.enter_async_context(agent_with(address, secret, tmp_path, str(number)))
        looked: list[object] = []

        def tokens(store: TokenStore) -> tuple[Token, ...]:
            looked.append(store)
            return ()

        monkeypatch.setattr(TokenStore, "tokens", tokens)
        cut = server._doorkeeper.no_longer_welcome([link.connection for link in server._links])
        assert (len(cut), len(looked)) == (3, 1)


QUICK = Backoff(first_s=0.01, longest_s=0.01, give_up_after_s=0.2)


def agent_with(address: str, secret: str | None, folder: Path, name: str = "box") -> Agent:
    return Agent(
        address, SuffixDrafter(), name=name, cache=TokenizerCache(folder), backoff=QUICK,
        credentials=Credentials(secret),
    )  # fmt: skip


@contextlib.asynccontextmanager
async def guarded(tmp_path: Path) -> AsyncIterator[tuple[VerificationServer, str, TokenStore]]:
    store = TokenStore(tmp_path / "tokens.json")
    async with serving(tiny_settings(tokens=tmp_path / "tokens.json")) as (server, address):
        yield server, address, store


async def test_who_shows_no_good_token_is_not_let_in(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (_, address, store):
        secret = store.create("edge", "agent")
        for shown, sentence in ((None, "this server wants a token"), ("gst_wrong", "not known here, or was revoked")):
            with pytest.raises(Refused, match=sentence) as refused:
                await agent_with(address, shown, tmp_path).__aenter__()
            assert refused.value.code == "unauthorized"
            with pytest.raises(Refused, match=sentence):
                await fetch_snapshot(address, Credentials(shown))
        for headers in (["Basic abc"], ["Bearer"], [""], [f"Bearer {secret}", "Bearer x"]):
            with pytest.raises(InvalidStatus) as answered:
                await connect(address, additional_headers=[("Authorization", header) for header in headers])
            assert answered.value.response.status_code == 401
        with pytest.raises(InvalidStatus) as answered:
            await connect(
                address, origin=Origin("http://evil.example"), additional_headers={"Authorization": f"Bearer {secret}"}
            )
        assert answered.value.response.status_code == 403
        async with agent_with(address, secret, tmp_path) as agent:
            assert (await agent.complete(TextRequest(WORDS, max_new_tokens=4))).tokens


async def test_each_role_opens_its_own_door(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (_, address, store):
        agent, monitor, admin = (store.create(role, role) for role in ("agent", "monitor", "admin"))
        for secret in (monitor, admin):
            assert (await fetch_snapshot(address, Credentials(secret))).streams == 0
        with pytest.raises(Refused, match="needs one of role monitor or admin"):
            await fetch_snapshot(address, Credentials(agent))
        with pytest.raises(Refused, match="needs one of role agent or admin"):
            await agent_with(address, monitor, tmp_path).__aenter__()
        async with agent_with(address, admin, tmp_path):
            pass


async def test_a_tokens_weight_and_limits_hold(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (server, address, store):
        secret = store.create("edge", "agent", weight=3.0, max_streams=1, tokens_per_minute=5)
        async with agent_with(address, secret, tmp_path) as agent, agent_with(address, secret, tmp_path) as other:
            writing = asyncio.create_task(agent.complete(TextRequest(WORDS, max_new_tokens=90, ignore_eos=True)))
            while not server._rounds.live:
                await asyncio.sleep(0)
            assert [row.weight for row in server.snapshot().agents if row.streams] == [3.0]
            demand = server._rounds.planner._demand(server._rounds.live)
            assert demand.weight.tolist() == [3.0]
            with pytest.raises(Overloaded, match="may have 1 streams at a time"):
                await other.complete(TextRequest(WORDS, max_new_tokens=4))
            # A text that was begun is finished, and then there is no room for another.
            assert len((await writing).tokens) == 90
            with pytest.raises(Overloaded, match="may have 5 tokens a minute"):
                await agent.complete(TextRequest(WORDS, max_new_tokens=4))
        allowance = server._doorkeeper.allowance(store.tokens()[0])
        assert allowance.streams == 0


async def test_a_token_that_is_revoked_cuts_its_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_TOKEN_CHECK_S", 0.01)
    async with guarded(tmp_path) as (_, address, store):
        secret, other = store.create("edge", "agent"), store.create("other", "agent")
        async with agent_with(address, secret, tmp_path) as agent, agent_with(address, other, tmp_path) as stays:
            store.revoke("edge")
            error = await agent.link.over()
            assert isinstance(error, Refused)
            assert "revoked" in str(error)
            assert (await stays.complete(TextRequest(WORDS, max_new_tokens=4))).tokens


async def test_while_the_file_cannot_be_read_nobody_gets_in_and_nobody_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "_TOKEN_CHECK_S", 0.001)
    async with guarded(tmp_path) as (_, address, store):
        secret = store.create("edge", "agent")
        async with agent_with(address, secret, tmp_path) as agent:
            (tmp_path / "tokens.json").write_text("not tokens")
            with pytest.raises(LinkLost, match="the server cannot check tokens now: try again in 10 s"):
                await agent_with(address, secret, tmp_path).__aenter__()
            assert (await agent.complete(TextRequest(WORDS, max_new_tokens=4))).tokens
    assert sum("nobody can be let in" in message for message in caplog.messages) == 1


def test_a_server_that_strangers_can_reach_wants_tokens_and_tls(tmp_path: Path) -> None:
    for settings in ({}, {"tokens": tmp_path}, {"tls": TlsSettings(tmp_path)}):
        with pytest.raises(InvalidRequest, match=r"on 0\.0\.0\.0 others can reach this server"):
            ServerSettings(host="0.0.0.0", **settings)
    ServerSettings(host="0.0.0.0", insecure=True)
    ServerSettings(host="0.0.0.0", tokens=tmp_path, tls=TlsSettings(tmp_path))
    ServerSettings(host="127.0.0.1")
    with pytest.raises(InvalidRequest, match="go with a certificate"):
        TlsSettings(key=tmp_path)


def test_a_server_without_a_single_token_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="nobody could link up: make one first"):
        load_server(ServerSettings(tokens=tmp_path / "tokens.json"))


def test_a_token_is_never_shown() -> None:
    assert "gst_secret" not in repr(Credentials("gst_secret"))


def test_a_token_made_by_hand_is_checked() -> None:
    with pytest.raises(InvalidRequest, match="weight is nan"):
        Token(name="x", role="agent", digest="0" * 64, weight=float("nan"))
    for digest in ("", "0" * 63, "A" * 64, "\u00e9" * 64):
        with pytest.raises(InvalidRequest, match="was changed by hand"):
            Token(name="x", role="agent", digest=digest)


def test_a_wait_is_one_that_a_message_can_say() -> None:
    allowance = Allowance("edge", tokens_per_minute=1)
    allowance.spend(10**6, 0.0)
    with pytest.raises(Overloaded) as refused:
        allowance.admit(0.0)
    assert refused.value.retry_after_s == 86_400.0


def test_a_path_that_cannot_even_be_looked_at_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match="cannot be read as a file of tokens"):
        TokenStore(tmp_path / ("a" * 300)).tokens()


def test_a_list_of_no_tokens_says_where_it_looked_and_how_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["token", "list", "--tokens", "~/tokens.json"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"there are no tokens in {tmp_path / 'tokens.json'}, which is not there: goodspeed-server token create" in (
        result.stderr
    )
    result = CliRunner().invoke(app, ["token", "list", "--json", "--tokens", "~/tokens.json"])
    assert (result.exit_code, result.stdout) == (0, "[]\n")
    CliRunner().invoke(app, ["token", "create", "edge", "--tokens", "~/tokens.json"])
    assert (tmp_path / "tokens.json").exists()
    CliRunner().invoke(app, ["token", "revoke", "edge", "--tokens", "~/tokens.json"])
    result = CliRunner().invoke(app, ["token", "list", "--tokens", "~/tokens.json"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"there are no tokens in {tmp_path / 'tokens.json'}: " in result.stderr
