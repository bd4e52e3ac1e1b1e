"""Adapters of PEFT for models of transformers: their folder, their base, and the model with their weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.core.hub import loading
from foveate.core.model_folder import read_tensors
from foveate.core.peft_folder import CONFIG, WEIGHTS

# Beside the files of PEFT, which have no place for what Foveate knows of a training.
NOTES = "foveate.json"


def require_peft() -> Any:
    """Return the module `peft`; raise UserError with what installs it."""
    try:
        import peft
    except ImportError as error:
        raise UserError("adapters need the package peft; install it with pip install 'foveate[tune]'") from error
    return peft


@contextmanager
def adding(source: object, *, kind: str = "it") -> Iterator[None]:
    """Turn the errors of PEFT into a UserError that names `source`, see `loading`; hide what it says to developers."""
    with loading(source, kind=kind), warnings.catch_warnings():
        # PEFT asks models by a name that transformers will drop.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def read_base(folder: Path) -> str:
    """Return the name of the model that an adapter belongs to.

    Raises:
        UserError: its config names none.
    """
    config = read_json(folder / CONFIG)
    base = config.get("base_model_name_or_path") if isinstance(config, Mapping) else None
    if not isinstance(base, str) or not base:
        raise UserError(f"{folder / CONFIG}: names no base; expected --model BASE --adapter {folder}")
    return base


def read_unit(folder: Path) -> str | None:
    """Return the unit of the boxes that an adapter was trained to write; None if its folder does not say."""
    notes = read_json(folder / NOTES) if (folder / NOTES).is_file() else {}
    unit = notes.get("unit_of_boxes") if isinstance(notes, Mapping) else None
    return unit if isinstance(unit, str) else None


def attach_adapter(model: Any, folder: Path, *, base: str) -> Any:
    """Add the weights of an adapter to its base, in place; return the base, for inference.

    Args:
        base: name of the model, for errors.

    Raises:
        UserError: the folder is no adapter of PEFT, its weights are a pickle, or it is of another model.
    """
    peft = require_peft()
    if not (folder / CONFIG).is_file():
        raise UserError(f"adapter '{folder}': not a folder of PEFT: {CONFIG} is missing")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"adapter '{folder}': {WEIGHTS} is missing; pickles are not read")
    named = read_json(folder / CONFIG).get("base_model_name_or_path") or base
    if Path(named).name != Path(base).name:
        warnings.warn(f"adapter '{folder}' was trained on {named}, not on {base}", stacklevel=2)
    tensors = read_tensors(folder / WEIGHTS)
    with adding(f"adapter '{folder}' on {base}"):
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        network = peft.PeftModel(model, config)
        expected = peft.get_peft_model_state_dict(network, save_embedding_layers=False)
        _check_adapter(tensors, expected, folder, base)
        peft.set_peft_model_state_dict(network, tensors)
    return network.get_base_model().eval().requires_grad_(False)


def _check_adapter(tensors: Mapping[str, Any], expected: Mapping[str, Any], folder: Path, base: str) -> None:
    """Raise UserError for the first tensor that is missing, left over or of another shape."""
    for name in sorted(tensors.keys() | expected.keys()):
        stored, needed = (tuple(each[name].shape) if name in each else None for each in (tensors, expected))
        if stored != needed:
            raise UserError(
                f"adapter '{folder}': is of another model than {base}: tensor '{name}' has the shape "
                f"{list(stored) if stored else 'of none'}; expected {list(needed) if needed else 'no such tensor'}"
            )
