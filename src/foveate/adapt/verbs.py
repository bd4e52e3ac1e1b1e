"""What the sub-verbs of `foveate adapt` do beside training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveate.adapt.export import export_merged, export_peft
from foveate.adapt.folder import adapter_folder, load_adapter, read_config
from foveate.adapt.model import AdaptedModel
from foveate.adapt.opening import Opened, backbone_settings, open_backbone
from foveate.core.errors import UserError


def open_adapted(path: Path, *, backbone: str | None = None) -> tuple[AdaptedModel, Opened, dict[str, Any]]:
    """A saved adapter on its backbone, opened as it was for training; and what is saved beside it.

    Args:
        backbone: where the backbone is now, if not where it was.

    Raises:
        UserError: when the adapter does not say where its backbone is, or it is another one.
    """
    folder = adapter_folder(path)
    info = read_config(folder)["info"]
    if backbone is None and "backbone" not in info:
        raise UserError(f"{folder}: does not say where its backbone is; give --backbone")
    opened = open_backbone(info["backbone"] if backbone is None else backbone_settings(backbone))
    return load_adapter(opened.model, folder), opened, info


def merge_adapter(path: Path, to: Path, *, form: str, backbone: str | None = None) -> dict[str, Any]:
    """Writes an adapter's merged model ("merged") or PEFT's folder ("peft"); see `foveate.adapt.export`."""
    if to.exists() and any(to.iterdir() if to.is_dir() else [to]):
        raise UserError(f"{to}: exists and is not empty; give another folder")
    adapted, opened, _ = open_adapted(path, backbone=backbone)
    difference = None
    if form == "peft":
        export_peft(adapted, to)
    else:
        _, difference = export_merged(adapted, to, model_args=opened.model_args)
    return {
        "method": adapted.adapter().settings.method,
        "backbone": opened.settings,
        "format": form,
        "difference": difference,
    }
