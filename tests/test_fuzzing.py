"""The short version of `make fuzz`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from goodspeed.errors import MalformedMessage, VersionMismatch
from goodspeed.messages import decode_agent, decode_server
from tests.fuzzing.__main__ import SERVERS
from tests.fuzzing.decoding import Direction, decode_many, outcomes_of
from tests.fuzzing.drafting import fuzz_agent
from tests.fuzzing.frames import AGENT, SERVER, Frames, corpus
from tests.fuzzing.serving import fuzz_server
from tests.serving import tiny_settings

KINDS = {"agent": AGENT, "server": SERVER}
MOST = 20_000
"""Frames after which a storm gives up to meet what it has not met yet: many times what it needs."""


@pytest.mark.parametrize("direction", ["agent", "server"])
def test_a_decoder_answers_whatever_comes(direction: Direction) -> None:
    became = decode_many(direction, 10_000, seed=0)
    assert became.total() == 10_000
    assert became["MalformedMessage"] > 1_000
    assert outcomes_of(direction) <= became.keys(), "every message gets through at times"


@pytest.mark.parametrize(("direction", "decode"), [("agent", decode_agent), ("server", decode_server)])
def test_most_structured_frames_are_messages(direction: str, decode: Any) -> None:
    frames, read = Frames(KINDS[direction], (), random.Random(0)), 0
    for _ in range(500):
        try:
            decode(frames.structured(wild=0.0))
        except (MalformedMessage, VersionMismatch):
            continue
        read += 1
    assert read > 350


def test_the_kept_frames_are_all_different() -> None:
    for direction in KINDS:
        kept = corpus(direction)
        assert len(set(kept)) == len(kept) > 20


@pytest.mark.parametrize("name", SERVERS)
async def test_a_servers_links_bear_strangers(name: str) -> None:
    storm = await fuzz_server(tiny_settings(**SERVERS[name]), 400, seed=0, most=MOST)
    assert storm.complaints == []
    assert storm.frames >= 400
    assert storm.honest_texts > 0
    assert storm.unmet == []


async def test_an_agent_bears_an_impostor(tmp_path: Path) -> None:
    storm = await fuzz_agent(800, 0, tmp_path, most=MOST)
    assert storm.complaints == []
    assert storm.frames >= 800
    assert storm.unmet == []
