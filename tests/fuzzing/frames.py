"""Frames to fuzz with: structured ones out of the message types themselves, mutations of a kept corpus, raw bytes.

What a message may hold is read off its type, so that a message or a field that is new to the protocol is fuzzed without
a word here. All is drawn from one generator of random numbers: the same seed gives the same frames.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import msgpack
import msgspec
from msgspec.inspect import (
    BoolType,
    BytesType,
    CustomType,
    DictType,
    EnumType,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    NoneType,
    StrType,
    StructType,
    TupleType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

from goodspeed.messages import PROTOCOL_VERSION, AgentMessage, ServerMessage

__all__ = ["AGENT", "SERVER", "Frames", "corpus"]

AGENT: tuple[type[msgspec.Struct], ...] = get_args(AgentMessage)
SERVER: tuple[type[msgspec.Struct], ...] = get_args(ServerMessage)

_EDGES = (0, 1, 2, 63, 64, 65, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**64 - 1, -1, -(2**31), -(2**63))
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"), 86_400.0, 86_400.1)
_SIZES = (0, 1, 1, 2, 2, 3, 4, 5, 5, 8, 9, 16, 65)
_TEXTS = (*("", "a", "agent", "edge-1", "\x00\n", "\u00e9\U0001f600") * 4, "x" * 4096, "\u00e9" * 4097)
_HEADS = bytes.fromhex("007f808f909fa0bfc0c1c2c4c5c6c7c9cacbcccfd0d3d4d9dbdcdddedfe0ff")
"""First bytes of every kind of value that MessagePack has, and one that it has not."""
_BOMBS = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\x91" * 4000,
    b"\x81\x00" * 3000,
    b"\xdc\xff\xff" * 1000,
)
"""Which promise more than they hold, or nest without end."""


def corpus(direction: str) -> list[bytes]:
    """The frames that are kept: one a line, in hexadecimal, behind a name; `direction` is `agent` or `server`."""
    lines = Path(__file__).with_name("corpus").joinpath(f"{direction}.txt").read_text(encoding="utf-8").splitlines()
    return [bytes.fromhex(line.rpartition(" ")[2]) for line in lines if line and not line.startswith("#")]


class Frames:
    """An endless supply.

    Args:
        kinds: the messages of one direction.
        kept: frames to mutate.
        noise: draws everything.
    """

    def __init__(self, kinds: Sequence[type[msgspec.Struct]], kept: Sequence[bytes], noise: random.Random) -> None:
        self._infos = [_struct(kind) for kind in kinds]
        self._kept = list(kept)
        self._noise = noise
        self._mutations: list[Callable[[bytearray], None]] = [
            self._flip, self._overwrite, self._cut_out, self._put_in, self._double, self._cut_off,
        ]  # fmt: skip

    def any(self) -> bytes:
        """A frame of any kind: half of them structured, most of the others mutated."""
        chance = self._noise.random()
        if chance < 0.5:
            return self.structured()
        return self.mutated() if chance < 0.95 else self.raw()

    def structured(self, *, wild: float = 0.03) -> bytes:
        """A message; each of its values is out of its range, or of another type, with the chance `wild`."""
        info = self._noise.choice(self._infos)
        packed: bytes = msgpack.packb(self._elements(info, wild), strict_types=False)
        return packed

    def mutated(self) -> bytes:
        """A kept frame with some of its bytes changed, or a structured one with one of its values."""
        noise = self._noise
        if noise.random() < 0.3:
            return self._regrown(self.structured(wild=0.0))
        mutable = bytearray(noise.choice(self._kept) if self._kept else self.structured(wild=0.0))
        for _ in range(1 + int(noise.expovariate(0.7))):
            noise.choice(self._mutations)(mutable)
        return bytes(mutable)

    def raw(self) -> bytes:
        """Bytes without any meaning, or with a bad one."""
        noise = self._noise
        if noise.random() < 0.2:
            return bytes(noise.choice(_BOMBS))
        return bytes([noise.choice(_HEADS)]) + noise.randbytes(noise.randrange(64))

    def _elements(self, info: StructType, wild: float) -> list[Any]:
        noise = self._noise
        values = [self._value(field.type, wild) for field in info.fields]
        if info.fields and info.fields[0].name == "protocol" and noise.random() < 0.8:
            values[0] = PROTOCOL_VERSION
        required = sum(field.required for field in info.fields)
        # Defaults at the end may be left out.
        values = values[: noise.randint(required, len(values))] if noise.random() < 0.5 else values
        if noise.random() < wild:
            values = values[: noise.randrange(len(values) + 1)] + [self._stray() for _ in range(noise.randrange(3))]
        return values if info.tag is None else [info.tag, *values]

    def _value(self, kind: Type, wild: float) -> Any:
        if self._noise.random() < wild:
            return self._stray()
        return self._fitting(kind, wild)

    def _fitting(self, kind: Type, wild: float) -> Any:
        noise = self._noise
        match kind:
            case IntType(ge=ge, gt=gt, le=le, lt=lt):
                low = ge if ge is not None else gt + 1 if gt is not None else -(2**63)
                high = le if le is not None else lt - 1 if lt is not None else 2**63 - 1
                wanted = noise.choice((*_EDGES, noise.randrange(100), noise.randrange(10)))
                return min(max(wanted, low), high)
            case FloatType():
                return noise.choice((*_FLOATS, noise.random()))
            case BoolType():
                return noise.random() < 0.5
            case StrType(max_length=most):
                return noise.choice(_TEXTS)[:most]
            case BytesType():
                return noise.randbytes(noise.choice((0, 1, 6, 192, 1000)))
            case ListType(item_type=item) | VarTupleType(item_type=item):
                size = noise.choice(_SIZES)
                if isinstance(item, IntType) and noise.random() < 0.9:
                    return noise.choices(range(100), k=size)
                return [self._value(item, wild) for _ in range(size)]
            case TupleType(item_types=items):
                return [self._value(item, wild) for item in items]
            case DictType(key_type=key, value_type=value):
                pairs = ((self._value(key, 0.0), self._value(value, wild)) for _ in range(noise.randrange(3)))
                return dict(pairs)
            case LiteralType(values=values):
                return noise.choice(values)
            case EnumType(cls=members):
                return noise.choice([member.value for member in members])
            case StructType():
                return self._elements(kind, wild)
            case UnionType(types=types):
                return self._fitting(noise.choice(types), wild)
            case NoneType() | CustomType():
                return None
        raise AssertionError(f"no message holds a {kind}, or this has to learn of it")

    def _stray(self) -> Any:
        """A value of any type."""
        noise = self._noise
        what = noise.randrange(9)
        if what < 2:
            return noise.choice(_EDGES)
        strays: tuple[Any, ...] = (
            None, noise.choice(_FLOATS), "x" * noise.choice((0, 1, 5000)), noise.randbytes(noise.randrange(40)),
            [], {}, [[[[]]], {"a": 1}],
        )  # fmt: skip
        return strays[what - 2]

    def _regrown(self, frame: bytes) -> bytes:
        """A frame one of whose values, at any depth, is another."""
        tree = msgpack.unpackb(frame, strict_map_key=False)
        branches = [tree] if isinstance(tree, list) and tree else []
        for branch in branches:
            branches += [twig for twig in branch if isinstance(twig, list) and twig]
        if branches:
            branch = self._noise.choice(branches)
            branch[self._noise.randrange(len(branch))] = self._stray()
        regrown: bytes = msgpack.packb(tree)
        return regrown

    def _flip(self, frame: bytearray) -> None:
        if frame:
            frame[self._noise.randrange(len(frame))] ^= 1 << self._noise.randrange(8)

    def _overwrite(self, frame: bytearray) -> None:
        if frame:
            frame[self._noise.randrange(len(frame))] = self._noise.choice(_HEADS)

    def _cut_out(self, frame: bytearray) -> None:
        start = self._noise.randrange(len(frame) + 1)
        del frame[start : start + self._noise.randrange(1, 9)]

    def _put_in(self, frame: bytearray) -> None:
        start = self._noise.randrange(len(frame) + 1)
        frame[start:start] = self._noise.randbytes(self._noise.randrange(1, 9))

    def _double(self, frame: bytearray) -> None:
        start = self._noise.randrange(len(frame) + 1)
        part = frame[start : start + self._noise.randrange(1, 33)]
        frame[start:start] = part

    def _cut_off(self, frame: bytearray) -> None:
        del frame[self._noise.randrange(len(frame) + 1) :]


def _struct(kind: type[msgspec.Struct]) -> StructType:
    info = type_info(kind)
    assert isinstance(info, StructType)
    return info
