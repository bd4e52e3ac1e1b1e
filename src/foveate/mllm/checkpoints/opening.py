"""Import a model from elsewhere as a folder that is asked and trained like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, read_json
from foveate.core.hub import HUB_ID, Checkpoint, fetch
from foveate.core.model_folder import CONFIG
from foveate.mllm.checkpoints.ferret import read_ferret_parts
from foveate.mllm.checkpoints.llava import MODEL_TYPES, read_llava
from foveate.mllm.checkpoints.parts import ImportedParts, find_imported, write_model
from foveate.multimodal.opening import SHIPPED, is_multimodal


def is_importable(source: str | Path) -> bool:
    """Return whether a source is a LLaVA of transformers, in a folder or on the hub, and no model of ours."""
    config = Path(source).expanduser() / CONFIG
    if config.is_file():
        content = read_json(config)
        return isinstance(content, dict) and content.get("model_type") in MODEL_TYPES
    return str(source) not in SHIPPED and not is_multimodal(source) and bool(HUB_ID.fullmatch(str(source)))


def import_model(
    source: str | Path,
    folder: Path,
    *,
    tower: str | None = None,
    chat: Literal["vicuna", "chatml", "plain"] | None = None,
    tuning: Literal["frozen", "lora"] = "frozen",
) -> Path:
    """Write a model of LLaVA, LLaVA-NeXT or ml-ferret as FOLDER/model, its language model as FOLDER/language.

    Args:
        source: folder or hub id, with safetensors.
        folder: new, or of an earlier import of the same model, which is then only looked up.
        tower: of ml-ferret: folder or hub id of its image tower, instead of the one in its config.
        chat: template; by default Vicuna's, with which LLaVA 1.5, LLaVA 1.6 Vicuna and Ferret were trained.
        tuning: of the language model in a training that starts from the folder.

    Raises:
        UserError: the source is of another kind or does not fit its config, or the folder holds another model.
    """
    checkpoint = fetch(str(source), field="model")
    folder = folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder, purpose="import"):
        imported = find_imported(folder, checkpoint)
        if imported is not None:
            return imported
        return write_model(_read(checkpoint, tower), checkpoint, folder, chat=chat or "vicuna", tuning=tuning)


def _read(checkpoint: Checkpoint, tower: str | None) -> ImportedParts:
    config = checkpoint.config()
    if config.get("model_type") in MODEL_TYPES:
        if tower is not None:
            raise UserError(f"tower: {checkpoint.name} has its own (got {tower}); leave it out")
        return read_llava(checkpoint)
    if "mm_projector_type" in config or "mm_vision_tower" in config:
        return read_ferret_parts(checkpoint.name, tower=tower)
    raise UserError(
        f"{checkpoint.name}: not imported (got model_type '{config.get('model_type')}'); expected "
        f"{', '.join(MODEL_TYPES)} of transformers, or a folder of ml-ferret"
    )
