"""Serve the review page of a run: its events, its images by their index, and the journal of answers.

It listens on this machine only, and everything but the page's own files needs the key in the page's address.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict, Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from foveate.core.errors import UserError
from foveate.serve.answering import read_body, to_json
from foveate.serve.application import build_starlette, page_routes
from foveate.serve.bodies import parse_body
from foveate.serve.calls import Refused
from foveate.serve.guard import Guard, Receive, Scope, Send
from foveate.serve.settings import ServeSettings
from foveate.species.answers import MAX_EVENTS, AnswerRequest, ReviewSession, UnknownNameError

_LOG = logging.getLogger("foveate.serve")
_SIDES = {"small": 240, "large": 1600}  # longest side in pixels
_DECODERS = 4
# Answers are in the journal at once; the survey, which other commands read, follows.
_STORE_SECONDS = 15


class ReviewBody(BaseModel):
    """Answers of one reviewer. since: number of the last answer that the page knows."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    reviewer: str
    answers: list[AnswerRequest] = Field(max_length=MAX_EVENTS)
    since: int = Field(0, ge=0)


class ReviewApplication:
    """A review session behind an ASGI application.

    Args:
        key: what the page must send as bearer token.
        reviewer: who answers; "" lets the page ask.
    """

    def __init__(self, session: ReviewSession, settings: ServeSettings, *, key: str, reviewer: str = "") -> None:
        self.session, self.settings, self.reviewer = session, settings, reviewer
        self._pool = ThreadPoolExecutor(_DECODERS)
        routes = [
            Route("/review/events", self._events),
            Route("/review/answers", self._list_answers),
            Route("/review/answers", self._answer, methods=["POST"]),
            Route("/review/images/{event}/{frame}/{size}", self._image),
            *page_routes("review.html"),
        ]
        starlette = build_starlette(routes, self._lifespan)
        self._guard = Guard(starlette, settings, key=key, finished=lambda record: None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._guard(scope, receive, send)

    async def close(self) -> None:
        """Do nothing: an answer at work takes milliseconds, and uvicorn waits for it."""

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        storing = asyncio.create_task(self._store_regularly())
        yield
        storing.cancel()
        self._pool.shutdown()

    async def _store_regularly(self) -> None:
        while True:
            await asyncio.sleep(_STORE_SECONDS)
            try:
                await asyncio.to_thread(self.session.store)
            except (UserError, OSError) as error:
                # Another process may write the survey now; the answers stay in the journal until the next turn.
                _LOG.warning(f"answers are saved, but not yet in the survey: {error}")

    async def _events(self, request: Request) -> Response:
        session = self.session
        content = {"events": [event.description for event in session.events], "names": session.names.names}
        answers = session.describe_answers()
        content |= {"reviewer": self.reviewer, "number": answers["number"], "answered": answers["events"]}
        return await asyncio.to_thread(to_json, content)

    async def _list_answers(self, request: Request) -> Response:
        return to_json(self.session.describe_answers(_read_number(request.query_params.get("since", "0"))))

    async def _answer(self, request: Request) -> Response:
        body = parse_body(ReviewBody, await read_body(request.receive, self.settings.max_body_bytes))
        try:
            # In a thread, because it waits for the disk.
            numbers = await asyncio.to_thread(self.session.answer, body.reviewer, body.answers)
        except UnknownNameError as error:
            raise Refused(str(error), status=422, code="unknown_name", param="name") from None
        except UserError as error:
            raise Refused(str(error), code="invalid_value") from None
        except OSError as error:
            raise Refused(f"not saved: {error.strerror}", status=507, code="not_saved") from error
        return to_json({"numbers": numbers, **self.session.describe_answers(body.since)})

    async def _image(self, request: Request) -> Response:
        event, frame, size = (request.path_params[name] for name in ("event", "frame", "size"))
        if size not in _SIDES:
            raise Refused(f"size: expected one of {', '.join(_SIDES)}", status=404, code="not_found")

        def read() -> bytes:
            return self.session.read_image(_read_number(event), _read_number(frame), longest_side=_SIDES[size])

        try:
            data = await asyncio.get_running_loop().run_in_executor(self._pool, read)
        except UserError as error:
            raise Refused(str(error), status=404, code="not_found") from None
        return Response(data, media_type="image/webp")


def _read_number(text: str) -> int:
    # `int` also takes digits of other scripts, and of any number.
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise Refused(f"expected a number (got {text[:20]!r})", status=404, code="not_found")
    return int(text)
