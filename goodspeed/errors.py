"""Every exception GoodSpeed raises on purpose.

```
GoodSpeedError
├── InvalidRequest        a value from a user or a peer is out of range
├── ProtocolError         a peer broke the protocol; the link is closed
│   ├── MalformedMessage      the bytes are no message of ours
│   └── VersionMismatch       the peer speaks another protocol version
├── Refused               the server said no: `code` says why
│   └── Overloaded            no room now; try again after `retry_after_s`
├── LinkLost              the connection went away and could not be made again
├── ModelError            a model cannot be used here
│   ├── UnknownModel          the name is neither bundled, nor a path, nor loadable
│   ├── UnsupportedModel      its architecture cannot be served (recurrent state)
│   ├── TargetChanged         the server came back with another target
│   └── TokenizerMismatch     draft and target do not share a tokenizer
├── RankLost              a rank of a tensor-parallel target is gone, and with it the target
├── StreamFault           one stream cannot go on here; `code` says why, and all others go on
├── CorruptData           a file of ours is cut off, or no such file
├── SchedulerFault        a scheduler planned what cannot be
├── RuleFault             a verification rule judged what cannot be
└── EngineFull            every row of the KV slab is taken
```

An exception carries its data as attributes; `str()` makes the sentence a person reads, and the sentence says
what to do.
"""

from __future__ import annotations

__all__ = [
    "CorruptData",
    "EngineFull",
    "GoodSpeedError",
    "InvalidRequest",
    "LinkLost",
    "MalformedMessage",
    "ModelError",
    "Overloaded",
    "ProtocolError",
    "RankLost",
    "Refused",
    "RuleFault",
    "SchedulerFault",
    "StreamFault",
    "TargetChanged",
    "TokenizerMismatch",
    "UnknownModel",
    "UnsupportedModel",
    "VersionMismatch",
]


class GoodSpeedError(Exception):
    """The root of the tree."""

    code = "error"
    """The name that crosses the wire in a `messages.Failure`."""


class InvalidRequest(GoodSpeedError):
    """A value from a user or a peer is out of range; nothing was changed."""

    code = "invalid_request"

    def __init__(self, message: str, *, code: str = "invalid_request", param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        """The value's own name, where it has one."""


class ProtocolError(GoodSpeedError):
    """The peer broke the protocol: what follows on this link cannot be trusted."""

    code = "protocol_error"


class MalformedMessage(ProtocolError):
    """The bytes are not a message of this protocol."""

    code = "malformed_message"


class VersionMismatch(ProtocolError):
    """The peer speaks another version of the protocol."""

    code = "version_mismatch"

    def __init__(self, ours: int, theirs: int) -> None:
        super().__init__(ours, theirs)
        self.ours = ours
        self.theirs = theirs

    def __str__(self) -> str:
        # Either side may read this: the side that notices also tells its peer.
        return (
            f"protocol versions {self.theirs} and {self.ours} met: goodspeed has to be upgraded on the older side, "
            f"which speaks version {min(self.theirs, self.ours)}"
        )


class Refused(GoodSpeedError):
    """The server refused a link or a stream; `code` is its reason, in the words of `messages.Failure`."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class Overloaded(Refused):
    """The server has no room now."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message, code="overloaded")
        self.retry_after_s = retry_after_s


class LinkLost(GoodSpeedError):
    """The connection to the server went away and could not be made again."""

    code = "link_lost"

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """How long the server asked to be left alone."""


class ModelError(GoodSpeedError):
    """A model cannot be used here."""

    code = "model_error"


class UnknownModel(ModelError):
    """The name is neither a bundled model, nor a local folder, nor something transformers can load."""

    code = "unknown_model"


class UnsupportedModel(ModelError):
    """The architecture cannot be served, for example because it keeps a recurrent state instead of slots."""

    code = "unsupported_model"


class TargetChanged(ModelError):
    """The server came back with another target, on which a text that was begun cannot be continued."""

    code = "target_changed"


class TokenizerMismatch(ModelError):
    """Draft and target turn text into different token ids, so a draft would mean nothing to the target."""

    code = "tokenizer_mismatch"


class RankLost(GoodSpeedError):
    """One of the processes that a target is spread over is gone, or could not do its part: no other can go on."""

    code = "rank_lost"


class StreamFault(GoodSpeedError):
    """One stream cannot go on at this server, and no other is concerned: `code` is the reason, as in `Failure`."""

    code = "stream_fault"

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class CorruptData(GoodSpeedError):
    """A file that GoodSpeed wrote cannot be read: it is cut off, or something else."""

    code = "corrupt_data"


class SchedulerFault(GoodSpeedError):
    """A scheduler planned what cannot be: somebody else's class, most likely."""

    code = "scheduler_fault"


class RuleFault(GoodSpeedError):
    """A verification rule judged what cannot be, or failed: somebody else's class, most likely."""

    code = "rule_fault"


class EngineFull(GoodSpeedError):
    """Every row of the KV slab is taken."""

    code = "engine_full"
