"""Import a model from elsewhere as a folder that is asked and trained like any other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, read_json
from foveate.core.hub import HUB_ID, Checkpoint, fetch, loading
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
) -> Path:
    """Write a model of LLaVA, LLaVA-NeXT or ml-ferret as FOLDER/model, its language model as FOLDER/language.

    Args:
        source: folder or hub id, with safetensors.
        folder: new, or of an earlier import of the same model, which is then only looked up.
        tower: of ml-ferret: folder or hub id of its image tower, instead of the one in its config.
        chat: template; by default Vicuna's, with which LLaVA 1.5, LLaVA 1.6 Vicuna and Ferret were trained, or chatml
            where the tokenizer has its marks.

    Raises:
        UserError: the source is of another kind, does not fit its config or needs `chat`, or the folder holds another
            model.
    """
    checkpoint = fetch(str(source), field="model")
    folder = folder.expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder, purpose="import"):
        imported = find_imported(folder, checkpoint, tower=tower, chat=chat)
        if imported is not None:
            return imported
        # Both before gigabytes of weights are read.
        _check_source(checkpoint, tower)
        template = chat or _find_chat(checkpoint)
        return write_model(_read(checkpoint, tower), checkpoint, folder, tower=tower, chat=template)


def _check_source(checkpoint: Checkpoint, tower: str | None) -> None:
    """Raise UserError for a model of another kind, or a tower where the model has one."""
    config = checkpoint.config()
    if config.get("model_type") in MODEL_TYPES:
        if tower is not None:
            raise UserError(f"tower: {checkpoint.name} has its own (got {tower}); leave it out")
    elif "mm_projector_type" not in config and "mm_vision_tower" not in config:
        raise UserError(
            f"{checkpoint.name}: not imported (got model_type '{config.get('model_type')}'); expected "
            f"{', '.join(MODEL_TYPES)} of transformers, or a folder of ml-ferret"
        )


def _read(checkpoint: Checkpoint, tower: str | None) -> ImportedParts:
    if checkpoint.config().get("model_type") in MODEL_TYPES:
        return read_llava(checkpoint)
    return read_ferret_parts(checkpoint.name, tower=tower)


def _find_chat(checkpoint: Checkpoint) -> str:
    """Return the chat template of a model's turns; raise UserError where they may be neither Vicuna's nor chatml's."""
    from transformers import AutoTokenizer

    with loading(checkpoint.name, kind="its tokenizer"):
        # Explicitly False: by default transformers asks on the terminal whether to run the code of a repository.
        tokenizer: Any = AutoTokenizer.from_pretrained(str(checkpoint.folder), trust_remote_code=False)
    vocabulary, config = tokenizer.get_vocab(), checkpoint.config()
    if "<|im_start|>" in vocabulary:
        return "chatml"
    text = config.get("text_config")
    # LLaVA's config leaves out what is its default, Llama; ml-ferret's names the decoder in its class.
    names = text.get("model_type", "llama") if isinstance(text, Mapping) else config.get("architectures", ["llama"])
    # Llama 3 is a Llama with turns of its own.
    if "llama" not in str(names).lower() or "<|start_header_id|>" in vocabulary:
        raise UserError(
            f"{checkpoint.name}: its turns are not those of Vicuna (got decoder {names}); set chat: expected chatml, "
            "plain or vicuna, whichever is nearest"
        )
    return "vicuna"
