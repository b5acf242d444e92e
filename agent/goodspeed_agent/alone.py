"""A text by the draft alone, for a user whose server cannot be reached: nobody verifies it.

It is drawn as a server would draw it: the same parameters, penalties and biases, with the noise of the coupled rule. So
it is the text that a server would write whose target is the draft.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterator

from goodspeed.errors import InvalidRequest, ModelError
from goodspeed_agent.desk import Desk
from goodspeed_agent.drafters import Drafter, DraftSession, Guess
from goodspeed_agent.drafters.interface import StandaloneDrafter
from goodspeed_agent.generation import Generation
from goodspeed_agent.steps import Steps

__all__ = ["able_alone", "tokens_alone"]


def able_alone(drafter: Drafter) -> StandaloneDrafter:
    """The drafter, if it has a next token for every text.

    Raises:
        InvalidRequest: it has none.
    """
    if isinstance(drafter, StandaloneDrafter):
        return drafter
    raise InvalidRequest(
        f"the draft {drafter.name!r} cannot answer without a server, as --offline-fallback wants: "
        "name a model as --draft, or leave the option out"
    )


async def tokens_alone(
    generation: Generation, session: DraftSession, desk: Desk, *, eos_tokens: Collection[int], room: int
) -> AsyncGenerator[list[int], None]:
    """Generate: yield tokens as the draft draws them, then end.

    Args:
        generation: what to generate; holds the transcript afterwards.
        session: the draft's, of this text, opened for the coupled rule.
        desk: where the agent drafts.
        eos_tokens: each ends a text, unless the request says otherwise.
        room: how many tokens the text may have at most; the request may allow fewer.

    Raises:
        ModelError: the draft cannot go on.
    """
    transcript, request = generation.transcript, generation.request
    ends = frozenset(() if request.ignore_eos else eos_tokens)
    most = min(room, request.max_new_tokens)
    more: Iterator[Guess] | None = None
    fresh = False

    def draw() -> Steps[Guess | None]:
        nonlocal more, fresh
        fresh = more is None
        if more is None:
            more = session.guesses(list(transcript.tokens))
        yield session
        return next(more, None)

    while transcript.finish is None:
        guess = await desk.at_once(draw)
        if guess is None:
            if fresh:
                raise ModelError("the draft cannot go on with this text: its memory is taken up, or it is broken")
            # It was exchanged for another, which goes on.
            more = None
            continue
        generation.told_by_draft(guess.token)
        if guess.token in ends:
            transcript.finish = "stop"
        elif len(transcript.generated) >= most:
            transcript.finish = "length"
        yield [guess.token]
