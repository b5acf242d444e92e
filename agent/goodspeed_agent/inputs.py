"""What the commands read: prompts, from files or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from goodspeed.errors import InvalidRequest
from goodspeed.paths import expanded
from goodspeed_agent.agent import TextRequest
from goodspeed_agent.prompts import PromptLine, read_prompts

__all__ = ["read_prompt", "read_prompt_lines"]


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt that was given as text, as a file, or on standard input (`-`).

    Raises:
        InvalidRequest: both or neither is given, or the file is no text that can be read.
    """
    if (prompt is None) == (file is None):
        raise InvalidRequest(
            "give the prompt as --prompt TEXT, as --prompt-file FILE, or on standard input: --prompt -"
        )
    source = Path(prompt) if file is None and prompt == "-" else file
    if source is None:
        assert prompt is not None
        return prompt
    try:
        return _read(source).decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the prompt in {source} is not UTF-8: {error}") from None


def read_prompt_lines(file: Path, defaults: TextRequest) -> list[PromptLine]:
    """The prompts in a file, or on standard input.

    Raises:
        InvalidRequest: naming the file, the line, and what is wrong.
    """
    lines = _read(file).splitlines()
    try:
        return read_prompts(lines, defaults)
    except InvalidRequest as error:
        raise InvalidRequest(f"{file}: {error}") from None


def _read(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else expanded(file).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}") from None
