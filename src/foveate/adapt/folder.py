"""An adapter on disk: adapter.safetensors (its tensors, its head) and adapter.json (method, options, backbone).

Loading is strict: a missing, surplus or wrongly shaped tensor, another architecture, or other weights under it are
errors, never random values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from foveate.adapt.adapter import MethodSettings
from foveate.adapt.heads import describe_head, head_of
from foveate.adapt.model import AdaptedModel
from foveate.adapt.parameter_summary import grouped
from foveate.adapt.registry import settings_of
from foveate.core.errors import UserError
from foveate.core.files import read_json, write_bytes_atomically, write_json_atomically
from foveate.core.progress import say
from foveate.core.version import __version__

KIND = "foveate-adapter"
# 2 has a strength of the branch beside what 1 has; it is written only where that is not 1, so that earlier versions
# open all that they understand, and refuse the rest.
FORMATS = (1, 2)
CONFIG, WEIGHTS = "adapter.json", "adapter.safetensors"


def save_adapter(
    adapted: AdaptedModel,
    folder: str | Path,
    *,
    name: str | None = None,
    settings: MethodSettings | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    strength: float | None = None,
) -> Path:
    """Writes an adapter with its head, each file atomically, adapter.json last; returns the folder.

    Args:
        settings, tensors, strength: others than its own, for models that were made of it (`foveate.adapt.wise`).
    """
    path, name = Path(folder), name or adapted.active
    adapter = adapted.adapter(name)
    tensors = tensors_of(adapted, name) if tensors is None else tensors
    strength = adapter.strength if strength is None else strength
    write_bytes_atomically(
        path / WEIGHTS, save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    )
    write_json_atomically(
        path / CONFIG,
        {
            "kind": KIND,
            **({"format": 1} if strength == 1 else {"format": 2, "strength": strength}),
            "foveate": __version__,
            "settings": (settings or adapter.settings).model_dump(mode="json"),
            "head": describe_head(adapted.heads[name]),
            "head_trained_before": name in adapted.first_heads,
            "backbone": {
                **adapted.view.describe(),
                "weights": adapted.digest,
                "buffers": adapted.view.buffers_digest(),
            },
            "info": adapted.info[name],
        },
    )
    return path


def tensors_of(adapted: AdaptedModel, name: str) -> dict[str, Tensor]:
    """What a folder holds of an adapter: its tensors, its head, the head that it started from."""
    found: dict[str, Tensor] = {f"adapter.{key}": value for key, value in adapted.tensors(name).items()}
    found |= {f"head.{key}": value for key, value in adapted.heads[name].named_parameters()}
    if name in adapted.first_heads:
        found |= {f"first_head.{key}": value for key, value in adapted.first_heads[name].named_parameters()}
    return found


def adapter_folder(path: Path) -> Path:
    """The adapter folder of a path: itself, or `adapter` in a run folder."""
    inner = path / "adapter"
    return inner if not (path / CONFIG).is_file() and (inner / CONFIG).is_file() else path


def read_config(folder: str | Path) -> dict[str, Any]:
    """The content of an adapter folder's adapter.json, with a strength in every format.

    Raises:
        UserError: when the folder is none, or of a newer format.
    """
    path = Path(folder)
    if not (path / CONFIG).is_file():
        inner = path / "adapter"
        hint = f". Did you mean '{inner}'?" if (inner / CONFIG).is_file() else ""
        raise UserError(f"{path}: not an adapter folder, it has no {CONFIG}{hint}")
    config = read_json(path / CONFIG)
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise UserError(f"{path / CONFIG}: field 'kind' must be '{KIND}'")
    if config.get("format") not in FORMATS:
        allowed = " and ".join(map(str, FORMATS))
        raise UserError(f"{path / CONFIG}: format {config.get('format')}, this version reads {allowed}")
    strength = config.get("strength") if config["format"] == 2 else 1.0
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
        raise UserError(f"{path / CONFIG}: field 'strength' must be a number, it is {strength}")
    for key in ("settings", "head", "backbone", "info"):
        if not isinstance(config.get(key), dict):
            raise UserError(f"{path / CONFIG}: field '{key}' is missing")
    return {**config, "strength": float(strength)}


def add_saved(adapted: AdaptedModel, folder: str | Path, *, name: str = "default", other_weights: bool = False) -> None:
    """Adds a saved adapter to an adapted model and uses it; prints what it matched.

    Args:
        other_weights: allow a backbone of the same architecture with other values than the adapter was trained on.

    Raises:
        UserError: when backbone, tensors or shapes differ from the saved ones.
    """
    path, config = Path(folder), read_config(folder)
    _check_backbone(adapted, config["backbone"], path, other_weights)
    settings = settings_of(config["settings"])
    tensors = _read(path / WEIGHTS)
    try:
        head = head_of(config["head"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / CONFIG}: field 'head' is damaged ({error})") from error
    before = adapted.active
    adapted.add(settings, head=head, name=name)
    try:
        if not config.get("head_trained_before"):
            del adapted.first_heads[name]
        expected = tensors_of(adapted, name)
        _compare(tensors, expected, path / WEIGHTS)
        with torch.no_grad():
            for key, value in expected.items():
                value.copy_(tensors[key])
    except BaseException:
        adapted.remove(name, use=before)
        raise
    adapted.adapter(name).strength = config["strength"]
    adapted.info[name] = config["info"]
    body = sum(value.numel() for key, value in tensors.items() if key.startswith("adapter."))
    places = ", ".join(grouped(adapted.adapter(name).places(adapted.view))[:8]) or "the head alone"
    say(f"loaded {len(tensors)} tensors of {path} ({body:,} numbers beside the head): {places}")


def read_head(folder: str | Path, classes: Sequence[str]) -> nn.Module:
    """The head of a saved adapter, to start another one from.

    Raises:
        UserError: when it is of other classes.
    """
    path, config = Path(folder), read_config(folder)
    known = config["info"].get("classes", [])
    if list(known) != list(classes):
        odd = next((name for name in classes if name not in known), "")
        about = f"'{odd}' is none of them" if odd else "they are in another order, or more"
        raise UserError(f"{path}: its head is of the classes {', '.join(known[:5]) or 'unknown'}: {about}")
    head, tensors = head_of(config["head"]), _read(path / WEIGHTS)
    expected: dict[str, Tensor] = {f"head.{key}": value for key, value in head.named_parameters()}
    _compare({key: value for key, value in tensors.items() if key.startswith("head.")}, expected, path / WEIGHTS)
    with torch.no_grad():
        for key, value in expected.items():
            value.copy_(tensors[key])
    return head


def load_adapter(
    model: nn.Module, folder: str | Path, *, name: str = "default", other_weights: bool = False
) -> AdaptedModel:
    """An adapted model from a plain one and a saved adapter, in evaluation mode; see `add_saved`."""
    adapted = AdaptedModel(model)
    try:
        add_saved(adapted, folder, name=name, other_weights=other_weights)
    except BaseException:
        adapted.detach()
        raise
    return adapted.eval()


def _check_backbone(adapted: AdaptedModel, saved: dict[str, Any], path: Path, other_weights: bool) -> None:
    here = adapted.view.describe()
    for field in ("blocks", "width", "features", "tensors", "architecture"):
        if saved.get(field) != here[field]:
            raise UserError(
                f"{path}: was made for another architecture: {field} {saved.get(field)}, this backbone's is "
                f"{here[field]} (family {saved.get('family')}, here {here['family']})"
            )
    if saved.get("weights") != adapted.digest and not other_weights:
        raise UserError(
            f"{path}: was trained on other weights of this architecture ({saved.get('weights')}, here "
            f"{adapted.digest}); open the same checkpoint, or allow it with other_weights=True"
        )
    # Earlier versions did not keep this one.
    buffers = adapted.view.buffers_digest()
    if saved.get("buffers", buffers) != buffers and not other_weights:
        raise UserError(
            f"{path}: was trained with other statistics of batch norms ({saved['buffers']}, here {buffers}); open the "
            "same checkpoint, or allow it with other_weights=True"
        )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; the adapter folder is not complete") from error
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error})") from error


def _compare(tensors: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or surplus:
        raise UserError(f"{path}: tensors missing: {missing[:3] or 'none'}, surplus: {surplus[:3] or 'none'}")
    for key, value in tensors.items():
        if value.shape != expected[key].shape:
            raise UserError(f"{path}: '{key}' has shape {list(value.shape)}, wanted is {list(expected[key].shape)}")
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: '{key}' holds values that are no finite numbers")
