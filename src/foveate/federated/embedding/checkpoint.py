"""A run's state on disk after every round: a killed run goes on where it was, and ends with the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from foveate.federated.embedding.grids import Grid
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.embedding.server import Known, State
from foveate.settings.errors import UserError
from foveate.settings.files import write_bytes_atomically

FORMAT = 1


def save_state(state: State, options: EmbeddingOptions, path: Path) -> None:
    """Writes the state, whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {"encoder": state.encoder}
    arrays |= {f"own.{one}": weights for one, weights in state.own.items()}
    for one, known in state.known.items():
        arrays |= {f"known.{one}.vector": known.vector, f"known.{one}.box": known.box}
    if state.grid is not None:
        arrays |= {f"grid.{number}": axis for number, axis in enumerate(state.grid.axes)}
    about = {
        "format": FORMAT,
        "options": options.model_dump(mode="json"),
        "round": state.round,
        "features": state.features,
        "sizes": list(state.sizes.items()),
        "known": [[one, known.r2, known.round] for one, known in state.known.items()],
        "axes": 0 if state.grid is None else len(state.grid.axes),
        "history": state.history,
        "notes": state.notes,
    }
    content = save({name: np.ascontiguousarray(one) for name, one in arrays.items()}, {"state": json.dumps(about)})
    write_bytes_atomically(path, content)


def load_state(path: Path, options: EmbeddingOptions) -> State | None:
    """The state in a file; None where there is none yet.

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
        about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["state"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}); remove it to begin again") from None
    if about.get("format") != FORMAT:
        raise UserError(f"{path}: format {about.get('format')}, this version reads {FORMAT}")
    wanted = options.model_dump(mode="json")
    odd = sorted(name for name in wanted if about["options"].get(name) != wanted[name])
    if odd:
        was, now = about["options"].get(odd[0]), wanted[odd[0]]
        raise UserError(f"{path}: was begun with {odd[0]} {was}, not {now}; give another place or remove it")
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
        history=about["history"],
        notes=about["notes"],
    )
