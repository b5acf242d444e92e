"""What a server says of itself when somebody links up, and whom it lets do what."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

import goodspeed
from goodspeed.catalog import Files, digest, fingerprint
from goodspeed.engine import Engine
from goodspeed.errors import InvalidRequest, TokenizerMismatch
from goodspeed.messages import (
    MAX_AGENT_FRAME_BYTES,
    MAX_DRAFT_TOKENS,
    PROTOCOL_VERSION,
    Hello,
    Redraft,
    Tokenizer,
    Welcome,
    encode,
)
from goodspeed.verification import Rule
from goodspeed_server.tokens import Role, Token

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ServedModel", "check_role"]

_TOKEN_BYTES = 5
_FRAME_ROOM_BYTES = 2**16
"""The largest frame taken holds twice the longest prompt and this much."""

_ROLES: dict[str, tuple[Role, ...]] = {
    "agent": ("agent", "admin"),
    "monitor": ("monitor", "admin"),
    "control": ("admin",),
}
"""Which tokens open a link of a kind."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server tells its agents of its target."""

    server: str
    name: str
    fingerprint: str
    weights: str
    """The digest of its configuration and weights."""
    tokenizer_digest: str
    tokenizer_frame: bytes
    """A `Tokenizer` message, encoded once: it can be as large as all else a server ever says to an agent."""
    rule: Rule
    vocab_size: int
    max_length: int
    max_frame_bytes: int
    """A larger frame is refused with a sentence; the listener cuts off what is many times larger."""
    eos_tokens: frozenset[int]

    @classmethod
    def of(
        cls, name: str, model: PreTrainedModel, weights: str, tokenizer: Files, engine: Engine, rule: Rule
    ) -> ServedModel:
        """What there is to tell of a target, by the name it was asked for, that an engine serves under a rule."""
        return cls(
            server=f"goodspeed {goodspeed.__version__} on {platform.node() or 'a server'}",
            name=name,
            fingerprint=fingerprint(tokenizer),
            weights=weights,
            tokenizer_digest=digest(tokenizer),
            tokenizer_frame=encode(Tokenizer(digest(tokenizer), tokenizer)),
            rule=rule,
            vocab_size=engine.vocab_size,
            max_length=engine.max_length,
            max_frame_bytes=min(MAX_AGENT_FRAME_BYTES, 2 * _TOKEN_BYTES * engine.max_length + _FRAME_ROOM_BYTES),
            eos_tokens=_eos_tokens(model),
        )

    def welcome(self, *, waits: bool) -> Welcome:
        """The answer to a `Hello`; `waits` as in `Welcome`."""
        return Welcome(
            protocol=PROTOCOL_VERSION,
            server=self.server,
            model=self.name,
            fingerprint=self.fingerprint,
            tokenizer=self.tokenizer_digest,
            weights=self.weights,
            rule=self.rule,
            vocab_size=self.vocab_size,
            max_length=self.max_length,
            max_draft=MAX_DRAFT_TOKENS,
            eos_tokens=sorted(self.eos_tokens),
            waits=waits,
        )

    def check_fingerprint(self, drafting: Hello | Redraft) -> None:
        """See that a draft's tokens are the target's.

        Raises:
            TokenizerMismatch: they are not.
        """
        if drafting.fingerprint is not None and drafting.fingerprint != self.fingerprint:
            raise TokenizerMismatch(
                f"the tokenizer of draft {drafting.drafter!r} differs from that of {self.name!r}, so its token "
                "ids mean something else: take a draft of the target's own family, or --draft suffix, which needs none"
            )


def _eos_tokens(model: PreTrainedModel) -> frozenset[int]:
    """Every token that ends a text, by the model's generation config or, failing that, its config."""
    eos = model.generation_config.eos_token_id if model.generation_config else None
    eos = model.config.get_text_config().eos_token_id if eos is None else eos
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)


def check_role(hello: Hello, token: Token | None, *, trusts_everybody: bool) -> None:
    """See that whoever links up may do what it comes for.

    Args:
        hello: says what that is.
        token: what it showed; None where nobody has to show anything.
        trusts_everybody: whether who shows no token may change the server.

    Raises:
        InvalidRequest: it may not.
    """
    roles = _ROLES[hello.role]
    if token is not None and token.role not in roles:
        kind = {"agent": "an agent", "monitor": "a monitor", "control": "who controls the server"}[hello.role]
        raise InvalidRequest(
            f"the token {token.name!r} is {token.role}'s, and does not open this door: {kind} needs one of role "
            f"{' or '.join(roles)}",
            code="forbidden",
        )
    if token is None and hello.role == "control" and not trusts_everybody:
        raise InvalidRequest(
            "others reach this server and it asks for no tokens, so it is not changed from afar: start it with "
            "--tokens, and show an admin's",
            code="forbidden",
        )
