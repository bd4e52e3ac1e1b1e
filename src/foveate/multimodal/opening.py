"""Open a multimodal model: the shipped one, a model folder, or one of transformers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from foveate.core.devices import choose_device
from foveate.core.errors import UserError
from foveate.core.files import read_json, sha256_file
from foveate.core.hub import KINDS, fetch, locate
from foveate.core.model_folder import CONFIG
from foveate.core.paths import DATA
from foveate.core.peft_folder import is_peft
from foveate.multimodal.ask import Mllm
from foveate.multimodal.folder import KIND, hash_model, load_model
from foveate.multimodal.foreign import ForeignMllm, open_foreign
from foveate.multimodal.foreign_adapter import read_base
from foveate.multimodal.recognition import PictureReader
from foveate.multimodal.settings import OpeningOptions

SHIPPED = KINDS["multimodal"].shipped


def find_folder(source: str | Path) -> Path:
    """Return the folder of a shipped model by its name; any other source is a path."""
    return DATA / str(source) if str(source) in SHIPPED else Path(source).expanduser()


def is_multimodal(source: str | Path) -> bool:
    """Return whether a source is a shipped model or a folder that `open_mllm` opens; hub ids are not looked up."""
    config = _read_config(find_folder(source))
    return config.get("kind") == KIND or _is_foreign(config) or is_peft(find_folder(source))


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return config if isinstance(config, dict) else {}


def _is_foreign(config: dict[str, Any]) -> bool:
    return "kind" not in config and "model_type" in config


def open_mllm(
    source: str | Path = "mini",
    *,
    device: str | None = None,
    adapter: str | Path | None = None,
    unit_of_boxes: str | None = None,
    opening: OpeningOptions | None = None,
) -> Mllm | ForeignMllm:
    """Open a multimodal model that answers questions about images.

    Args:
        source: "mini", "mini-ferret" or "smollm2-mini" (shipped with the package, the last without its language model,
            see `foveate mllm fetch`), a model folder of `foveate mllm train`, or a folder or hub id of an
            image-text-to-text model of transformers; or the folder of an adapter of PEFT that names such a model.
        device: such as "cpu" or "cuda"; by default the fastest there is.
        adapter: folder of an adapter of PEFT for a model of transformers.
        unit_of_boxes: what the numbers of a box mean, of a model of transformers; by default as its family has it.
        opening: dtype, device map and quantization of a model of transformers.

    Raises:
        UserError: there is no such model, or the folder holds another kind.

    Example:
        >>> model = open_mllm("mini")
        >>> model.ask(image_file, "What is in the image?").finished
        True
    """
    folder, torch_device = find_native_folder(source), choose_device(device or "auto")
    if folder is None:
        return open_foreign(str(source), unit=unit_of_boxes, device=torch_device, adapter=adapter, opening=opening)
    refuse_opening(source, opening)
    if adapter is not None:
        raise UserError(f"adapter '{adapter}': {source} is a model of Foveate; expected one of transformers")
    if unit_of_boxes is not None:
        raise UserError(
            f"unit of boxes: '{source}' writes pixels, as all of foveate mllm train (got '{unit_of_boxes}'); expected "
            "none, or a model of transformers"
        )
    pictures = PictureReader(device=device) if knows_scenes_alone(folder) else None
    model = Mllm(load_model(folder, device=torch_device), pictures)
    model.folder = folder
    return model


def knows_scenes_alone(folder: Path) -> bool:
    """Return whether a model was trained on generated scenes alone: all that ship were, a user's was not."""
    return folder.resolve().parent == DATA.resolve()


def refuse_opening(source: str | Path, opening: OpeningOptions | None) -> None:
    """Raise UserError if a model of ours was given options for those of transformers."""
    if opening is not None and (given := opening.model_dump(exclude_none=True)):
        names = ", ".join(f"{name} {value}" for name, value in given.items())
        raise UserError(f"{source}: a model of Foveate (got {names}); expected these options with one of transformers")


def find_native_folder(source: str | Path, *, revision: str | None = None) -> Path | None:
    """Return the folder of a model of foveate mllm train; None for one of transformers or an adapter of such.

    Args:
        revision: of a repository of the hub, whose config is fetched to see what it holds.

    Raises:
        UserError: there is no such model, or the folder holds another kind.
    """
    if is_peft(find_folder(source)):
        return None
    folder = locate("multimodal", source)
    if folder is None:
        known = fetch(str(source), revision=revision, field="model", patterns=[CONFIG])
        is_native = _read_config(known.folder).get("kind") == KIND
        return fetch(str(source), revision=revision, field="model").folder if is_native else None
    config = _read_config(folder)
    # Before `_is_foreign`: these configs have a model_type too, but transformers cannot read their layout.
    if "mm_projector_type" in config or str(config.get("model_type")).lower().startswith("ferret"):
        raise UserError(
            f"{folder}: in the layout of ml-ferret, which is not opened as it is; expected the folder that foveate "
            f"mllm import {folder} --out DIR writes"
        )
    if _is_foreign(config):
        return None
    if config.get("kind") not in (None, KIND):
        raise UserError(
            f"{folder}: holds a model of kind '{config['kind']}', which cannot be asked; expected one of "
            "foveate mllm train"
        )
    return folder


def hash_source(source: str, opening: OpeningOptions | None = None) -> str:
    """Hash what decides the answers of a model; of one of transformers its folder's weights, or its hub id."""
    native = find_native_folder(source)
    if native is not None:
        return hash_model(native)
    folder = find_folder(source)
    # The JSON files hold config, tokenizer and preprocessing, which change answers just as weights do.
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]) if folder.is_dir() else []
    described = opening.describe() if opening is not None else ""
    content = [source, *(f"{file.name} {sha256_file(file)}" for file in files)] if files else [source]
    if is_peft(folder):
        content.append(hash_source(read_base(folder)))
    content += [described] if described else []
    return hashlib.sha256("\n".join(content).encode()).hexdigest()
