"""Who may link up: secrets that were handed out once, and of which only hashes are kept."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
from filelock import FileLock

from goodspeed.errors import CorruptData, InvalidRequest

__all__ = ["Role", "Token", "TokenStore"]

Role: TypeAlias = Literal["agent", "monitor", "admin"]

_PREFIX = "gst_"
_SECRET_BYTES = 32
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What a secret stands for.

    Raises:
        InvalidRequest: a value is out of range.
    """

    name: str
    role: Role
    digest: str
    """SHA-256 of the secret, in hexadecimal: the secret is random enough for a plain hash."""
    weight: float = 1.0
    """`omega`: how much the utility of its agents counts."""
    max_streams: int | None = None
    """At a time, over all links; None for no limit."""
    tokens_per_minute: int | None = None
    """Committed tokens; None for no limit."""
    created_s: float = field(default_factory=time.time)
    """Since the epoch."""

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable() or len(self.name) > 100:
            raise InvalidRequest(f"{self.name!r} is no name: take one to a hundred printable characters")
        if not _DIGEST.fullmatch(self.digest):
            raise InvalidRequest(f"the digest of {self.name!r} is none: it was changed by hand, so make the token anew")
        if not 0.0 < self.weight <= 1e6:
            raise InvalidRequest(f"weight is {self.weight}: it must be above 0 and at most 1,000,000")
        for what, limit in (("max-streams", self.max_streams), ("tokens-per-minute", self.tokens_per_minute)):
            if limit is not None and limit < 1:
                raise InvalidRequest(f"{what} is {limit}: it must be 1 or above; leave it out for no limit")


class TokenStore:
    """The tokens in a file; a change is written whole, beside it, and moved into its place.

    Args:
        path: of the file; it is made when the first token is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[tuple[int, int] | None, tuple[Token, ...]] = (None, ())

    def tokens(self) -> Sequence[Token]:
        """All of them, oldest first, as the file says now.

        Raises:
            CorruptData: it cannot be read.
        """
        try:
            about = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise CorruptData(f"{self._path} cannot be read as a file of tokens: {error}") from None
        version = (about.st_mtime_ns, about.st_ino)
        if version != self._read[0]:
            try:
                found = msgspec.json.decode(self._path.read_bytes(), type=tuple[Token, ...])
            except (OSError, msgspec.MsgspecError, InvalidRequest) as error:
                raise CorruptData(f"{self._path} cannot be read as a file of tokens: {error}") from None
            self._read = version, found
        return self._read[1]

    def create(
        self,
        name: str,
        role: Role,
        *,
        weight: float = 1.0,
        max_streams: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> str:
        """Make a token.

        Returns:
            Its secret, which nobody can find out afterwards.

        Raises:
            InvalidRequest: there is one of that name, or a value is out of range.
            CorruptData: the file cannot be read.
        """
        with self._alone():
            return self._create(name, role, weight, max_streams, tokens_per_minute)

    def _create(
        self, name: str, role: Role, weight: float, max_streams: int | None, tokens_per_minute: int | None
    ) -> str:
        known = self.tokens()
        if any(token.name == name for token in known):
            raise InvalidRequest(f"there is a token named {name!r} already: revoke it first, or choose another name")
        secret = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        made = Token(
            name=name,
            role=role,
            digest=_digest(secret),
            weight=weight,
            max_streams=max_streams,
            tokens_per_minute=tokens_per_minute,
        )
        self._write([*known, made])
        return secret

    def revoke(self, name: str) -> None:
        """Take a token back.

        Raises:
            InvalidRequest: there is none of that name.
            CorruptData: the file cannot be read.
        """
        with self._alone():
            known = self.tokens()
            left = [token for token in known if token.name != name]
            if len(left) == len(known):
                names = ", ".join(token.name for token in known) or "none at all"
                raise InvalidRequest(f"there is no token named {name!r}: there are {names}")
            self._write(left)

    def find(self, secret: str) -> Token | None:
        """The token that a secret stands for; how long it takes says nothing of how near a wrong one is.

        Raises:
            CorruptData: the file cannot be read.
        """
        digest, found = _digest(secret), None
        for token in self.tokens():
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One change at a time, whoever makes it: a token that is revoked is not to come back with another's change."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = FileLock(self._path.with_name(self._path.name + ".lock"), mode=0o600)
            lock.acquire()
        except OSError as error:
            raise InvalidRequest(f"{self._path} cannot be written: {error.strerror}; choose another --tokens") from None
        try:
            yield
        finally:
            lock.release()

    def _write(self, tokens: Sequence[Token]) -> None:
        beside = self._path.with_name(self._path.name + ".unfinished")
        try:
            beside.unlink(missing_ok=True)
            with open(beside, "wb", opener=_private) as file:
                file.write(msgspec.json.format(msgspec.json.encode(tokens), indent=2))
                file.flush()
                os.fsync(file.fileno())
            if self._path.exists():
                # Another user's change is not to take the file away from the server's.
                about = self._path.stat()
                with contextlib.suppress(PermissionError):
                    os.chown(beside, about.st_uid, about.st_gid)
            os.replace(beside, self._path)
        except OSError as error:
            if beside.exists():
                beside.unlink()
            raise InvalidRequest(f"{self._path} cannot be written: {error.strerror}; choose another --tokens") from None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
