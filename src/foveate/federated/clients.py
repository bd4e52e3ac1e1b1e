"""A client: its data, and the handlers that answer a server's requests. The data stay inside; answers are messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveate.core import seeds
from foveate.federated.messages import Message, MessageError

Handler = Callable[[Any, Message, int], Message]
"""(the client's data, request, the client's number) -> answer. Pure: the same request has the same answer."""


def stream(seed: int, *, round: int, client: int, purpose: str) -> np.random.Generator:
    """Generator of one client in one round for one purpose, the same in a process and over a network.

    A client is named by its partition number, never by a node's or a process's id, which change from run to run. The
    server is client -1.
    """
    return seeds.generator("federated", purpose, seed, round, client)


@dataclass(frozen=True)
class Client:
    """One participant, in this process.

    Attributes:
        number: its partition number, from 0; answers are always taken in this order.
        data: what its handlers read.
        handlers: by the kind of request that they answer.
        name: for reports; "client NUMBER" where empty.
        about: text for what its handlers depend on besides data and request; stored answers belong to it, too.
    """

    number: int
    data: Any = field(repr=False)
    handlers: Mapping[str, Handler] = field(repr=False)
    name: str = ""
    about: str = ""

    def answer(self, request: Message) -> Message:
        """Run the handler of the request's kind.

        Raises:
            MessageError: the client has no such handler.
            Exception: whatever the handler raises; the transport notes it and leaves the client out.
        """
        if request.kind not in self.handlers:
            known = ", ".join(sorted(self.handlers)) or "nothing"
            raise MessageError(f"cannot answer '{request.kind}'; it answers {known}")
        return self.handlers[request.kind](self.data, request, self.number)


def title(number: int, name: str = "") -> str:
    """Display name of a client."""
    return name or f"client {number}"
