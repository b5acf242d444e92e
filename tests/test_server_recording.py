"""What a server records: exactly what the target thought, and never at anybody's expense."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from goodspeed.errors import CorruptData, InvalidRequest
from goodspeed.messages import Redraft
from goodspeed.sampling import SamplingParams
from goodspeed.tuning.passages import Passage, read_shards
from goodspeed_agent.agent import Agent, TextRequest
from goodspeed_agent.drafters import SuffixDrafter
from goodspeed_agent.tokenizer import TokenizerCache
from goodspeed_server import recording
from goodspeed_server.recording import Recorder
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
            assert np.array_equal(np.diff([*base, len(text)]) - 1, accepted) or accepted[-1] == len(text) - base[-1]
            assert np.all(accepted <= drafted)
            assert np.all(drafted <= budget)
    assert read_shards(tmp_path / "drafted")[0].blocks[:, 3].sum() > 0


def test_an_operator_is_told_that_texts_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "goodspeed_server"):
        recorder(tmp_path).close()
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
    monkeypatch.setattr(recording, "write_shard", full)
    with caplog.at_level(logging.ERROR, "goodspeed_server"):
        assert await texts_recorded(tmp_path / "full") == expected
    assert errors(caplog) == [
        f"nothing can be recorded to {tmp_path / 'full'} (No space left on device); the server serves on"
    ]
    with pytest.raises(CorruptData, match="holds no recorded passages"):
        read_shards(tmp_path / "full")


async def test_what_the_thread_cannot_keep_up_with_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = await texts_recorded(tmp_path / "fine")
    monkeypatch.setattr(recording, "_WAITING_BYTES", 0)
    assert await texts_recorded(tmp_path / "swamped") == expected
    assert list((tmp_path / "swamped").iterdir()) == []


def recorder(folder: Path, **changes: int) -> Recorder:
    numbers = iter(range(1000))
    options = {"max_bytes": 2**20, "shard_tokens": 1} | changes
    return Recorder(folder, clock=lambda: next(numbers), **options)


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


def test_the_oldest_shards_make_room_for_new_ones(tmp_path: Path) -> None:
    writing = recorder(tmp_path)
    for number in range(6):
        writing._finished.append(fat(number))
        writing._write()
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2**20
    writing.close()
    assert [passage.client for passage in read_shards(tmp_path)] == ["4", "5"]
    assert writing.recorded == 6


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequest, match=r"cannot record to .*: Not a directory; give another --record"):
        recorder(tmp_path / "file" / "sub")
    with pytest.raises(InvalidRequest, match="--record-max-mb"):
        recorder(tmp_path, max_bytes=5)


def test_a_pass_whose_streams_were_all_closed_meanwhile_is_nothing_to_record(tmp_path: Path) -> None:
    writing = recorder(tmp_path)
    writing.passed(torch.zeros(3, VOCAB), [])
    writing.close()
    assert (writing.recorded, writing.left_out, list(tmp_path.iterdir())) == (0, 0, [])


def test_a_defect_in_recording_is_logged_and_recording_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writing = recorder(tmp_path)
    with caplog.at_level(logging.ERROR, "goodspeed_server"):
        writing._events.put(recording._Ended(99))  # a stream that never was
        writing._finished.append(fat(1))
        writing.close()
    assert writing.left_out == 1
    assert errors(caplog) == ["a pass could not be recorded"]
    assert [passage.client for passage in read_shards(tmp_path)] == ["1"]
