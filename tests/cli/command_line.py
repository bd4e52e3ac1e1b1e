"""How a command ended: its status and what it printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """The one line of a user's mistake."""
        assert self.code == 1, (self.code, self.err)
        assert self.out == ""
        last = self.err.strip().splitlines()[-1]
        assert last.startswith("foveate: "), self.err
        assert "Traceback" not in self.err
        return last


Run = Callable[..., Ended]
