"""A run's state on disk after every round: a killed run goes on where it was, and ends with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from foveate.federated.embedding.grids import Grid
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.embedding.server import Known, State
from foveate.federated.store import read_state, write_state

FORMAT = 2


def save_state(state: State, options: EmbeddingOptions, path: Path) -> None:
    """Writes the state, whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {"encoder": state.encoder}
    arrays |= {f"own.{one}": weights for one, weights in state.own.items()}
    for one, known in state.known.items():
        arrays |= {f"known.{one}.vector": known.vector, f"known.{one}.box": known.box}
    if state.grid is not None:
        arrays |= {f"grid.{number}": axis for number, axis in enumerate(state.grid.axes)}
    about = {
        "round": state.round,
        "features": state.features,
        "sizes": list(state.sizes.items()),
        "known": [[one, known.r2, known.round] for one, known in state.known.items()],
        "axes": 0 if state.grid is None else len(state.grid.axes),
        "again": state.again,
        "history": state.history,
        "notes": state.notes,
        "data": state.data,
    }
    write_state(path, "state", options, arrays, about, form=FORMAT)


def load_state(path: Path, options: EmbeddingOptions) -> State | None:
    """The state in a file; None where there is none yet.

    Raises:
        UserError: the file is damaged, is of another format, or belongs to other options.
    """
    return read_state(path, "state", options, _state_of, form=FORMAT)


def _state_of(arrays: dict[str, NDArray[Any]], about: dict[str, Any]) -> State:
    known = {
        int(one): Known(arrays[f"known.{one}.vector"], arrays[f"known.{one}.box"], float(r2), int(round_))
        for one, r2, round_ in about["known"]
    }
    axes = tuple(arrays[f"grid.{number}"] for number in range(about["axes"]))
    return State(
        round=int(about["round"]),
        encoder=arrays["encoder"],
        sizes={int(one): int(size) for one, size in about["sizes"]},
        features=int(about["features"]),
        own={int(name[4:]): array for name, array in arrays.items() if name.startswith("own.")},
        known=known,
        grid=Grid(axes) if axes else None,
        again=int(about.get("again", 0)),
        history=about["history"],
        notes=about["notes"],
        data=str(about["data"]),
    )
