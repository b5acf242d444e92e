"""What clients ask for: bodies of requests, checked, and turned into what an agent is asked."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from goodspeed.errors import InvalidRequest
from goodspeed.logprobs import MAX_ALTERNATIVES
from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import TextRequest
from goodspeed_agent.api.errors import BadField

__all__ = ["Asked", "read_chat", "read_completion"]

_COMPLETION_TOKENS = 16
"""OpenAI's own default of `/v1/completions`."""
_MOST_CHOICES = 128
"""Of one request, over all its prompts."""
_MOST_STOPS = 16
_LONGEST_STOP = 1024
_SHOWN = 40
"""How much of what a client sent is said back to it."""

_IGNORED = frozenset(
    {
        "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
        "service_tier", "store", "user",
    }
)  # fmt: skip
"""Of no consequence to what is written."""

_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "add_generation_prompt": (True,),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""What is not done here, and the values that ask for nothing."""


class _StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Body(msgspec.Struct, frozen=True):
    """What both endpoints take."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    domain: str | None = None


class _CompletionBody(_Body, frozen=True, kw_only=True):
    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None


class _ChatBody(_Body, frozen=True, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


B = TypeVar("B", bound=_Body)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that can be answered."""

    choices: Sequence[TextRequest]
    """One for every choice: of the first prompt all, then of the second."""
    prompts: int
    """How many prompts there are."""
    stream: bool
    include_usage: bool
    fields: Mapping[str, str]
    """What the body calls the values that have another name here."""

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Within the block, whatever is out of range is told by the name that it has in the body."""
        with _naming(self.fields):
            yield


def read_completion(raw: bytes, model: str) -> Asked:
    """Read the body of `/v1/completions`.

    Args:
        raw: as it came.
        model: the one that is served here.

    Raises:
        BadField: naming the field, and what is wrong with it.
    """
    body = _read(raw, _CompletionBody, model)
    prompts = _prompts(body.prompt)
    most = _COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    fields = {"max_new_tokens": "max_tokens"}
    return _asked(body, prompts, most, _alternatives(body.logprobs, "logprobs"), fields)


def read_chat(raw: bytes, model: str) -> Asked:
    """Read the body of `/v1/chat/completions`; see `read_completion`."""
    body = _read(raw, _ChatBody, model)
    if not body.messages:
        raise BadField("there are no messages: give at least one", "messages")
    messages = [_message(message, place) for place, message in enumerate(body.messages)]
    limit = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    if body.top_logprobs is not None and not body.logprobs:
        raise BadField("top_logprobs go with logprobs: true", "top_logprobs")
    wanted = (body.top_logprobs or 0) if body.logprobs else None
    fields = {"max_new_tokens": limit, "prompt": "messages"}
    return _asked(body, [messages], getattr(body, limit), _alternatives(wanted, "top_logprobs"), fields)


def _read(raw: bytes, kind: type[B], model: str) -> B:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadField(f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadField("the body is not a JSON object")
    known = {field.name for field in msgspec.structs.fields(kind)}
    _refuse_unsupported(content, known)
    try:
        body = msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise _badly_typed(str(error)) from None
    if body.model is not None and body.model != model:
        raise BadField(f"there is no model {body.model!r} here: {model!r} is served", "model", code="model_not_found")
    return body


def _badly_typed(found: str) -> BadField:
    """What msgspec has found, by the field that it is about."""
    message, _, path = found.partition(" - at `$.")
    if missing := re.search(r"missing required field `(\w+)`", message):
        name = missing.group(1)
        return BadField(f"there is no {name}: a request needs one", name)
    name = re.match(r"\w*", path)[0]  # type: ignore[index]
    message = message[0].lower() + message[1:]
    return BadField(f"{name}: {message}", name) if name else BadField(message)


@contextmanager
def _naming(fields: Mapping[str, str]) -> Iterator[None]:
    try:
        yield
    except BadField:
        raise
    except InvalidRequest as error:
        param = error.param or ""
        field = fields.get(param, param)
        # The sentence begins with the name, or does without.
        message = re.sub(rf"^{param} ", f"{field} ", str(error)) if param else str(error)
        raise BadField(message, field or None, code=error.code) from None


def _refuse_unsupported(content: dict[str, Any], known: Collection[str]) -> None:
    """Take out what asks for nothing, and refuse what would not be done."""
    for name in list(content):
        value = content[name]
        if value is None or name in _IGNORED:
            del content[name]
        elif name in _UNSUPPORTED:
            if value not in _UNSUPPORTED[name]:
                raise BadField(f"{name} is not supported here: leave it out", name, code="unsupported_parameter")
            del content[name]
        elif name not in known:
            shown = ascii(name[:_SHOWN])[1:-1]
            near = difflib.get_close_matches(shown, known, 1)
            hint = f": did you mean {near[0]}?" if near else ": leave it out"
            raise BadField(f"there is no parameter {shown}{hint}", shown, code="unknown_parameter")


def _prompts(given: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """A text, some texts, the tokens of one, or of some."""
    if isinstance(given, str):
        return [given]
    tokens = [entry for entry in given if isinstance(entry, int)]
    prompts = [entry for entry in given if not isinstance(entry, int)]
    if tokens and not prompts:
        return [tokens]
    if tokens or not prompts:
        raise BadField("prompt is text, a list of texts, a list of token ids, or a list of such lists", "prompt")
    if not all(prompts):
        which = f"prompt {1 + prompts.index(next(entry for entry in prompts if not entry))}"
        raise BadField(
            f"{which if len(prompts) > 1 else 'the prompt'} is empty: it needs at least one token",
            "prompt",
            code="empty_prompt",
        )
    return prompts


def _message(message: dict[str, Any], place: int) -> dict[str, Any]:
    """One message of a conversation, its content as plain text."""
    content = message.get("content")
    if isinstance(content, list):
        parts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise BadField(
                    f"message {place + 1} has a part that is no text: the model reads text alone", "messages"
                )
            parts.append(part["text"])
        return message | {"content": "\n".join(parts)}
    if not isinstance(content, str):
        raise BadField(f"message {place + 1} has no text as its content", "messages")
    return message


def _alternatives(wanted: int | None, param: str) -> int:
    if wanted is None:
        return -1
    if not 0 <= wanted <= MAX_ALTERNATIVES:
        raise BadField(f"{param} is {wanted}: it must be between 0 and {MAX_ALTERNATIVES}", param)
    return wanted


def _biases(logit_bias: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
    try:
        return tuple((int(token), bias) for token, bias in (logit_bias or {}).items())
    except ValueError:
        raise BadField("logit_bias names tokens by their numbers in the target's tokenizer", "logit_bias") from None


def _asked(
    body: _Body,
    prompts: Sequence[str | list[int] | list[dict[str, Any]]],
    max_tokens: int | None,
    logprobs: int,
    fields: Mapping[str, str],
) -> Asked:
    count = 1 if body.n is None else body.n
    if len(prompts) > _MOST_CHOICES:
        raise BadField(f"there are {len(prompts)} prompts: a request has {_MOST_CHOICES} at most", "prompt")
    if not 1 <= count <= _MOST_CHOICES // len(prompts):
        prompts_of = f" for each of {len(prompts)} prompts" if len(prompts) > 1 else ""
        raise BadField(f"n is {count}{prompts_of}: a request has between 1 and {_MOST_CHOICES} choices in all", "n")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stop) > _MOST_STOPS or any(len(text) > _LONGEST_STOP for text in stop):
        raise BadField(f"stop has at most {_MOST_STOPS} strings of at most {_LONGEST_STOP} characters", "stop")
    # Who names no seed wants another text each time.
    seed = secrets.randbits(62) if body.seed is None else body.seed
    if not -(2**63) <= seed < 2**63:
        raise BadField(f"seed is {seed}: it must be between {-(2**63)} and {2**63 - 1}", "seed")
    biases = _biases(body.logit_bias)
    choices = [
        TextRequest(
            prompt,
            SamplingParams(
                temperature=1.0 if body.temperature is None else body.temperature,
                top_p=1.0 if body.top_p is None else body.top_p,
                # -1 keeps all where vLLM is served.
                top_k=0 if body.top_k in (None, -1) else body.top_k or 0,
                min_p=body.min_p or 0.0,
                seed=_seed(seed, number),
                frequency_penalty=body.frequency_penalty or 0.0,
                presence_penalty=body.presence_penalty or 0.0,
                logit_bias=biases,
            ),
            max_tokens,
            stop,
            bool(body.ignore_eos),
            domain=body.domain or "",
            logprobs=logprobs,
        )
        for prompt in prompts
        for number in range(count)
    ]
    # The choices of a prompt differ in their seeds alone.
    with _naming(fields):
        choices[0].validate_options()
        for choice in choices[::count]:
            choice.validate_prompt()
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    if body.stream_options is not None and not body.stream:
        raise BadField("stream_options go with stream: true", "stream_options")
    return Asked(choices, len(prompts), bool(body.stream), usage, fields)


def _seed(seed: int, choice: int) -> int:
    """The choices of a request differ, and are the same again when it is made again; the first has the seed itself."""
    if choice == 0:
        return seed if seed >= 0 else seed % 2**62
    digest = hashlib.blake2b(f"{seed} {choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2
