"""Why a run over a network has no result: written by its server into the result's folder, printed by its command.

Flower passes no reason on to the command that follows a run, only the end of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import read_json, write_json_atomically
from foveate.federated.reasons import REMEDIES, find_code
from foveate.federated.rounds import title

FILE = "failure.json"


@dataclass(frozen=True)
class RunFailure:
    """The end of a run without a result.

    Attributes:
        error: its reason in a sentence.
        clients: number of clients of the run.
        reasons: by client number why it gave no answer; only of those that did not.
    """

    error: str
    clients: int
    reasons: Mapping[int, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The error, and for each reason its code, its clients, and what may be done about it."""
        clients: dict[str, list[int]] = {}
        for client, reason in sorted(self.reasons.items()):
            clients.setdefault(reason, []).append(client)
        failures = [
            {
                # A client that is late or sends what is no answer has no code.
                "code": find_code(reason),
                "clients": [title(client) for client in listed],
                "reason": reason,
                "remedy": REMEDIES.get(find_code(reason), ""),
            }
            for reason, listed in clients.items()
        ]
        return {"error": self.error, "clients": self.clients, "failures": failures}

    def write(self, folder: Path) -> None:
        """Write the file beside where the result would be."""
        write_json_atomically(folder / FILE, self.to_json())


class RunFailedError(UserError):
    """A run ended without a result; the message has the codes by client.

    Attributes:
        content: of the failure's file.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any]) -> None:
        self.content = dict(content)
        super().__init__("\n".join([f"{folder}: the run ended without a result", *describe_failure(content)]))

    @classmethod
    def read(cls, folder: Path) -> RunFailedError:
        """Read the failure that a server wrote.

        Raises:
            UserError: the file is damaged.
        """
        content = read_json(folder / FILE)
        try:
            return cls(folder, content)
        except (KeyError, TypeError, AttributeError) as problem:
            raise UserError(f"{folder / FILE}: damaged ({type(problem).__name__})") from problem


def describe_failure(content: Mapping[str, Any]) -> list[str]:
    """Lines for people: the clients of each reason and what may be done, or the error where no client gave one."""
    if not content["failures"]:
        return [str(content["error"])]
    lines = []
    for failure in content["failures"]:
        remedy = f"; {failure['remedy']}" if failure["remedy"] else ""
        names = ", ".join(failure["clients"])
        counted = f"{len(failure['clients'])} of {content['clients']} clients"
        lines.append(f"{counted}: {failure['reason']}{remedy} ({names})")
    return lines
