"""The wire: every message as a typed struct, and the two functions that turn them into bytes and back.

A message is one WebSocket binary frame holding one MessagePack array whose first element names the type. Arrays,
not maps, and without the defaults at their ends: a draft of eight tokens at a vocabulary of 151,936 costs at most
63 bytes up and 22 down, frame headers included (`bench.wire`); a server that does not wait spells out what it accepts,
in 41 more.

```
agent                                   server
  Hello  ------------------------------>
  <--------------------------- Welcome | Failure
  GetTokenizer ------------------------>          only if its digest is not in the agent's cache
  <--------------------------- Tokenizer
  Open   ------------------------------>          one per stream, any number on a link
  <--------------------------- Queued             no row yet: its place, and again when that changes
  <--------------------------- Opened | Failure   the first budget
  Draft  ------------------------------>          names the length it builds on
  <--------------------------- Verdict            accepted, appended, the next budget
  Close  ------------------------------>
  <--------------------------- Goodbye            the server is going away
  <--------------------------- Welcome            again: from here on its rounds are of the other kind
monitor: Hello(role="monitor"), then Snapshot messages come at about 4 Hz
control: Hello(role="control"), then every Control is answered by one Controlled, or by the Failure that ends the link
```

A server may be told to change its scheduler while it runs, and its kind of rounds with it. Then every agent is sent the
`Welcome` again with the other `waits`, and behind it, for every stream that is open, a `Verdict` that commits nothing
and says what to draft. Messages are in order on both ways, so each side knows what the other meant: what was drafted
before the `Welcome` came is a draft or a guess like any other, except that a piece with an `offset` is dropped where
drafts are waited for. Verdicts to those streams spell out their tokens from then on, whatever `waits` says: which draft
a number would count in, the agent could not know.

Frames are packed by msgpack and read by msgspec: two implementations of one format meet on every link. Decoding is
defensive: the frame's size is bounded, and it is decoded straight into the typed structs, so that the first element
of a wrong type ends it before anything is built from what follows; unknown types and extra elements are refused, and
every failure is one `MalformedMessage`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Literal, TypeAlias, TypeVar

import msgpack
import msgspec
from msgspec import Meta, Struct

from goodspeed.control import Change
from goodspeed.errors import MalformedMessage, VersionMismatch
from goodspeed.sampling import SamplingParams

__all__ = [
    "MAX_AGENT_FRAME_BYTES",
    "MAX_DRAFT_TOKENS",
    "MAX_SERVER_FRAME_BYTES",
    "MAX_SESSION_BYTES",
    "PROTOCOL_VERSION",
    "AgentMessage",
    "Close",
    "Control",
    "Controlled",
    "Draft",
    "DraftEnd",
    "Failure",
    "GetTokenizer",
    "Goodbye",
    "Hello",
    "Open",
    "Opened",
    "Queued",
    "Redraft",
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

MAX_TEXT = 4096
"""Characters, in whatever a peer says of itself."""
MAX_SESSION_BYTES = 32

TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
Asked = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
"""What an agent asks for one of its streams: whether that can be is said to the stream, and does not cost the link."""
StreamId = Annotated[int, Meta(ge=0, lt=2**31)]
Length = Annotated[int, Meta(ge=0, lt=2**31)]
ShortText = Annotated[str, Meta(max_length=MAX_TEXT)]
Drafted = Annotated[list[Asked], Meta(max_length=16 * MAX_DRAFT_TOKENS)]
"""A draft longer than its budget is one stream's trouble, and the link's only where it is absurd."""
Percent = Annotated[int, Meta(ge=0, le=100)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]


class _Message(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One message; the tag of the subclass, a letter as one byte, is the first element of the array."""


class Hello(_Message, tag=ord("H"), frozen=True):
    """The first message on a link.

    `protocol` is checked before anything else, so it stays the first field in every version.
    """

    protocol: int
    role: Literal["agent", "monitor", "control"]
    name: ShortText
    drafter: ShortText = "none"
    fingerprint: ShortText | None = None
    """Of the draft's own tokenizer; None for a drafter without one, and for one that the agent compares itself."""
    software: ShortText = ""
    session: Annotated[bytes, Meta(max_length=MAX_SESSION_BYTES)] = b""
    """Random bytes that nobody else knows, the same on every link by which an agent goes on where an earlier one broke
    off; or nothing. For a while the server keeps what it has cached of the session's streams, by their numbers, and it
    ends an older link of the session that still seems to stand."""
    attempt: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    """How often the session's agent had begun to connect before: of two links that with the higher number is the newer,
    whichever of them the server hears first."""


class Open(_Message, tag=ord("O"), frozen=True):
    """Start a stream, or resume one from the agent's own transcript.

    `tokens` holds the prompt and, behind it, what was already generated; the first `prompt_tokens` are the prompt.
    """

    stream: StreamId
    tokens: list[Asked]
    prompt_tokens: Asked
    params: SamplingParams
    max_new_tokens: Asked
    max_draft: Asked
    """The longest draft this stream's drafter will ever send: 0 asks for plain decoding."""
    ignore_eos: bool = False
    domain: ShortText = ""
    """What the text is about, in the user's own words: kept with what a server records, and used for nothing else."""
    logprobs: Asked = -1
    """How many alternatives' log-probabilities to send with every committed token, besides its own; -1 for nothing."""


class DraftEnd(IntEnum):
    """Why a draft ends where it does."""

    FAR_ENOUGH = 0
    """As far as was asked for, or as far as there is yet: more may come."""
    PRICED_OUT = 1
    """The next token is not worth its price."""
    NOTHING_TO_SAY = 2
    """The drafter has no next token."""


class Draft(_Message, tag=ord("D"), frozen=True):
    """Drafted tokens, building on a committed length of `base`."""

    stream: StreamId
    base: Length
    tokens: Drafted
    computed_us: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    """How many microseconds the drafter computed, for its other streams in between too; the server believes no more
    than it saw pass."""
    offset: Length = 0
    """How many tokens upon the same `base` were sent before these; only where the server does not wait."""
    end: DraftEnd = DraftEnd.FAR_ENOUGH
    q: bytes = b""
    """Ratio rule only: the truncated draft distributions (`verification.pack_q`)."""


class Close(_Message, tag=ord("C"), frozen=True):
    """The agent wants no more of this stream (stop string, user gone)."""

    stream: StreamId


class Redraft(_Message, tag=ord("R"), frozen=True):
    """From now on this link's drafts come of another drafter: what is believed of the one before no longer holds.

    Guesses that were sent before, and that nobody has asked the target about yet, are dropped: what is sent next begins
    anew.
    """

    drafter: ShortText
    fingerprint: ShortText | None = None
    """As in `Hello`."""


class GetTokenizer(_Message, tag=ord("K"), frozen=True):
    """Send me the target's tokenizer."""


class Control(_Message, tag=ord("X"), frozen=True):
    """Change something of the server, if its operator may say so on this link, and say what is in force."""

    change: Change | None = None
    """None only asks."""


class Welcome(_Message, tag=ord("W"), frozen=True):
    """The server's answer to a `Hello` it accepts, and said again when `waits` has changed."""

    protocol: int
    server: ShortText
    model: ShortText
    fingerprint: ShortText
    """Of the target's vocabulary (`catalog.fingerprint`): what a draft model has to share."""
    tokenizer: ShortText
    """The digest of the target's tokenizer files (`catalog.digest`): what an agent's cache is keyed by."""
    weights: ShortText
    """Names the target's configuration and weights (`catalog.weights_digest`): a stream may go on only on the same
    target."""
    rule: ShortText
    """The name of the rule by which drafts are verified, and drawn."""
    vocab_size: Length
    max_length: Length
    """Prompt and generated tokens together, per stream."""
    max_draft: Length
    eos_tokens: list[TokenId]
    waits: bool = True
    """Whether a stream is verified only once its draft is here, the budget being its length. A server that does not
    wait decodes on; the budget is how far ahead of the committed tokens to guess, in pieces, whenever there is one."""


class Tokenizer(_Message, tag=ord("T"), frozen=True):
    """The target's tokenizer, as files by name (tokenizer.json, tokenizer_config.json)."""

    digest: ShortText
    files: Annotated[dict[ShortText, bytes], Meta(max_length=64)]


class Queued(_Message, tag=ord("q"), frozen=True):
    """The stream has to wait for a row; said again, not too often, when its place has changed."""

    stream: StreamId
    place: Annotated[int, Meta(ge=1, lt=2**31)]
    """1 for the stream that is given the next row, if nobody comes or goes before."""


class Opened(_Message, tag=ord("o"), frozen=True):
    """The stream has a row; `budget` is how many tokens to draft first, and what follows it as in `Verdict`."""

    stream: StreamId
    base: Length
    budget: Length
    price_percent: Percent = 0
    overtaken: Length = 0


class Verdict(_Message, tag=ord("V"), frozen=True):
    """What the target says.

    Upon a committed length of `base`, the first `accepted` tokens of the draft stand, and `tokens` follow them: the
    recovered or bonus token, or, where the draft was stale, the suffix the agent is missing. A server that does not
    wait spells out all of them, and accepts nothing by number. Without any it only says what to draft.
    """

    stream: StreamId
    base: Length
    accepted: Length
    tokens: list[TokenId]
    budget: Length
    verified: Length = 0
    """How many guessed tokens the pass verified: those that were here in time, and no more than were granted."""
    price_percent: Percent = 0
    """A token is worth its price while the chance that it is accepted, all that are verified before it included, is at
    least so many hundredths; an agent that can tell may stop short of its budget."""
    overtaken: Length = 0
    """How many of the budget a server that does not wait expects to overtake. They are not verified and have no price:
    if one of them is wrong, nor are those behind it."""
    finish: Literal["stop", "length"] | None = None
    logprobs: Annotated[bytes, Meta(max_length=MAX_SERVER_FRAME_BYTES)] = b""
    """Of the accepted tokens and of `tokens`, where they were asked for (`logprobs.unpack_logprobs`); of a suffix that
    an agent was missing there are none."""
    ended_within: bool = False
    """Whether the text ends within the accepted tokens, so that none of the target's own follows them."""

    @property
    def stood(self) -> int:
        """How many of the verified tokens were accepted, also where they are spelled out."""
        return self.accepted + len(self.tokens) - 1 + self.ended_within if self.verified else 0


class Failure(_Message, tag=ord("F"), frozen=True):
    """A typed refusal: of one stream, or, with `stream` None, of the link, which is then closed."""

    code: ShortText
    message: ShortText
    stream: StreamId | None = None
    retry_after_s: Seconds | None = None


class Goodbye(_Message, tag=ord("G"), frozen=True):
    """The server is going away in order; streams can be resumed elsewhere, or here later."""

    reason: ShortText
    retry_after_s: Seconds | None = None


class Snapshot(_Message, tag=ord("S"), frozen=True):
    """What a monitor draws: `goodspeed.snapshot.ServerSnapshot`, as JSON bytes."""

    snapshot: bytes


class Controlled(_Message, tag=ord("x"), frozen=True):
    """What is in force, and what was changed: `goodspeed.control.ControlState`, as JSON bytes."""

    state: bytes


AgentMessage: TypeAlias = Hello | Open | Draft | Close | Redraft | GetTokenizer | Control
ServerMessage: TypeAlias = Welcome | Tokenizer | Queued | Opened | Verdict | Failure | Goodbye | Snapshot | Controlled


class _AgentGreeting(Struct, array_like=True, tag=ord("H")):
    """What can be read of a `Hello` of any version."""

    protocol: int


class _ServerGreeting(Struct, array_like=True, tag=ord("W")):
    """What can be read of a `Welcome` of any version."""

    protocol: int


_AGENT: msgspec.msgpack.Decoder[AgentMessage] = msgspec.msgpack.Decoder(AgentMessage)
_SERVER: msgspec.msgpack.Decoder[ServerMessage] = msgspec.msgpack.Decoder(ServerMessage)
_GREETING = msgspec.msgpack.Decoder(_AgentGreeting | _ServerGreeting)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

MessageT = TypeVar("MessageT")


def encode(message: AgentMessage | ServerMessage) -> bytes:
    """Pack one message into the bytes of one frame, without the defaults at its end: a reader fills them in."""
    elements = msgspec.to_builtins(message, builtin_types=(bytes,))
    for default in reversed(message.__struct_defaults__):
        if elements[-1] != default:
            break
        elements.pop()
    packed: bytes = msgpack.packb(elements)
    return packed


def decode_agent(frame: bytes | str) -> AgentMessage:
    """Read what an agent sent.

    Raises:
        MalformedMessage: the frame is not exactly one agent message within the limits.
        VersionMismatch: it is a `Hello` of another protocol version, whatever else that version put into it.
    """
    return _decode(frame, _AGENT, MAX_AGENT_FRAME_BYTES)


def decode_server(frame: bytes | str) -> ServerMessage:
    """Read what a server sent.

    Raises:
        MalformedMessage: the frame is not exactly one server message within the limits.
        VersionMismatch: it is a `Welcome` of another protocol version, whatever else that version put into it.
    """
    return _decode(frame, _SERVER, MAX_SERVER_FRAME_BYTES)


def _decode(frame: bytes | str, decoder: msgspec.msgpack.Decoder[MessageT], max_bytes: int) -> MessageT:
    if isinstance(frame, str):
        raise MalformedMessage("a text frame; every message of this protocol is one binary frame")
    if len(frame) > max_bytes:
        raise MalformedMessage(f"a frame of {len(frame)} bytes; the limit is {max_bytes}")
    try:
        message = decoder.decode(frame)
    except _UNREADABLE as error:
        _check_version(frame)
        raise MalformedMessage(f"not a message of this protocol: {str(error)[:200]}") from None
    if isinstance(message, Hello | Welcome) and message.protocol != PROTOCOL_VERSION:
        raise VersionMismatch(ours=PROTOCOL_VERSION, theirs=message.protocol)
    return message


def _check_version(frame: bytes) -> None:
    """See whether a frame that cannot be read is a greeting of another version, laid out in its own way."""
    try:
        greeting = _GREETING.decode(frame)
    except _UNREADABLE:
        return
    if greeting.protocol != PROTOCOL_VERSION:
        raise VersionMismatch(ours=PROTOCOL_VERSION, theirs=greeting.protocol)
