"""The target's tokenizer, as the server hands it out, kept on disk by digest.

Everything here comes from a peer: names and digest are checked before they touch the disk, contents against the
digest, and the chat template runs in a sandbox.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import platformdirs
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from goodspeed.catalog import Files, digest
from goodspeed.errors import InvalidRequest, ProtocolError
from goodspeed.messages import Tokenizer, Welcome, decode_server, encode

__all__ = ["TargetTokenizer", "TokenizerCache"]

_log = logging.getLogger(__name__)

_NAMES = frozenset({"tokenizer.json", "tokenizer_config.json"})
_DIGEST = re.compile(r"[0-9a-f]{16,64}")


class TokenizerCache:
    """Tokenizers on disk, one file each, named by digest; and beside them what each server said of itself last.

    Args:
        folder: where; by default `GOODSPEED_CACHE`, or the user's own cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        chosen = os.environ.get("GOODSPEED_CACHE")
        self.folder = folder or Path(chosen or platformdirs.user_cache_dir("goodspeed")) / "tokenizers"

    def load(self, name: str) -> Files | None:
        """The files of a digest, or None if they are not here or no longer what they were.

        Raises:
            ProtocolError: the digest is not one.
        """
        path = self._path(name)
        try:
            message = decode_server(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("a cached tokenizer cannot be read and is fetched again: %s", error)
            return None
        except ProtocolError:
            _log.warning("a cached tokenizer is damaged or of another version, and is fetched again: %s", path)
            return None
        if not isinstance(message, Tokenizer) or digest(message.files) != name:
            _log.warning("the cached tokenizer %s is damaged and is fetched again", name)
            return None
        return message.files

    def store(self, name: str, files: Files) -> None:
        """Keep what a server sent. A folder that cannot be written costs a fetch the next time, nothing else.

        Raises:
            ProtocolError: the files are not those of the digest, or not a tokenizer's.
        """
        path = self._path(name)
        if files.keys() != _NAMES:
            raise ProtocolError(f"the server's tokenizer consists of {sorted(files)}, not of {sorted(_NAMES)}")
        if digest(files) != name:
            raise ProtocolError("the server's tokenizer does not match the digest it announced")
        try:
            _write(path, encode(Tokenizer(name, files)))
        except OSError as error:
            _log.warning("the tokenizer cannot be cached in %s: %s", path.parent, error)

    def remember(self, url: str, welcome: Welcome) -> None:
        """Keep what the server at an address said of itself; where that cannot be written, nobody recalls it."""
        path = self._path_of_server(url)
        try:
            _write(path, encode(welcome))
        except OSError as error:
            _log.warning("what %s serves cannot be remembered in %s: %s", url, path.parent, error)

    def recall(self, urls: Sequence[str]) -> tuple[Welcome, Files] | None:
        """What the first of these addresses that was ever linked up to said of itself, and the tokenizer of its target.

        None if there is nothing, or it cannot be used any more.
        """
        for url in urls:
            try:
                welcome = decode_server(self._path_of_server(url).read_bytes())
                files = self.load(welcome.tokenizer) if isinstance(welcome, Welcome) else None
            except FileNotFoundError:
                continue
            except (OSError, ProtocolError) as error:
                _log.warning("what %s served last cannot be read: %s", url, error)
                continue
            if isinstance(welcome, Welcome) and files is not None:
                return welcome, files
        return None

    def _path_of_server(self, url: str) -> Path:
        return self.folder / "servers" / hashlib.sha256(url.encode()).hexdigest()

    def _path(self, name: str) -> Path:
        if not _DIGEST.fullmatch(name):
            raise ProtocolError(f"the server announced a tokenizer digest of {name[:80]!r}")
        return self.folder / name


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed, so that no other agent ever reads half a file.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
        new = Path(folder, path.name)
        new.write_bytes(content)
        os.replace(new, path)


_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
"""How SentencePiece writes a byte that is no character by itself."""
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How it writes a space."""


def _bytes_by_character() -> dict[str, int]:
    """Byte-level BPE writes every byte as a printable character: its own where it has one, else one from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _bytes_by_character()


class TargetTokenizer:
    """Text to the target's token ids and back.

    Args:
        files: `tokenizer.json`, and `tokenizer_config.json` with `chat_template`, `bos_token`, `eos_token`.

    Raises:
        ProtocolError: the files are no tokenizer.
    """

    def __init__(self, files: Files) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
            self._config: dict[str, Any] = json.loads(files["tokenizer_config.json"])
        # The library raises a bare Exception for whatever it cannot read.
        except Exception as error:
            raise ProtocolError(f"the server's tokenizer cannot be read: {error}") from None
        self._byte_level = "ByteLevel" in json.dumps(json.loads(files["tokenizer.json"]).get("decoder"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for, which need not be a whole character."""
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._byte_level:
            if all(character in _BYTE_OF for character in piece):
                return bytes(_BYTE_OF[character] for character in piece)
            return piece.encode()
        if byte := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        if _SPACE in piece:
            return piece.replace(_SPACE, " ").encode()
        return self.decode([token]).encode() or piece.encode()

    @property
    def tokens(self) -> list[str | None]:
        """What each id stands for, as the vocabulary spells it; None for an id that it skips."""
        return [self._tokenizer.id_to_token(token) for token in range(self.highest_token + 1)]

    @property
    def highest_token(self) -> int:
        """The last id that it knows; a model may have room for more."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> list[int]:
        """Cut a prompt into token ids, with the special tokens the target wants at its start."""
        return self._tokenizer.encode(text).ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Cut a conversation into token ids, ready for the assistant's turn.

        Args:
            messages: `role` and `content` each.

        Raises:
            InvalidRequest: the target has no chat template, or the template refuses these messages.
        """
        return self._tokenizer.encode(self.render_chat(messages), add_special_tokens=False).ids

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Write a conversation out the way the target was trained on it.

        Raises:
            InvalidRequest: the target has no chat template, or the template refuses these messages.
        """
        template = self._config.get("chat_template")
        if not isinstance(template, str):
            raise InvalidRequest("the target has no chat template: send a plain prompt", param="prompt")
        try:
            return (
                _environment()
                .from_string(template)
                .render(
                    messages=list(messages),
                    add_generation_prompt=True,
                    bos_token=_text(self._config.get("bos_token")),
                    eos_token=_text(self._config.get("eos_token")),
                )
            )
        # A template is a program of somebody else's, and fails in any way a program can.
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise InvalidRequest(
                f"the target's chat template does not take these messages: {error}", param="prompt"
            ) from None

    def decode(self, tokens: Sequence[int]) -> str:
        """Turn token ids into text, special tokens left out; what is no whole character shows as U+FFFD."""
        return self._tokenizer.decode(list(tokens))


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which a prompt is not.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _text(token: Any) -> str:
    """A special token from the configuration: a string, or an object with its `content`."""
    if isinstance(token, Mapping):
        return str(token.get("content", ""))
    return token if isinstance(token, str) else ""
