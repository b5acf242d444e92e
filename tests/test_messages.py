import contextlib
import tracemalloc
import typing
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goodspeed.control import Service, SetCapacity, SetRoundTimeout, SetScheduler, SetService, SetWeight
from goodspeed.errors import MalformedMessage, ProtocolError, VersionMismatch
from goodspeed.messages import (
    MAX_AGENT_FRAME_BYTES,
    MAX_DRAFT_TOKENS,
    MAX_SESSION_BYTES,
    PROTOCOL_VERSION,
    AgentMessage,
    Close,
    Control,
    Controlled,
    Draft,
    DraftEnd,
    Failure,
    GetTokenizer,
    Goodbye,
    Hello,
    Open,
    Opened,
    Queued,
    Redraft,
    ServerMessage,
    Snapshot,
    Tokenizer,
    Verdict,
    Welcome,
    decode_agent,
    decode_server,
    encode,
)
from goodspeed.sampling import SamplingParams

VOCAB = 151_936
MIB = 2**20

numbers = st.integers(0, 2**31 - 1)
percent = st.integers(0, 100)
token_lists = st.lists(st.integers(0, VOCAB - 1), max_size=40)
texts = st.text(max_size=50)
seconds = st.floats(0, 86_400)
params = st.builds(
    SamplingParams,
    temperature=st.floats(0, 10),
    top_p=st.floats(0, 1),
    top_k=st.integers(0, 2**31),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
    frequency_penalty=st.floats(-2, 2),
    presence_penalty=st.floats(-2, 2),
    logit_bias=st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-100, 100)), max_size=3).map(tuple),
)
versions = st.just(PROTOCOL_VERSION)
AGENT: dict[type, st.SearchStrategy[AgentMessage]] = {
    Hello: st.builds(
        Hello,
        versions,
        st.sampled_from(["agent", "monitor", "control"]),
        texts,
        texts,
        fingerprint=st.none() | texts,
        software=texts,
        session=st.binary(max_size=MAX_SESSION_BYTES),
    ),
    Open: st.builds(
        Open,
        numbers,
        token_lists,
        numbers,
        params,
        st.integers(1, 2**31 - 1),
        st.integers(0, 64),
        st.booleans(),
        texts,
        st.integers(-1, 20),
    ),
    Draft: st.builds(
        Draft,
        *(numbers, numbers, token_lists),
        q=st.binary(max_size=400),
        computed_us=numbers,
        offset=numbers,
        end=st.sampled_from(DraftEnd),
    ),
    Close: st.builds(Close, numbers),
    Redraft: st.builds(Redraft, texts, st.none() | texts),
    GetTokenizer: st.builds(GetTokenizer),
    Control: st.builds(
        Control,
        st.none()
        | st.builds(SetScheduler, texts, st.none() | seconds)
        | st.builds(SetCapacity, st.none() | st.integers(-5, 2**31))
        | st.builds(SetWeight, texts, st.none() | seconds)
        | st.builds(SetService, texts, st.sampled_from(typing.get_args(Service)))
        | st.builds(SetRoundTimeout, seconds),
    ),
}
SERVER: dict[type, st.SearchStrategy[ServerMessage]] = {
    Welcome: st.builds(
        Welcome,
        *(versions, texts, texts, texts, texts, texts, st.sampled_from(["coupled", "ratio"])),
        *(numbers, numbers, numbers, token_lists),
        waits=st.booleans(),
    ),
    Tokenizer: st.builds(Tokenizer, texts, st.dictionaries(texts, st.binary(max_size=100), max_size=4)),
    Queued: st.builds(Queued, numbers, st.integers(1, 2**31 - 1)),
    Opened: st.builds(Opened, numbers, numbers, numbers, price_percent=percent, overtaken=numbers),
    Verdict: st.builds(
        Verdict,
        *(numbers, numbers, numbers, token_lists, numbers),
        finish=st.sampled_from([None, "stop", "length"]),
        price_percent=percent,
        overtaken=numbers,
        logprobs=st.binary(max_size=100),
    ),
    Failure: st.builds(Failure, texts, texts, st.none() | numbers, st.none() | seconds),
    Goodbye: st.builds(Goodbye, texts, st.none() | seconds),
    Snapshot: st.builds(Snapshot, st.binary(max_size=400)),
    Controlled: st.builds(Controlled, st.binary(max_size=400)),
}
agent_messages = st.one_of(*AGENT.values())
server_messages = st.one_of(*SERVER.values())


def test_every_message_of_the_protocol_is_tested_here() -> None:
    assert set(AGENT) == set(typing.get_args(AgentMessage))
    assert set(SERVER) == set(typing.get_args(ServerMessage))


@given(agent_messages)
def test_what_an_agent_says_is_what_the_server_hears(message: AgentMessage) -> None:
    assert decode_agent(encode(message)) == message


@given(server_messages)
def test_what_the_server_says_is_what_an_agent_hears(message: ServerMessage) -> None:
    assert decode_server(encode(message)) == message


def test_the_wire_format_is_pinned() -> None:
    assert encode(Draft(7, 300, [1, 151_935])) == bytes.fromhex("94 44 07 cd012c 92 01 ce0002517f")
    piece = Draft(7, 300, [1], 5, offset=2, end=DraftEnd.PRICED_OUT, q=b"!")
    assert encode(piece) == bytes.fromhex("98 44 07 cd012c 9101 05 02 01 c40121")
    verdict = Verdict(7, 300, 2, [5], 4, 3, 30, 0, "stop")
    assert encode(verdict) == bytes.fromhex("9a 56 07 cd012c 02 9105 04 03 1e 00 a473746f70")
    tags = "".join(chr(encode(message)[1]) for message in (Close(1), GetTokenizer(), Opened(1, 2, 3), Snapshot(b"")))
    assert tags == "CKoS"


def survives(decode: Callable[[bytes], object], frame: bytes) -> None:
    """Decoding either succeeds or raises one of the two errors of the protocol."""
    with contextlib.suppress(MalformedMessage, VersionMismatch):
        decode(frame)


@given(st.binary(max_size=200))
def test_random_bytes(frame: bytes) -> None:
    survives(decode_agent, frame)
    survives(decode_server, frame)


@given(st.recursive(st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts | st.binary(), st.lists))
def test_random_structures(value: object) -> None:
    for tag in "HODCKRXWToVFGSx":
        survives(decode_agent, msgspec.msgpack.encode([ord(tag), value]))
        survives(decode_server, msgspec.msgpack.encode([ord(tag), *(value if isinstance(value, list) else [value])]))


@given(agent_messages | server_messages, st.data())
def test_mutated_frames(message: Any, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    survives(decode_agent, bytes(frame))
    survives(decode_server, bytes(frame))


@given(agent_messages, st.data())
def test_truncated_and_lengthened_frames_are_refused(message: AgentMessage, data: st.DataObject) -> None:
    frame = encode(message)
    cut = data.draw(st.integers(0, len(frame) - 1))
    for broken in (frame[:cut], frame + b"\x00", frame + frame):
        with pytest.raises(MalformedMessage):
            decode_agent(broken)


@given(agent_messages)
def test_a_direction_has_its_own_messages(message: AgentMessage) -> None:
    with pytest.raises(MalformedMessage):
        decode_server(encode(message))


@pytest.mark.parametrize(
    "frame", [b"", b"\xc0", b"\x01", b"\x80", b"\x90", b"\x91\xc0", b"\xa1H", b"\xc1", b"\x91Z", b"\x91\xa1H"]
)
def test_frames_that_are_no_message(frame: bytes) -> None:
    with pytest.raises(MalformedMessage, match="not a message"):
        decode_agent(frame)


def test_a_text_frame_is_refused_as_one() -> None:
    with pytest.raises(MalformedMessage, match="text frame"):
        decode_agent('["H", 1]')


def packed(tag: str, *fields: object) -> bytes:
    return msgspec.msgpack.encode((ord(tag), *fields))


SAMPLING = [0.0, 1.0, 0, 0.0, 0, 0.0, 0.0, []]


@pytest.mark.parametrize(
    "frame",
    [
        packed("C", 1, 2),
        packed("C"),
        packed("C", "1"),
        packed("C", True),
        packed("C", 1.0),
        packed("C", -1),
        packed("C", 2**31),
        packed("D", 1, 5, [3, -(2**31) - 1]),
        packed("D", 1, 5, [2**31]),
        packed("D", 1, 5, [1] * (16 * MAX_DRAFT_TOKENS + 1)),
        packed("D", 1, 5, [1], 0, 0, 0, "text for bytes"),
        packed("O", 1, [1], 1, SAMPLING, 2**31, 0, False),
        packed("O", 1, [1], 1, SAMPLING, 1, "4", False),
        packed("D", 1, 5, [1], -1),
        packed("D", 1, 5, [1], 0, -1),
        packed("D", 1, 5, [1], 0, 2**31),
        packed("D", 1, 5, [1], 0, 0, 3),
        packed("D", 1, 5, [1], 0, 0, False),
        packed("D", 1, 5, [1], 0, 0, 0, b"", 0),
        packed("O", 1, [1], 1, [*SAMPLING, 0], 1, 0, False),
        packed("O", 1, [1], 1, {"temperature": 0}, 1, 0, False),
        packed("O", 1, [1], 1, [*SAMPLING[:-1], [["a", 1.0]]], 1, 0, False),
        packed("O", 1, [1], 1, [*SAMPLING[:-1], [[1]]], 1, 0, False),
        packed("O", 1, [1], 1, SAMPLING, 1, 0, False, "", "many"),
        packed("H", PROTOCOL_VERSION, "server", "box"),
        packed("H", PROTOCOL_VERSION, "agent", "x" * 5000),
        packed("H", "1", "agent", "box"),
        packed("H", True, "agent", "box"),
        {"type": "Hello"},
    ],
)
def test_wrong_types_ranges_and_extra_elements(frame: object) -> None:
    with pytest.raises(MalformedMessage):
        decode_agent(frame if isinstance(frame, bytes) else msgspec.msgpack.encode(frame))


@pytest.mark.parametrize("retry_after_s", [-1.0, float("nan"), float("inf"), 1e9])
def test_an_agent_is_not_told_to_wait_for_ever(retry_after_s: float) -> None:
    with pytest.raises(MalformedMessage):
        decode_server(encode(Failure("overloaded", "full", retry_after_s=retry_after_s)))


@pytest.mark.parametrize(
    "rest",
    [
        ["agent", "box"],
        [],
        [{"everything": ["is", {"new": None}]}],
        ["agent", "box", "none", None, "", 1, 2, 3],
        ["x" * 100_000],
        [msgspec.msgpack.Ext(5, b"12345678")],
    ],
)
def test_another_version_is_recognised_whatever_its_layout(rest: list[object]) -> None:
    for decode, tag in ((decode_agent, "H"), (decode_server, "W")):
        with pytest.raises(VersionMismatch, match="versions 7 and 1 met") as caught:
            decode(packed(tag, 7, *rest))
        assert (caught.value.ours, caught.value.theirs) == (PROTOCOL_VERSION, 7)


def test_the_same_layout_with_another_number_is_another_version_too() -> None:
    with pytest.raises(VersionMismatch):
        decode_agent(encode(Hello(PROTOCOL_VERSION + 1, "agent", "box")))
    welcome = Welcome(PROTOCOL_VERSION + 1, "", "", "", "", "", "coupled", 8, 8, 8, [])
    with pytest.raises(VersionMismatch):
        decode_server(encode(welcome))


def test_a_broken_greeting_of_our_own_version_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        decode_agent(packed("H", PROTOCOL_VERSION, "agent", "box", 5, 6, 7, 8))


def declared(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big")


HOSTILE = {
    "nested arrays that announce much": declared(400_000) * 900,
    "nested in the tokens": b"\x98O\x01" + declared(400_000) * 900,
    "a million empty arrays": b"\x94O\x01" + declared(MIB) + b"\x90" * MIB + b"\x01",
    "a million empty maps": b"\x94H\x01" + declared(MIB) + b"\x80" * MIB + b"\x01",
    "a million levels": b"\x91" * MIB,
    "a million levels in a greeting": b"\x93H\x02" + b"\x91" * MIB,
    "an endless token list": b"\x98O\x01" + declared(2**32 - 1) + b"\x05" * MIB,
    "a long draft": b"\x94D\x01\x05" + declared(MIB) + b"\x05" * MIB,
    "an endless string": b"\x95H\x01\xdb\xff\xff\xff\xff" + b"a" * 1000,
    "a long string": b"\x95H\x01\xdb\x00\x10\x00\x00" + b"a" * MIB,
    "endless bytes": b"\x95D\x01\x05\x90\xc6\xff\xff\xff\xff" + b"a" * 1000,
    "an endless map": b"\xdf\xff\xff\xff\xff" + b"\xa0\xc0" * 1000,
}


@pytest.mark.parametrize("frame", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_frame_neither_balloons_nor_gets_through(frame: bytes) -> None:
    for decode in (decode_agent, decode_server):
        tracemalloc.start()
        try:
            with pytest.raises(ProtocolError):
                decode(frame)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 16 * MIB


def test_an_oversized_frame_is_refused_unread() -> None:
    with pytest.raises(MalformedMessage, match="the limit is"):
        decode_agent(b"\xc1" * (MAX_AGENT_FRAME_BYTES + 1))


def test_the_longest_prompt_promised_fits() -> None:
    message = Open(1, [VOCAB - 1] * 300_000, 300_000, SamplingParams(), 128, 8)
    assert decode_agent(encode(message)) == message


def websocket_bytes(payload: bytes, *, masked: bool) -> int:
    """A frame's size on the wire: RFC 6455, 5.2."""
    header = 2 if len(payload) < 126 else 4
    return len(payload) + header + 4 * masked


@pytest.mark.parametrize("accepted", range(9))
def test_bytes_per_drafted_token_under_the_coupled_rule(accepted: int) -> None:
    drafted = [VOCAB - 1 - i for i in range(8)]
    up = websocket_bytes(encode(Draft(2**20, 100_000, drafted)), masked=True)
    down = websocket_bytes(encode(Verdict(2**20, 100_000, accepted, [VOCAB - 1], 8, 8)), masked=False)
    assert (up + down) / len(drafted) <= 16


def test_bytes_per_drafted_token_where_the_server_does_not_wait() -> None:
    """It spells out what it accepts."""
    drafted = [VOCAB - 1 - i for i in range(8)]
    up = websocket_bytes(encode(Draft(1000, 100_000, drafted, computed_us=100_000, offset=8)), masked=True)
    verdict = Verdict(1000, 100_000, 0, [*drafted, VOCAB - 1], 16, 8, price_percent=100, overtaken=8)
    assert (up + websocket_bytes(encode(verdict), masked=False)) / len(drafted) <= 16


@given(agent_messages)
def test_defaults_at_the_end_are_left_out(message: AgentMessage) -> None:
    whole, sent = msgspec.msgpack.decode(msgspec.msgpack.encode(message)), msgspec.msgpack.decode(encode(message))
    defaults = list(message.__struct_defaults__)
    left_out = len(whole) - len(sent)
    assert [*sent, *defaults[len(defaults) - left_out :]] == whole
    assert left_out == len(defaults) or sent[-1] != defaults[-1 - left_out]
