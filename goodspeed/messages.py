"""The wire: every message as a typed struct, and the two functions that turn them into bytes and back.

A message is one WebSocket binary frame holding one MessagePack array whose first element names the type. Arrays,
not maps: a draft of eight tokens at a vocabulary of 151,936 costs under 60 bytes up and under 20 down.

```
agent                                   server
  Hello  ------------------------------>
  <--------------------------- Welcome | Failure
  GetTokenizer ------------------------>          only if its digest is not in the agent's cache
  <--------------------------- Tokenizer
  Open   ------------------------------>          one per stream, any number on a link
  <--------------------------- Opened | Failure   the first budget
  Draft  ------------------------------>          names the length it builds on
  <--------------------------- Verdict            accepted, appended, the next budget
  Close  ------------------------------>
  <--------------------------- Goodbye            the server is going away
monitor: Hello(role="monitor"), then Snapshot messages come at about 4 Hz
```

Decoding is defensive: sizes are bounded before anything is built, unknown types, extra elements and wrong types are
refused, and every failure is one `MalformedMessage`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgpack
import msgspec
from msgspec import Meta, Struct

from goodspeed.errors import MalformedMessage, VersionMismatch
from goodspeed.sampling import SamplingParams
from goodspeed.verification import Rule

__all__ = [
    "MAX_AGENT_FRAME_BYTES",
    "MAX_DRAFT_TOKENS",
    "MAX_SERVER_FRAME_BYTES",
    "PROTOCOL_VERSION",
    "AgentMessage",
    "Close",
    "Draft",
    "Failure",
    "GetTokenizer",
    "Goodbye",
    "Hello",
    "Open",
    "Opened",
    "ServerMessage",
    "Snapshot",
    "Tokenizer",
    "Verdict",
    "Welcome",
    "decode_agent",
    "decode_server",
    "encode",
]

PROTOCOL_VERSION = 1
MAX_DRAFT_TOKENS = 64
MAX_AGENT_FRAME_BYTES = 2 * 2**20
"""What the server takes in one frame: room for a prompt of 300,000 tokens."""
MAX_SERVER_FRAME_BYTES = 64 * 2**20
"""What an agent takes in one frame: the largest is a tokenizer."""

_MAX_ELEMENTS = 400_000
_MAX_TEXT_BYTES = 4096

TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
StreamId = Annotated[int, Meta(ge=0, lt=2**31)]
Length = Annotated[int, Meta(ge=0, lt=2**31)]
ShortText = Annotated[str, Meta(max_length=_MAX_TEXT_BYTES)]
Drafted = Annotated[list[TokenId], Meta(max_length=MAX_DRAFT_TOKENS)]


class _Message(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One message; the tag of the subclass is the first element of the array."""


class Hello(_Message, tag="H", frozen=True):
    """The first message on a link.

    `protocol` is checked before anything else, so it stays the first field in every version.
    """

    protocol: int
    role: Literal["agent", "monitor"]
    name: ShortText
    drafter: ShortText = "none"
    fingerprint: ShortText | None = None
    """Of the draft's own tokenizer; None for a drafter without one."""
    software: ShortText = ""


class Open(_Message, tag="O", frozen=True):
    """Start a stream, or resume one from the agent's own transcript.

    `tokens` holds the prompt and, behind it, what was already generated; the first `prompt_tokens` are the prompt.
    """

    stream: StreamId
    tokens: list[TokenId]
    prompt_tokens: Length
    params: SamplingParams
    max_new_tokens: Annotated[int, Meta(ge=1, lt=2**31)]
    max_draft: Annotated[int, Meta(ge=0, le=MAX_DRAFT_TOKENS)]
    """The longest draft this stream's drafter will ever send: 0 asks for plain decoding."""
    ignore_eos: bool = False


class Draft(_Message, tag="D", frozen=True):
    """Drafted tokens, building on a committed length of `base`."""

    stream: StreamId
    base: Length
    tokens: Drafted
    q: bytes = b""
    """Ratio rule only: the truncated draft distributions (`verification.pack_q`)."""


class Close(_Message, tag="C", frozen=True):
    """The agent wants no more of this stream (stop string, user gone)."""

    stream: StreamId


class GetTokenizer(_Message, tag="K", frozen=True):
    """Send me the target's tokenizer."""


class Welcome(_Message, tag="W", frozen=True):
    """The server's answer to a `Hello` it accepts."""

    protocol: int
    server: ShortText
    model: ShortText
    fingerprint: ShortText
    """Of the target's vocabulary (`catalog.fingerprint`): what a draft model has to share."""
    tokenizer: ShortText
    """The digest of the target's tokenizer files (`catalog.digest`): what an agent's cache is keyed by."""
    rule: Rule
    vocab_size: int
    max_length: int
    """Prompt and generated tokens together, per stream."""
    max_draft: int
    eos_tokens: list[TokenId]


class Tokenizer(_Message, tag="T", frozen=True):
    """The target's tokenizer, as files by name (tokenizer.json, tokenizer_config.json)."""

    digest: ShortText
    files: dict[ShortText, bytes]


class Opened(_Message, tag="o", frozen=True):
    """The stream has a row; `budget` is how many tokens to draft first."""

    stream: StreamId
    base: Length
    budget: Length


class Verdict(_Message, tag="V", frozen=True):
    """What the target says.

    Upon a committed length of `base`, the first `accepted` tokens of the draft stand, and `tokens` follow them: the
    recovered or bonus token, or, where the draft was stale, the suffix the agent is missing.
    """

    stream: StreamId
    base: Length
    accepted: Length
    tokens: list[TokenId]
    budget: Length
    finish: Literal["stop", "length"] | None = None


class Failure(_Message, tag="F", frozen=True):
    """A typed refusal: of one stream, or, with `stream` None, of the link, which is then closed."""

    code: ShortText
    message: ShortText
    stream: StreamId | None = None
    retry_after_s: float | None = None


class Goodbye(_Message, tag="G", frozen=True):
    """The server is going away in order; streams can be resumed elsewhere, or here later."""

    reason: ShortText
    retry_after_s: float | None = None


class Snapshot(_Message, tag="S", frozen=True):
    """What a monitor draws: `goodspeed.snapshot.ServerSnapshot`, as JSON bytes."""

    snapshot: bytes


AgentMessage: TypeAlias = Hello | Open | Draft | Close | GetTokenizer
ServerMessage: TypeAlias = Welcome | Tokenizer | Opened | Verdict | Failure | Goodbye | Snapshot


def encode(message: AgentMessage | ServerMessage) -> bytes:
    """Pack one message into the bytes of one frame."""
    return msgspec.msgpack.encode(message)


def decode_agent(frame: bytes) -> AgentMessage:
    """Read what an agent sent.

    Raises:
        MalformedMessage: the frame is not exactly one agent message within the limits.
        VersionMismatch: it is a `Hello` of another protocol version, whatever else that version put into it.
    """
    return _decode(frame, AgentMessage, MAX_AGENT_FRAME_BYTES)  # type: ignore[no-any-return]


def decode_server(frame: bytes) -> ServerMessage:
    """Read what a server sent.

    Raises:
        MalformedMessage: the frame is not exactly one server message within the limits.
        VersionMismatch: it is a `Welcome` of another protocol version.
    """
    return _decode(frame, ServerMessage, MAX_SERVER_FRAME_BYTES)  # type: ignore[no-any-return]


def _decode(frame: bytes, kind: Any, max_bytes: int) -> Any:
    if len(frame) > max_bytes:
        raise MalformedMessage(f"a frame of {len(frame)} bytes; the limit is {max_bytes}")
    try:
        plain = msgpack.unpackb(
            frame,
            strict_map_key=True,
            max_array_len=_MAX_ELEMENTS,
            max_map_len=64,
            max_str_len=_MAX_TEXT_BYTES,
            max_bin_len=max_bytes,
            max_ext_len=0,
        )
        _check_version(plain)
        return msgspec.convert(plain, kind, strict=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException, msgspec.MsgspecError) as error:
        # UnicodeDecodeError and the decoder's own errors are ValueErrors; RecursionError is not (deep nesting).
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise MalformedMessage(f"not a message of this protocol: {reason}") from None


def _check_version(plain: Any) -> None:
    # `protocol` is the first field of both sides' first message in every version, so that this can always be read.
    if isinstance(plain, list) and len(plain) > 1 and plain[0] in ("H", "W"):
        theirs = plain[1]
        if type(theirs) is int and theirs != PROTOCOL_VERSION:
            raise VersionMismatch(ours=PROTOCOL_VERSION, theirs=theirs)
