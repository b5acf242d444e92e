"""What a server records: exactly what the target thought, and never at anybody's expense."""

from __future__ import annotations

import asyncio
import errno
import logging
import stat
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from goodspeed.errors import CorruptData, InvalidRequest
from goodspeed.estimation import Goodput, HitOrMiss
from goodspeed.messages import Open, Redraft, ServerMessage
from goodspeed.sampling import SamplingParams
from goodspeed.stream import ServedStream
from goodspeed.timing import Pace
from goodspeed.tuning.passages import Passage, read_shards
from goodspeed.verification import Judgement
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.drafters import SuffixDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server import recording, shards
from goodspeed_server.live import AgentAccount, LiveStream
from goodspeed_server.recording import Recorder, Verified
from goodspeed_server.shards import ShardFolder
from tests.serving import linked, serving, tiny_settings
from tests.tiny_models import VOCAB, tiny_llama

PROMPT = [5, 17, 3, 60, 2]
WARM = SamplingParams(temperature=0.8, seed=3)


def target_thinks(tokens: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of what follows each token: [tokens, vocab]."""
    with torch.inference_mode():
        logits: torch.Tensor = tiny_llama()(input_ids=torch.tensor([list(tokens)])).logits[0]
    return logits.log_softmax(-1)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def check(passage: Passage, text: Sequence[int]) -> None:
    """A passage is the beginning of a text, with the target's own distributions at its end."""
    assert passage.tokens.tolist() == list(text[: len(passage.tokens)])
    assert passage.start + passage.known == len(passage.tokens)
    expected = target_thinks(text)[passage.start - 1 : len(passage.tokens) - 1]
    log_p, support = expected.topk(passage.support.shape[1])
    assert np.allclose(passage.log_p, log_p.numpy(), atol=0.02)
    # Half precision makes equals of near ones, so tokens are compared by what the target thinks of them.
    assert torch.allclose(expected.gather(-1, torch.from_numpy(passage.support).long()), log_p, atol=1e-4)
    assert len(set(support[0].tolist())) == passage.support.shape[1]


async def texts_recorded(folder: Path, guess: Sequence[int] = ()) -> list[list[int]]:
    """Serve two texts, one greedy and one drawn, while recording; returns them, prompts included."""
    async with serving(tiny_settings(record=folder)) as (_, address), linked(address) as peer:
        greedy = await peer.generate(1, PROMPT, guess, max_new_tokens=12)
        drawn = await peer.generate(2, PROMPT, greedy, max_new_tokens=12, params=WARM)
    return [[*PROMPT, *greedy], [*PROMPT, *drawn]]


async def test_every_committed_token_is_recorded_with_what_the_target_thought(tmp_path: Path) -> None:
    texts = await texts_recorded(tmp_path / "alone")
    assert await texts_recorded(tmp_path / "drafted", guess=[*texts[0][5:9], 1, 1, 1, *texts[0][12:]]) == texts
    for folder in ("alone", "drafted"):
        passages = read_shards(tmp_path / folder)
        assert [passage.temperature for passage in passages] == [0.0, pytest.approx(0.8)]
        for passage, text in zip(passages, texts, strict=True):
            check(passage, text)
            assert (passage.start, len(passage.tokens)) == (len(PROMPT), len(text))
            assert (passage.client, passage.drafter, passage.domain) == ("test", "none", "")
            base, budget, drafted, accepted = passage.blocks.T
            assert base[0] == len(PROMPT)
            # A block commits what was accepted and one more token, but for the last, which may end within its draft.
            assert np.array_equal(np.diff(base) - 1, accepted[:-1])
            assert len(text) - base[-1] - accepted[-1] in (0, 1)
            assert np.all(accepted <= drafted)
            assert np.all(drafted <= budget)
    assert read_shards(tmp_path / "drafted")[0].blocks[:, 3].sum() > 0


def test_an_operator_is_told_that_texts_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "goodspeed_server"):
        recorder(tmp_path).close(60.0)
    assert caplog.messages == [f"everything that is verified is recorded to {tmp_path}, the users' texts among it"]


async def test_the_agents_name_and_the_texts_domain_are_recorded(tmp_path: Path) -> None:
    async with serving(tiny_settings(record=tmp_path / "shards")) as (_, address):
        agent = Agent(address, SuffixDrafter(), name="box", cache=TokenizerCache(tmp_path / "cache"))
        async with agent:
            await agent.complete(TextRequest("w5 w17 w3", max_new_tokens=4, domain="code"))
    (passage,) = read_shards(tmp_path / "shards")
    assert (passage.client, passage.domain, passage.drafter) == ("box", "code", "suffix")


async def test_long_texts_are_recorded_in_pieces_that_leave_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_PIECE_TOKENS", 4)
    texts = await texts_recorded(tmp_path)
    known: defaultdict[float, list[int]] = defaultdict(list)
    for passage in read_shards(tmp_path):
        check(passage, texts[0] if passage.temperature == 0 else texts[1])
        known[passage.temperature] += range(passage.start, passage.start + passage.known)
    assert [positions == list(range(len(PROMPT), len(texts[0]))) for positions in known.values()] == [True, True]


async def test_another_drafter_begins_another_passage(tmp_path: Path) -> None:
    async with serving(tiny_settings(record=tmp_path)) as (server, address), linked(address) as peer:
        opened = await peer.open(1, PROMPT, max_new_tokens=40)
        running = asyncio.create_task(peer.go_on(opened, PROMPT))
        while not any(live.stream.generated for live in server._rounds.live):
            await asyncio.sleep(0)
        await peer.send(Redraft("another"))
        text = [*PROMPT, *await running]
        assert server.snapshot().agents[0].drafter == "another"
    passages = read_shards(tmp_path)
    assert [passage.drafter for passage in passages] == ["none", "another"]
    assert passages[0].start + passages[0].known == passages[1].start
    for passage in passages:
        check(passage, text)


async def test_a_disk_that_is_full_costs_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, passages: Sequence[Passage]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = await texts_recorded(tmp_path / "fine")
    monkeypatch.setattr(shards, "write_shard", full)
    with caplog.at_level(logging.ERROR, "goodspeed_server"):
        assert await texts_recorded(tmp_path / "full") == expected
    assert errors(caplog) == [
        f"nothing can be recorded to {tmp_path / 'full'} (No space left on device); the server serves on"
    ]
    with pytest.raises(CorruptData, match="holds no recorded passages"):
        read_shards(tmp_path / "full")


async def test_what_the_thread_cannot_keep_up_with_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = await texts_recorded(tmp_path / "fine")
    monkeypatch.setattr(recording, "_WAITING_PASSES", 0)
    assert await texts_recorded(tmp_path / "swamped") == expected
    assert list((tmp_path / "swamped").iterdir()) == []


def recorder(folder: Path, shard_bytes: int = 2**25) -> Recorder:
    return Recorder(ShardFolder(folder, 2**26), shard_bytes=shard_bytes)


class Scripted:
    """Streams of which a recorder is told what it would be told by a server."""

    def __init__(self, writing: Recorder, names: Sequence[str]) -> None:
        self.writing = writing
        self.texts = {name: [1, 2, 3] for name in names}
        self._live = {name: self._open(name) for name in names}

    def _open(self, name: str) -> LiveStream:
        message = Open(0, self.texts[name], 3, SamplingParams(), 10_000, 4)
        stream = ServedStream.opened(message, vocab_size=VOCAB, max_length=20_000, eos_tokens=frozenset())
        account = AgentAccount(name, "a draft", 0.5)
        return LiveStream(0, Silent(), account, stream, 0, HitOrMiss(), Goodput(0.0, 1.0), Pace(), budget=2)

    def turn(self, wide: int = VOCAB) -> None:
        """Every stream drafts two tokens, of which one is accepted."""
        verified = []
        for place, (name, live) in enumerate(self._live.items()):
            base = live.stream.length
            drafted = [(base + place) % VOCAB, 0]
            commit = live.stream.commit(drafted, Judgement(1, (base + place + 7) % VOCAB))
            self.texts[name] = list(live.stream.tokens)
            verified.append(Verified(live, 3 * place, 2, commit))
        logits = torch.full((3 * len(verified), wide), -100.0)
        for row in range(len(logits)):
            logits[row, row] = 0.0
        self.writing.passed(logits, verified)

    def rename(self, name: str, drafter: str) -> None:
        self._live[name].account.drafter = drafter
        self.writing.ended(self._live[name])


class Silent:
    def post(self, message: ServerMessage) -> None:
        raise AssertionError(message)


def test_every_block_is_recorded_as_it_was(tmp_path: Path) -> None:
    script = Scripted(recorder(tmp_path), "ab")
    for _ in range(3):
        script.turn()
    script.rename("b", "another draft")
    script.turn()
    script.writing.close(60.0)
    passages = {(passage.client, passage.drafter): passage for passage in read_shards(tmp_path)}
    assert set(passages) == {("a", "a draft"), ("b", "a draft"), ("b", "another draft")}
    whole = passages["a", "a draft"]
    assert (whole.tokens.tolist(), whole.start) == (script.texts["a"], 3)
    assert whole.blocks.tolist() == [[3, 2, 2, 1], [5, 2, 2, 1], [7, 2, 2, 1], [9, 2, 2, 1]]
    # Two tokens of a block are committed, and the first two of a stream's three rows are about them.
    assert whole.support[:, 0].tolist() == [0, 1] * 4
    assert passages["b", "another draft"].blocks.tolist() == [[9, 2, 2, 1]]
    assert passages["b", "another draft"].support[:, 0].tolist() == [3, 4]


def test_a_pass_that_finds_no_memory_is_left_out_and_the_texts_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Scripted(recorder(tmp_path), "ab")
    script.turn()
    topk, calls = torch.Tensor.topk, iter(range(100))

    def scarce(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == 1:
            raise torch.OutOfMemoryError
        return topk(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "topk", scarce)
    for _ in range(3):
        script.turn()
    script.writing.close(60.0)
    assert script.writing.left_out == 1
    passages = read_shards(tmp_path)
    assert len(passages) == 4
    starts = sorted((passage.client, passage.start, passage.known) for passage in passages)
    # The pass in question may be any, since the first may have been taken before.
    assert {known for _, _, known in starts} <= {2, 4, 6}
    assert sum(known for _, _, known in starts) == 2 * 3 * 2
    for passage in passages:
        text = script.texts[passage.client]
        assert passage.tokens.tolist() == text[: passage.start + passage.known]


def test_one_pass_is_recorded_however_large_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_WAITING_BYTES", 1)
    script = Scripted(recorder(tmp_path), "a")
    script.turn(wide=1000)
    script.writing.close(60.0)
    assert (script.writing.recorded, script.writing.left_out) == (1, 0)


def test_a_thread_that_is_stuck_holds_no_more_than_so_many_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recording, "_WAITING_PASSES", 5)
    stuck, free = threading.Event(), threading.Event()

    def hang(self: Recorder, event: Any) -> None:
        stuck.set()
        free.wait()
        take(self, event)

    take = Recorder._take
    monkeypatch.setattr(Recorder, "_take", hang)
    script = Scripted(recorder(tmp_path), "ab")
    with caplog.at_level(logging.WARNING, "goodspeed_server"):
        for _ in range(20):
            script.turn()
        assert stuck.wait(60)
        assert script.writing._events.qsize() <= 5 + 2
        free.set()
        script.writing.close(60.0)
    assert script.writing.left_out >= 10
    assert any(message.startswith("left out of the recording: 1 more, 1 in all") for message in caplog.messages)
    for passage in read_shards(tmp_path):
        assert passage.tokens.tolist() == script.texts[passage.client][: passage.start + passage.known]


def test_what_is_finished_is_written_though_nothing_else_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_SHARD_S", 0.01)
    written = threading.Event()

    def write(self: ShardFolder, passages: Sequence[Passage]) -> bool:
        written.set()
        return True

    monkeypatch.setattr(ShardFolder, "write", write)
    writing = recorder(tmp_path)
    script = Scripted(writing, "a")
    script.turn()
    script.rename("a", "another")
    assert written.wait(60)
    script.writing.close(60.0)
    assert script.writing.recorded == 1


def test_prompts_that_are_written_again_and_again_count_as_well(tmp_path: Path) -> None:
    writing = recorder(tmp_path, shard_bytes=20_000)
    script = Scripted(writing, "a")
    for number in range(100):
        script.turn()
        script.rename("a", f"{number} {'x' * 4000}")
    writing.close(60.0)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) >= 20
    assert max(sizes) < 40_000


def fat(number: int) -> Passage:
    """A passage of about 384 KB."""
    count = 1000
    return Passage(
        tokens=np.full(count + 1, number % VOCAB, np.int32),
        start=1,
        support=np.tile(np.arange(64, dtype=np.int32), (count, 1)),
        log_p=np.zeros((count, 64), np.float16),
        client=str(number),
    )


def test_the_oldest_shards_make_room_for_new_ones_and_nothing_else_does(tmp_path: Path) -> None:
    numbers = iter(range(1000))
    folder = ShardFolder(tmp_path, 2**26, clock=lambda: next(numbers))
    folder.max_bytes = 2**20
    others = {"000.safetensors", "model.safetensors", "0.safetensors.unfinished"}
    for name in others:
        (tmp_path / name).write_bytes(bytes(2**19))
    left_behind = tmp_path / f"{0:020d}-1.safetensors.unfinished"
    left_behind.write_bytes(bytes(2**19))
    for number in range(1, 6):
        assert folder.write([fat(number)])
        ours = [path for path in tmp_path.iterdir() if path.name not in others]
        assert sum(path.stat().st_size for path in ours) <= 2**20
    assert not left_behind.exists()
    assert others < {path.name for path in tmp_path.iterdir()}
    for name in others:
        (tmp_path / name).unlink()
    assert [passage.client for passage in read_shards(tmp_path)] == ["4", "5"]


def test_texts_are_their_owners_alone(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path / "shards", 2**26)
    folder.write([fat(1)])
    (shard,) = folder.path.iterdir()
    assert (stat.S_IMODE(folder.path.stat().st_mode), stat.S_IMODE(shard.stat().st_mode)) == (0o700, 0o600)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequest, match=r"cannot record to .*: Not a directory; give another --record"):
        ShardFolder(tmp_path / "file" / "sub", 2**26)
    with pytest.raises(InvalidRequest, match=r"64 MB at least: see --record-max-mb"):
        ShardFolder(tmp_path, 5)


def test_a_pass_whose_streams_were_all_closed_meanwhile_is_nothing_to_record(tmp_path: Path) -> None:
    writing = recorder(tmp_path)
    writing.passed(torch.zeros(3, VOCAB), [])
    writing.close(60.0)
    assert (writing.recorded, writing.left_out, list(tmp_path.iterdir())) == (0, 0, [])


def test_a_defect_in_recording_is_logged_and_recording_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing = iter([True])
    keep = Recorder._keep

    def defective(self: Recorder, logits: torch.Tensor, turns: Any) -> None:
        if next(failing, False):
            raise ValueError("a defect")
        keep(self, logits, turns)

    monkeypatch.setattr(Recorder, "_keep", defective)
    script = Scripted(recorder(tmp_path), "a")
    with caplog.at_level(logging.ERROR, "goodspeed_server"):
        script.turn()
        script.turn()
        script.rename("a", "another")
        script.turn()
        script.writing.close(60.0)
    assert errors(caplog) == ["a pass could not be recorded"]
    # What the thread does not know of a text breaks it off; the next is whole again.
    assert [(passage.drafter, passage.start) for passage in read_shards(tmp_path)] == [("another", 7)]
