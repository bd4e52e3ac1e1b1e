"""Where DeepFeCA's training stands, on disk after every round: a killed run goes on and ends with the same weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from foveate.federated.deep.options import DeepOptions
from foveate.federated.deep.rounds import Deep
from foveate.settings.errors import UserError
from foveate.settings.files import write_bytes_atomically

FORMAT = 1


@dataclass
class Stand:
    """What is kept: the training itself, the table of what was exchanged so far, and the seconds that it took."""

    state: Deep
    exchanged: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def together(*tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tables of `Log.table` as one."""
    rows: dict[tuple[str, bool, str], dict[str, Any]] = {}
    for row in (one for table in tables for one in table):
        found = rows.setdefault((row["kind"], row["up"], row["what"]), {**row, "messages": 0, "bytes": 0})
        found["messages"] += row["messages"]
        found["bytes"] += row["bytes"]
        found["smallest"] = min(found["smallest"], row["smallest"])
        found["largest"] = max(found["largest"], row["largest"])
    return list(rows.values())


def sent(table: list[dict[str, Any]], *, up: bool) -> int:
    """Bytes of a table in one direction."""
    return sum(row["bytes"] for row in table if row["up"] == up)


def save_stand(stand: Stand, options: DeepOptions, path: Path) -> None:
    """Writes it, whole or not at all."""
    state = stand.state
    arrays: dict[str, NDArray[Any]] = {"weights": state.weights}
    if state.centres is not None:
        arrays["centres"] = state.centres
    about = {
        "format": FORMAT,
        "options": options.model_dump(mode="json"),
        "width": state.width,
        "round": state.round,
        "history": state.history,
        "excluded": list(state.excluded.items()),
        "suspects": [[*who, reason] for who, reason in state.suspects.items()],
        "exchanged": stand.exchanged,
        "seconds": stand.seconds,
    }
    content = save({name: np.ascontiguousarray(one) for name, one in arrays.items()}, {"stand": json.dumps(about)})
    write_bytes_atomically(path, content)


def load_stand(path: Path, options: DeepOptions) -> Stand | None:
    """What a file holds; None where there is none yet.

    Raises:
        UserError: the file is damaged, or belongs to other options.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        arrays = load(content)
        length = int.from_bytes(content[:8], "little")
        about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["stand"])
        weights = arrays["weights"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}); remove it to begin again") from None
    if about.get("format") != FORMAT:
        raise UserError(f"{path}: format {about.get('format')}, this version reads {FORMAT}")
    wanted = options.model_dump(mode="json")
    odd = sorted(name for name in wanted if about["options"].get(name) != wanted[name])
    if odd:
        was, now = about["options"].get(odd[0]), wanted[odd[0]]
        raise UserError(f"{path}: was begun with {odd[0]} {was}, not {now}; give another place or remove it")
    state = Deep(
        weights,
        int(about["width"]),
        arrays.get("centres"),
        round=int(about["round"]),
        history=about["history"],
        excluded={int(site): str(reason) for site, reason in about["excluded"]},
        suspects={(int(site), str(sign)): str(reason) for site, sign, reason in about["suspects"]},
    )
    return Stand(state, about["exchanged"], float(about["seconds"]))
