"""Attackers who hold an agent's token, and run anything in place of an agent."""

from __future__ import annotations

import asyncio
import itertools
import zlib

from bench.attacks.floods import THROTTLED, again_and_again, flood, twin
from bench.attacks.sockets import PING, RawLink, Tally, Target, frame
from goodspeed.messages import Draft, DraftEnd, Open, Opened, Verdict, decode_server, encode
from goodspeed.sampling import SamplingParams

__all__ = ["BOMBS"]

LINKS = 32
WRITER = "an honest writer"
_AT_ONCE = 256
_NEW_TOKENS = 96
_PROMPT = list(range(40, 72))
_NOBODYS = 2**30
"""A stream that nobody opened."""
_PIECE = bytes(2**16)


def _deflated(size: int) -> bytes:
    """So many zeros, as permessage-deflate has them."""
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(bytes(size)) + deflate.flush(zlib.Z_SYNC_FLUSH)[:-4]


BOMBS: dict[str, bytes] = {
    "compressed": frame(_deflated(2**24), flags=0xC),
    "nested": frame(b"\x91" * 60_000),
    "long array": frame(b"\xdd\xff\xff\xff\xff"),
    "long bytes": frame(b"\x93\xc4\x01D\xc6\xff\xff\xff\xff"),
    "huge prompt": frame(b"\x97\xc4\x01O\x00\xdd\x00\x00\xff\xff" + b"\x01" * 60_000),
    "nonsense": frame(b"nonsense"),
    "text": frame(b"{}", opcode=0x1),
}
"""Frames that are small and want to be much, or nothing that this protocol knows."""


@flood("oversized frames", "message_too_big", "protocol_error")
async def oversized(target: Target, tally: Tally) -> None:
    """Frames of a gibibyte; and by turns frames that are just not cut off unread."""

    async def once(number: int) -> None:
        async with target.linked(f"oversized {number}") as link:
            with tally.standing():
                if number % 2:
                    await link.send_raw(frame(_PIECE * 3))
                    await link.read_out()
                    raise EOFError
                await link.send_raw(frame(b"", claimed=2**30))
                while True:
                    await link.send_raw(_PIECE)
                    tally.counts["bytes sent"] += len(_PIECE)

    await again_and_again(4, tally, once)


@flood("bombs", "malformed_message", "protocol_error")
async def bombs(target: Target, tally: Tally) -> None:
    """Every bomb by turns, on a link of its own."""
    kinds = itertools.cycle(BOMBS.values())

    async def once(number: int) -> None:
        async with target.linked(f"bomber {number}", extension="permessage-deflate") as link:
            with tally.standing():
                await link.send_raw(next(kinds))
                await link.read_out()
                raise EOFError

    await again_and_again(4, tally, once)


@flood("pings", THROTTLED)
async def pings(target: Target, tally: Tally) -> None:
    """Pings, each of which wants an answer, as fast as they are taken."""
    many = frame(b"", opcode=PING) * 10_000

    async def once(number: int) -> None:
        async with target.linked(f"pinger {number}") as link:
            with tally.standing():
                await _while_reading(link, many, 10_000, tally)

    await again_and_again(1, tally, once)


@flood("drafts for nobody", THROTTLED)
async def for_nobody(target: Target, tally: Tally) -> None:
    """Drafts of a stream that is none: each is answered with a sentence."""
    many = frame(encode(Draft(_NOBODYS, 0, [5]))) * _AT_ONCE

    async def once(number: int) -> None:
        async with target.linked(f"confused {number}") as link:
            with tally.standing():
                await _while_reading(link, many, _AT_ONCE, tally)

    await again_and_again(LINKS, tally, once)


@flood("slow readers", THROTTLED)
async def slow_readers(target: Target, tally: Tally) -> None:
    """The same, and the answers are never read."""
    many = frame(encode(Draft(_NOBODYS, 0, [5]))) * _AT_ONCE

    async def once(number: int) -> None:
        async with target.linked(f"deaf {number}") as link:
            with tally.standing():
                while True:
                    await link.send_raw(many)
                    tally.counts["messages sent"] += _AT_ONCE

    await again_and_again(LINKS, tally, once)


async def _while_reading(link: RawLink, many: bytes, count: int, tally: Tally) -> None:
    reading = asyncio.create_task(link.read_out())
    try:
        while not reading.done():
            await link.send_raw(many)
            tally.counts["messages sent"] += count
    finally:
        reading.cancel()
    raise EOFError


@twin(WRITER)
async def writer(target: Target, tally: Tally) -> None:
    """Has texts written, one after another, and has nothing to say to them."""
    await _write(target, tally, replays=0)


@flood("replayed drafts", THROTTLED, beside=WRITER)
@flood("replayed drafts, barrier", THROTTLED, rounds="barrier", beside=WRITER)
async def replayed(target: Target, tally: Tally) -> None:
    """Has texts written, and sends its first draft of each again as fast as it is taken."""
    await _write(target, tally, replays=_AT_ONCE)


async def _write(target: Target, tally: Tally, *, replays: int) -> None:
    async with target.linked("writer") as link:
        for stream in itertools.count():
            params = SamplingParams(0.8, seed=stream)
            await link.send(Open(stream, _PROMPT, len(_PROMPT), params, _NEW_TOKENS, 4, True))
            flooding = asyncio.create_task(_replay(link, stream, replays, tally)) if replays else None
            try:
                await _write_text(link, stream, tally)
            finally:
                if flooding is not None:
                    flooding.cancel()


async def _replay(link: RawLink, stream: int, replays: int, tally: Tally) -> None:
    many = frame(encode(Draft(stream, len(_PROMPT), [5]))) * replays
    while True:
        await link.send_raw(many)
        tally.counts["messages sent"] += replays


async def _write_text(link: RawLink, stream: int, tally: Tally) -> None:
    base = len(_PROMPT)
    while True:
        match decode_server(await link.receive()):
            case Opened(stream=of) if of == stream:
                pass
            case Verdict(stream=of) as verdict if of == stream:
                tally.counts["verdicts"] += 1
                if verdict.base != base:
                    continue  # of what was said already
                base += verdict.accepted + len(verdict.tokens)
                if verdict.finish is not None:
                    tally.counts["texts"] += 1
                    return
            case _:
                continue
        await link.send(Draft(stream, base, [], end=DraftEnd.NOTHING_TO_SAY))
