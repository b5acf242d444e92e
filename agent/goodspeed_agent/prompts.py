"""A file of prompts, one JSON object a line, read and checked whole before anything is generated."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from goodspeed.errors import InvalidRequest
from goodspeed_agent.agent import TextRequest

__all__ = ["PromptLine", "read_prompts"]

_SHOWN = 5
_SAMPLING = frozenset({"temperature", "top_p", "top_k", "min_p", "seed"})


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    id: str | int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    max_draft: int | None = None
    domain: str | None = None


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One line of the file."""

    number: int
    """Counted from 1."""
    id: str | int | None
    request: TextRequest


def read_prompts(lines: Iterable[bytes], defaults: TextRequest) -> list[PromptLine]:
    """Read prompts; empty lines are skipped.

    Args:
        lines: the file's.
        defaults: what holds where a line says nothing; its prompt is not used.

    Raises:
        InvalidRequest: naming every line that is wrong (the first few, if there are many), and why.
    """
    prompts, wrong, fields_known = [], [], True
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompts.append(_read(number, line, defaults))
        except (msgspec.MsgspecError, InvalidRequest, UnicodeDecodeError) as error:
            wrong.append(f"line {number}: {error}")
            fields_known &= "unknown field" not in str(error)
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        known = "" if fields_known else f" (a line may have {', '.join(_Line.__struct_fields__)})"
        raise InvalidRequest("; ".join(wrong[:_SHOWN]) + more + known)
    if not prompts:
        raise InvalidRequest('there are no prompts in it: write one {"prompt": "..."} a line')
    return prompts


def _read(number: int, text: bytes, defaults: TextRequest) -> PromptLine:
    try:
        line = msgspec.json.decode(text, type=_Line)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if _has_lone_surrogate(text):
            raise InvalidRequest(
                r"it has a lone surrogate (a \uD800 to \uDFFF that is half of no pair), which stands for no character: "
                "take it out"
            ) from None
        raise
    prompt = line.prompt if line.messages is None else line.messages
    if prompt is None or None not in (line.prompt, line.messages):
        raise InvalidRequest('it needs either "prompt" or "messages"')
    given = {name: value for name, value in msgspec.structs.asdict(line).items() if value is not None}
    params = msgspec.structs.replace(defaults.params, **{name: given[name] for name in _SAMPLING & given.keys()})
    stop = (line.stop,) if isinstance(line.stop, str) else line.stop
    request = TextRequest(
        prompt=prompt,
        params=params,
        max_new_tokens=given.get("max_new_tokens", defaults.max_new_tokens),
        stop=defaults.stop if stop is None else tuple(stop),
        ignore_eos=given.get("ignore_eos", defaults.ignore_eos),
        max_draft=given.get("max_draft", defaults.max_draft),
        domain=given.get("domain", defaults.domain),
    )
    request.validate()
    return PromptLine(number, line.id, request)


def _has_lone_surrogate(line: bytes) -> bool:
    """Whether this is JSON but for half a pair in a string, for which msgspec has other names."""
    try:
        json.dumps(json.loads(line), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        pass
    return False
