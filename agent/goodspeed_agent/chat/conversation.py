"""What has been said, how the next answer is to be drawn, and the commands that change it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from goodspeed.errors import InvalidRequest
from goodspeed.sampling import SamplingParams
from goodspeed_agent.agent import TextRequest
from goodspeed_agent.report import Completion, Speculation

__all__ = ["Conversation"]


@dataclass(slots=True)
class Conversation:
    """A conversation with the target.

    Raises:
        InvalidRequest: from `command`, with a sentence that says what to write instead; nothing has changed.
    """

    params: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int | None = None
    system: str = ""
    origins: bool = False
    """Whether tokens are coloured by where they come from."""
    over: bool = False
    messages: list[dict[str, str]] = field(default_factory=list)
    """Of user and target in turn."""
    total: Speculation = field(default_factory=Speculation)
    tokens: int = 0
    seconds: float = 0.0
    last: str = ""
    """Figures of the last answer."""
    unanswered: str = ""
    """What was asked last, if the server had no answer to it."""

    def ask(self, text: str) -> TextRequest:
        """The request that answers what the user said."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        said: list[dict[str, Any]] = [*first, *self.messages, {"role": "user", "content": text}]
        request = TextRequest(said, self.params, self.max_new_tokens)
        request.validate()
        return request

    def answered(self, text: str, completion: Completion, seconds: float) -> None:
        """The target has answered; `seconds` it took."""
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": completion.text}]
        self.unanswered = ""
        self.total.add(completion.speculation)
        self.tokens += len(completion.tokens)
        self.seconds += seconds
        self.last = _figures(len(completion.tokens), seconds, completion.speculation)

    def command(self, line: str) -> str:
        """Do what a line that begins with a slash says, and say what came of it."""
        name, _, rest = line.strip().removeprefix("/").partition(" ")
        found = _COMMANDS.get(name)
        if found is None:
            near = difflib.get_close_matches(name, _COMMANDS, 1)
            hint = f"did you mean /{near[0]}?" if near else "/help lists all there are"
            raise InvalidRequest(f"there is no /{name}: {hint}")
        return found(self, rest.strip())

    def change(self, **changes: Any) -> str:
        """Draw otherwise from now on."""
        params = replace(self.params, **changes)
        params.validate()
        self.params = params
        return ", ".join(f"{name} {value}" for name, value in changes.items())


def _figures(tokens: int, seconds: float, speculation: Speculation) -> str:
    parts = [f"{tokens} tokens in {seconds:.1f} s ({tokens / max(seconds, 1e-9):.1f}/s)"]
    if speculation.mean_acceptance_length is None:
        parts.append("nothing was drafted")
    else:
        parts.append(f"{speculation.draft_acceptance_rate:.0%} of {speculation.num_draft_tokens} drafted accepted")
        parts.append(f"{speculation.mean_acceptance_length:.2f} tokens a verdict")
        histogram = " ".join(f"{accepted}:{count}" for accepted, count in enumerate(speculation.acceptance_histogram))
        parts.append(f"verdicts by tokens accepted {histogram}")
    return ", ".join(parts)


def _number(text: str, kind: type[int] | type[float], example: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise InvalidRequest(f"{text!r} is no number: write {example}, say") from None


def _temperature(conversation: Conversation, rest: str) -> str:
    """X: how freely to draw; 0 takes the likeliest token."""
    return conversation.change(temperature=_number(rest, float, "/temperature 0.7"))


def _top_p(conversation: Conversation, rest: str) -> str:
    """X: draw from the likeliest tokens of this mass."""
    return conversation.change(top_p=_number(rest, float, "/top_p 0.9"))


def _seed(conversation: Conversation, rest: str) -> str:
    """N: the same seed gives the same answer to the same question."""
    return conversation.change(seed=_number(rest, int, "/seed 7"))


def _max(conversation: Conversation, rest: str) -> str:
    """N: the longest answer in tokens; 0 for as long as there is room."""
    most = _number(rest, int, "/max 200")
    if most < 0:
        raise InvalidRequest("an answer has at least one token: write /max 200, say")
    conversation.max_new_tokens = most or None
    return f"answers of at most {most} tokens" if most else "answers as long as there is room"


def _system(conversation: Conversation, rest: str) -> str:
    """TEXT: what the target is told before all else."""
    conversation.system = rest
    return "the target is told this first" if rest else "the target is told nothing first"


def _origins(conversation: Conversation, rest: str) -> str:
    """ON or OFF: colour tokens by where they come from."""
    if rest not in ("on", "off"):
        raise InvalidRequest("write /origins on, or /origins off")
    conversation.origins = rest == "on"
    if not conversation.origins:
        return "no colours"
    return (
        "accepted tokens are cyan, recovered ones yellow, bonus ones magenta, those that nobody verified red, "
        "others the target's own"
    )


def _undo(conversation: Conversation, _: str) -> str:
    """Forget the last question and its answer."""
    if not conversation.messages:
        raise InvalidRequest("there is nothing to take back")
    del conversation.messages[-2:]
    match len(conversation.messages) // 2:
        case 0:
            return "nothing is left of the conversation"
        case 1:
            return "one question and its answer are left"
        case left:
            return f"{left} questions and their answers are left"


def _reset(conversation: Conversation, _: str) -> str:
    """Forget the whole conversation."""
    conversation.messages.clear()
    conversation.unanswered = ""
    return "a new conversation"


def _again(conversation: Conversation, _: str) -> str:
    """Ask once more what the server had no answer to."""
    raise InvalidRequest("there is no question that is still to be answered")


def _quit(conversation: Conversation, _: str) -> str:
    """End; so does Ctrl-D."""
    conversation.over = True
    return ""


def _help(conversation: Conversation, _: str) -> str:
    """This."""
    return "\n".join(f"/{name:<13}{command.__doc__}" for name, command in _COMMANDS.items())


def _stats(conversation: Conversation, _: str) -> str:
    """How fast it went, and how much of the drafts was accepted."""
    if not conversation.tokens:
        return "nothing has been said yet"
    total = _figures(conversation.tokens, conversation.seconds, conversation.total)
    return f"last: {conversation.last}\nin all: {total}"


_COMMANDS: dict[str, Callable[[Conversation, str], str]] = {
    "stats": _stats,
    "temperature": _temperature,
    "top_p": _top_p,
    "seed": _seed,
    "max": _max,
    "system": _system,
    "origins": _origins,
    "undo": _undo,
    "reset": _reset,
    "again": _again,
    "help": _help,
    "quit": _quit,
}
