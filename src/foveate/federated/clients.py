"""A site: its data, and the functions that answer what a server asks. The data stay inside; answers are messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveate.federated.messages import Message, MessageError
from foveate.settings import seeds

Handler = Callable[[Any, Message, int], Message]
"""(the site's data, what is asked, the site's number) -> the answer. Pure: the same question has the same answer."""


def stream(seed: int, *, round: int, site: int, purpose: str) -> np.random.Generator:
    """The random numbers of one site in one round for one purpose, the same in process and over a network.

    A site is named by its partition number, never by a node's or a process's id. The server is site -1.
    """
    return seeds.generator("federated", purpose, seed, round, site)


@dataclass(frozen=True)
class Site:
    """One participant, in this process.

    Attributes:
        number: its partition number, from 0; answers are always taken in this order.
        data: whatever its handlers read.
        handlers: by the kind of message that they answer.
        name: for reports; "site NUMBER" where empty.
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
            MessageError: the site has no such handler.
            Exception: whatever the handler raises; the transport notes it and leaves the site out.
        """
        if request.kind not in self.handlers:
            known = ", ".join(sorted(self.handlers)) or "nothing"
            raise MessageError(f"cannot answer '{request.kind}'; it answers {known}")
        return self.handlers[request.kind](self.data, request, self.number)


def title(number: int, name: str = "") -> str:
    """How a site is called in words."""
    return name or f"site {number}"
