"""Where DeepFeCA's training stands, on disk after every round: a killed run goes on and ends with the same weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from foveate.federated.deep.options import DeepOptions
from foveate.federated.deep.rounds import Deep
from foveate.federated.store import read_state, write_state

FORMAT = 2


@dataclass
class TrainingSnapshot:
    """What is kept: the training itself, the table of what was exchanged so far, the seconds that it took, and a digest
    of the data that it was made of.
    """

    state: Deep
    exchanged: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    data: str = ""


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


def save_stand(stand: TrainingSnapshot, options: DeepOptions, path: Path) -> None:
    """Writes it, whole or not at all."""
    state = stand.state
    arrays: dict[str, NDArray[Any]] = {"weights": state.weights}
    if state.centers is not None:
        arrays["centers"] = state.centers
    about = {
        "width": state.width,
        "round": state.round,
        "history": state.history,
        "excluded": list(state.excluded.items()),
        "suspects": [[*who, reason] for who, reason in state.suspects.items()],
        "exchanged": stand.exchanged,
        "seconds": stand.seconds,
        "data": stand.data,
    }
    write_state(path, "stand", options, arrays, about, form=FORMAT)


def load_stand(path: Path, options: DeepOptions) -> TrainingSnapshot | None:
    """What a file holds; None where there is none yet.

    Raises:
        UserError: the file is damaged, is of another format, or belongs to other options.
    """
    return read_state(path, "stand", options, _stand_of, form=FORMAT)


def _stand_of(arrays: dict[str, NDArray[Any]], about: dict[str, Any]) -> TrainingSnapshot:
    state = Deep(
        arrays["weights"],
        int(about["width"]),
        arrays.get("centers"),
        round=int(about["round"]),
        history=about["history"],
        excluded={int(client): str(reason) for client, reason in about["excluded"]},
        suspects={(int(client), str(sign)): str(reason) for client, sign, reason in about["suspects"]},
    )
    return TrainingSnapshot(state, about["exchanged"], float(about["seconds"]), str(about["data"]))
