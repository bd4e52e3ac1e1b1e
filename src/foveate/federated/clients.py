"""A client: its data, and the functions that answer what a server asks. The data stay inside; answers are messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveate.core import seeds
from foveate.federated.messages import Message, MessageError

Handler = Callable[[Any, Message, int], Message]
"""(the client's data, what is asked, the client's number) -> the answer. Pure: the same question has the same answer."""


def stream(seed: int, *, round: int, client: int, purpose: str) -> np.random.Generator:
    """The random numbers of one client in one round for one purpose, the same in process and over a network.

    A client is named by its partition number, never by a node's or a process's id. The server is client -1.
    """
    return seeds.generator("federated", purpose, seed, round, client)


@dataclass(frozen=True)
class Client:
    """One participant, in this process.

    Attributes:
        number: its partition number, from 0; answers are always taken in this order.
        data: whatever its handlers read.
        handlers: by the kind of message that they answer.
        name: for reports; "client NUMBER" where empty.
        about: words for what its handlers depend on besides data and question; kept answers belong to them, too.
    """

    number: int
    data: Any = field(repr=False)
    handlers: Mapping[str, Handler] = field(repr=False)
    name: str = ""
    about: str = ""

    def answer(self, request: Message) -> Message:
        """Runs the handler of the request's kind.

        Raises:
            MessageError: the client has no such handler.
            Exception: whatever the handler raises; the transport notes it and leaves the client out.
        """
        if request.kind not in self.handlers:
            known = ", ".join(sorted(self.handlers)) or "nothing"
            raise MessageError(f"cannot answer '{request.kind}'; it answers {known}")
        return self.handlers[request.kind](self.data, request, self.number)


def title(number: int, name: str = "") -> str:
    """How a client is called in words."""
    return name or f"client {number}"
