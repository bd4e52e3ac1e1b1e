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
from torch import Tensor, nn

from foveate.adapt.adapter import MethodSettings, list_matches
from foveate.adapt.heads import build_head, describe_head
from foveate.adapt.model import AdaptedModel
from foveate.adapt.peft_format import add_peft
from foveate.adapt.registry import parse_settings
from foveate.adapt.tasks import SINGLE_LABEL, Answers
from foveate.core.errors import UserError
from foveate.core.model_folder import check_tensors, read_config, read_tensors, write_model_folder
from foveate.core.peft_folder import is_peft
from foveate.core.progress import say

KIND = "foveate-adapter"
# 3 always has `strength`; 1 had none, 2 only where it was not 1.
FORMAT = 3
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
    """Write an adapter with its head, each file atomically, adapter.json last; return the folder.

    Args:
        name: of the adapter; the one in use by default.
        settings, tensors, strength: instead of the adapter's own, for models derived from it (`save_at`).

    Example:
        >>> import timm
        >>> adapted = adapt(timm.create_model("vit_tiny_patch16_224", depth=1), "bitfit", classes=3)
        >>> sorted(path.name for path in save_adapter(adapted, new_folder).iterdir())
        ['adapter.json', 'adapter.safetensors']
    """
    name = name or adapted.active
    adapter = adapted.adapter(name)
    config = {
        "strength": adapter.strength if strength is None else strength,
        "settings": (settings or adapter.settings).model_dump(mode="json"),
        "head": describe_head(adapted.heads[name]),
        "head_trained_before": name in adapted.first_heads,
        "backbone": {
            **adapted.backbone.describe(),
            # Hash the untuned backbone: an adapter that tunes its tensors must not change what it is checked against.
            "weights": adapted.digest,
            "buffers": adapted.backbone.buffers_digest(),
        },
        "modules": dict(adapted.backbone.modules),
        "info": adapted.info[name],
    }
    return write_model_folder(
        Path(folder),
        kind=KIND,
        format=FORMAT,
        config=config,
        tensors=adapter_tensors(adapted, name) if tensors is None else tensors,
        config_name=CONFIG,
        weights_name=WEIGHTS,
    )


def adapter_tensors(adapted: AdaptedModel, name: str) -> dict[str, Tensor]:
    """Return what a folder holds of an adapter: its tensors, its head, the head that it started from."""
    tensors: dict[str, Tensor] = {f"adapter.{key}": value for key, value in adapted.tensors(name).items()}
    tensors |= {f"head.{key}": value for key, value in adapted.heads[name].named_parameters()}
    if name in adapted.first_heads:
        tensors |= {f"first_head.{key}": value for key, value in adapted.first_heads[name].named_parameters()}
    return tensors


def find_adapter_folder(path: Path) -> Path:
    """Return the adapter folder of a path: itself, or `adapter` in a run folder."""
    inner = path / "adapter"
    return inner if not (path / CONFIG).is_file() and (inner / CONFIG).is_file() else path


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """Read and check the adapter.json of an adapter folder.

    Raises:
        UserError: the folder is not an adapter, of another format, or a field is missing or wrong.
    """
    path = Path(folder)
    sections = dict.fromkeys(("settings", "head", "backbone", "info"), dict)
    config = read_config(path, kind=KIND, formats=[FORMAT], fields=sections, label="adapter", config_name=CONFIG)
    strength = config.get("strength")
    # JSON's true is an int in Python, and Python's parser takes NaN for a float.
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
        raise UserError(f"{path / CONFIG}: field 'strength' must be a finite number (got {strength})")
    return {**config, "strength": float(strength)}


def add_adapter(
    adapted: AdaptedModel, folder: str | Path, *, name: str = "default", other_weights: bool = False
) -> None:
    """Add a saved adapter to an adapted model and use it; print what it matched.

    Args:
        other_weights: allow a backbone of the same architecture with other values than the adapter was trained on.

    Raises:
        UserError: backbone, tensors or shapes differ from the saved ones.
    """
    path, config = Path(folder), read_adapter_config(folder)
    _check_backbone(adapted, config["backbone"], path, other_weights)
    settings = parse_settings(config["settings"])
    tensors = read_tensors(path / WEIGHTS)
    try:
        head = build_head(config["head"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / CONFIG}: field 'head' is damaged ({error})") from error
    before = adapted.active
    # Attached before the values are loaded: only then all names and shapes that the folder must hold are known.
    adapted.add(settings, head=head, name=name)
    try:
        if not config.get("head_trained_before"):
            # `add` takes every given head for one that was trained; this one only brings the shapes.
            del adapted.first_heads[name]
        # Compared with an adapter built anew, so that every tensor is either loaded or an error.
        expected = adapter_tensors(adapted, name)
        _check_values(tensors, expected, path / WEIGHTS)
        with torch.no_grad():
            for key, value in expected.items():
                value.copy_(tensors[key])
    except BaseException:
        # A folder that does not fit leaves the model as it was, with the adapter in use before.
        adapted.remove(name, use=before)
        raise
    adapter = adapted.adapter(name)
    adapter.strength = config["strength"]
    adapted.info[name] = config["info"]
    count = sum(value.numel() for key, value in tensors.items() if key.startswith("adapter."))
    matches = list_matches(adapter, adapted.backbone) or "the head alone"
    say(f"loaded {len(tensors)} tensors from {path} ({count:,} parameters without the head): {matches}")


def read_head(folder: str | Path, classes: Sequence[str], *, task: str = SINGLE_LABEL) -> nn.Module:
    """Read the head of a saved adapter, to start another one from.

    Raises:
        UserError: it has other classes, or was trained on labels of another kind.
    """
    path, config = Path(folder), read_adapter_config(folder)
    saved = Answers.from_info(config["info"]).task
    if saved != task:
        raise UserError(f"{path}: its head was trained on {saved} labels; these are {task}")
    known = config["info"].get("classes", [])
    if list(known) != list(classes):
        unknown = next((name for name in classes if name not in known), "")
        why = f"'{unknown}' is none of them" if unknown else "they are in another order, or more"
        raise UserError(f"{path}: its head has the classes {', '.join(known[:5]) or 'unknown'}: {why}")
    head, tensors = build_head(config["head"]), read_tensors(path / WEIGHTS)
    expected: dict[str, Tensor] = {f"head.{key}": value for key, value in head.named_parameters()}
    # Only the head's tensors: the rest of the folder may be of any method.
    _check_values({key: value for key, value in tensors.items() if key.startswith("head.")}, expected, path / WEIGHTS)
    with torch.no_grad():
        for key, value in expected.items():
            value.copy_(tensors[key])
    return head


def load_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    name: str = "default",
    other_weights: bool = False,
    classes: int | None = None,
) -> AdaptedModel:
    """Return an adapted model from a plain one and a saved adapter, in evaluation mode.

    Args:
        model: the network that the adapter was trained on, with the same weights.
        folder: an adapter folder of Foveate, or one of PEFT with LoRA.
        name: of the adapter.
        other_weights: allow a network of the same architecture with other values.
        classes: of a new head, for a folder of PEFT without one.

    Raises:
        UserError: see `add_adapter`.

    Example:
        >>> import timm, torch
        >>> network = timm.create_model("vit_tiny_patch16_224", depth=1).eval()
        >>> adapted = adapt(network, "bitfit", classes=3)
        >>> folder = save_adapter(adapted, new_folder)
        >>> network = adapted.detach()
        >>> load_adapter(network, folder)(torch.zeros(1, 3, 224, 224)).shape
        torch.Size([1, 3])
    """
    of_peft = is_peft(Path(folder))
    if classes is not None and not of_peft:
        raise UserError(f"classes {classes} has no effect: {folder} has a head")
    # PEFT names layers, and nothing of how a network of one's own is mapped.
    modules = None if of_peft else read_adapter_config(folder).get("modules")
    adapted = AdaptedModel(model, modules if isinstance(modules, dict) else None)
    try:
        if of_peft:
            add_peft(adapted, folder, name=name, classes=classes)
        else:
            add_adapter(adapted, folder, name=name, other_weights=other_weights)
    # Also on KeyboardInterrupt: the caller's network must not keep its hooks.
    except BaseException:
        adapted.detach()
        raise
    return adapted.eval()


def _check_backbone(adapted: AdaptedModel, saved: dict[str, Any], path: Path, other_weights: bool) -> None:
    present = adapted.backbone.describe()
    # The family is not compared: the same ViT in timm and in open_clip has the same names and shapes.
    for field in ("blocks", "width", "features", "tensors", "architecture"):
        if saved.get(field) != present[field]:
            raise UserError(
                f"{path}: the adapter is for another architecture: {field} {saved.get(field)}; this backbone has "
                f"{present[field]} (family {saved.get('family')}, here {present['family']})"
            )
    if other_weights:
        return
    buffers = adapted.backbone.buffers_digest()
    for name, there, here in (
        ("weights", saved.get("weights"), adapted.digest),
        ("batch-norm statistics", saved.get("buffers"), buffers),
    ):
        if there != here:
            raise UserError(
                f"{path}: the adapter was trained on other {name} of this architecture ({there}, here {here}); open "
                "the same checkpoint, or allow it with other_weights=True"
            )


def _check_values(tensors: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    """Raise UserError unless names and shapes are the expected ones and all values are finite."""
    check_tensors(tensors, expected, path)
    # One NaN in an adapter makes every output of the network NaN, long after the folder was read.
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: tensor '{key}' has values that are NaN or infinite")
