"""The routes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from goodspeed.errors import GoodSpeedError, LinkLost
from goodspeed_agent.agent import Agent, Piece
from goodspeed_agent.api.bodies import Asked, read_chat, read_completion
from goodspeed_agent.api.errors import BadField, error_body, error_response
from goodspeed_agent.api.local import LOCAL_ONLY
from goodspeed_agent.api.metrics import ApiMetrics, Watch
from goodspeed_agent.api.replies import Reply, draft_of, marks
from goodspeed_agent.api.writing import Events, Written, write
from goodspeed_agent.report import Completion

__all__ = ["Api"]

T = TypeVar("T")

_MOST_BYTES = 2**24
"""Of a request's body."""
_CLIENT_GONE = 499
"""What proxies write down for a client that did not wait."""


class _ClientGone(Exception):
    """Nobody is there to be answered."""


class Api:
    """The application in front of an agent that is linked.

    Args:
        agent: linked.
        local: whether it is for this machine alone: then pages of other sites are kept from it.
    """

    def __init__(self, agent: Agent, *, local: bool) -> None:
        self._agent = agent
        self._open: set[Events] = set()
        """Of the requests that are being answered."""
        self._metrics = ApiMetrics(lambda: agent.link.up, lambda: agent.link.alone)
        self._began = int(time.time())
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._completion, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model_named),
                Route("/health", self._health),
                Route("/metrics", self._tell_metrics),
            ],
            middleware=LOCAL_ONLY if local else [],
            exception_handlers={
                GoodSpeedError: _on_error,
                HTTPException: _on_http_error,
                _ClientGone: _on_client_gone,
                ClientDisconnect: _on_client_gone,
                Exception: _on_defect,
            },
        )

    @property
    def _model(self) -> str:
        return self._agent.link.welcome.model

    async def _chat(self, request: Request) -> Response:
        asked = await asyncio.to_thread(self._asked, read_chat, await _body(request))
        return await self._answer(request, asked, Reply("chat", self._model, self._agent.tokenizer.token_bytes))

    async def _completion(self, request: Request) -> Response:
        asked = await asyncio.to_thread(self._asked, read_completion, await _body(request))
        return await self._answer(request, asked, Reply("text", self._model, self._agent.tokenizer.token_bytes))

    def stop(self, reason: str) -> None:
        """End whatever is being written."""
        for events in self._open:
            events.put_nowait(LinkLost(reason))

    def _asked(self, read: Callable[[bytes, str], Asked], raw: bytes) -> Asked:
        """What a body asks for, its prompts in tokens, each cut once: off the loop, where streams are waiting."""
        asked = read(raw, self._model)
        tokens: dict[int, Sequence[int]] = {}
        with asked.naming():
            for choice in asked.choices:
                if id(choice.prompt) not in tokens:
                    tokens[id(choice.prompt)] = self._agent.prompt_tokens(choice.prompt)
        return replace(asked, choices=[replace(one, prompt=tokens[id(one.prompt)]) for one in asked.choices])

    async def _answer(self, request: Request, asked: Asked, reply: Reply) -> Response:
        written = self._watched(asked)
        if not asked.stream:
            with asked.naming():
                completions = await _unless_gone(request, _all(written, len(asked.choices)))
            whole = reply.whole(completions, asked.prompts)
            return JSONResponse(whole, headers=marks(draft_of(completions)))
        # The first of it is awaited: what is wrong with a request is told by the status.
        try:
            with asked.naming():
                first = await _unless_gone(request, anext(written))
        except BaseException:
            await written.aclose()
            raise
        chunks = _chunks(first, written, asked, reply)
        headers = {"Cache-Control": "no-cache"} | marks(first[1].draft)
        return StreamingResponse(_events(chunks), media_type="text/event-stream", headers=headers)

    async def _watched(self, asked: Asked) -> AsyncGenerator[Written, None]:
        watch: Watch = self._metrics.watch(len(asked.choices))
        events: Events = asyncio.Queue()
        self._open.add(events)
        try:
            async with aclosing(write(self._agent, asked.choices, events)) as written:
                async for index, what in written:
                    if isinstance(what, Completion):
                        watch.done(index, what)
                    else:
                        watch.piece(index)
                    yield index, what
        finally:
            self._open.discard(events)
            watch.over()

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._about_model()]})

    async def _model_named(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._model:
            raise BadField(f"there is no model {name!r} here: {self._model!r} is served", code="model_not_found")
        return JSONResponse(self._about_model())

    def _about_model(self) -> dict[str, Any]:
        return {
            "id": self._model,
            "object": "model",
            "created": self._began,
            "owned_by": "goodspeed",
            "max_model_len": self._agent.link.welcome.max_length,
        }

    async def _health(self, request: Request) -> Response:
        if self._agent.link.up:
            return JSONResponse({"status": "ok"})
        if self._agent.link.alone:
            # Requests are answered: whoever asks for no more than that is told so.
            return JSONResponse({"status": "offline", "verified": False, "model": self._agent.drafter})
        return JSONResponse({"status": "there is no link to the server now"}, 503)

    async def _tell_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_BYTES:
            raise HTTPException(413, f"the body is larger than {_MOST_BYTES} bytes: shorten the prompt")
    return bytes(body)


async def _all(written: AsyncGenerator[Written, None], count: int) -> list[Completion]:
    async with aclosing(written):
        completions = {index: what async for index, what in written if isinstance(what, Completion)}
    return [completions[index] for index in range(count)]


async def _chunks(
    first: Written, written: AsyncGenerator[Written, None], asked: Asked, reply: Reply
) -> AsyncGenerator[dict[str, Any], None]:
    completions: dict[int, Completion] = {}
    begun: set[int] = set()

    def of(index: int, what: Piece | Completion) -> list[dict[str, Any]]:
        chunks = []
        if index not in begun:
            begun.add(index)
            chunks += [reply.begin(index, what.draft)] if reply.kind == "chat" else []
        if isinstance(what, Completion):
            completions[index] = what
            # Usage comes with these figures, and behind this chunk.
            over = len(completions) == len(asked.choices) and not asked.include_usage
            return [*chunks, reply.end(index, what, list(completions.values()) if over else ())]
        return [*chunks, reply.piece(index, what)]

    # OpenAI's: each of them has the field where it is asked for, and the last alone has figures in it.
    no_usage: dict[str, Any] = {"usage": None} if asked.include_usage else {}
    async with aclosing(written):
        for chunk in of(*first):
            yield chunk | no_usage
        async for event in written:
            for chunk in of(*event):
                yield chunk | no_usage
    if asked.include_usage:
        yield reply.usage([completions[index] for index in sorted(completions)], asked.prompts)


async def _events(chunks: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[str]:
    """Server-sent events; one that tells of an error is the last."""
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                yield f"data: {json.dumps(chunk, ensure_ascii=False, allow_nan=False)}\n\n"
    except GoodSpeedError as error:
        body = error_body(str(error), "server_error", None, error.code)
        yield f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
        return
    yield "data: [DONE]\n\n"


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do something for a client, for as long as it waits.

    Raises:
        _ClientGone: it does not any more; the work is cancelled.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _ClientGone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Wait until a client whose body is read has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GoodSpeedError)
    return error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = error_body(f"{request.method} {request.url.path}: {error.detail}", "invalid_request_error", None, None)
    return JSONResponse(told, error.status_code, error.headers)


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _on_defect(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body("a defect of the agent; its log says more", "server_error", None, None), 500)
