"""Import a model from elsewhere as a folder that is asked and trained like any other."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, commit_atomically, read_json, write_json_atomically
from foveate.core.hub import HUB_ID, Checkpoint, fetch, loading
from foveate.core.model_folder import CONFIG
from foveate.core.recipes import validate
from foveate.mllm.checkpoints.readers import MODEL_TYPES, ImportedParts, load_part, read_ferret_parts, read_llava
from foveate.multimodal.build import build_model, open_source
from foveate.multimodal.folder import read_settings, save_model
from foveate.multimodal.opening import SHIPPED, is_multimodal
from foveate.multimodal.settings import MultimodalSettings, SourceSettings
from foveate.records.conversations import REGION

MODEL, LANGUAGE = "model", "language"
_IDENTITY = "imported.json"


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


def write_model(parts: ImportedParts, checkpoint: Checkpoint, folder: Path, *, tower: str | None, chat: str) -> Path:
    """Write the parts as FOLDER/language, in the format of transformers, and FOLDER/model; return the latter.

    Args:
        tower: see `import_model`. chat: template.

    Raises:
        UserError: FOLDER/language is of another model, or a part does not fit the config.
    """
    identity = identify(checkpoint) | ({} if tower is None else {"tower": tower})
    language = folder / LANGUAGE
    if not language.is_dir():
        unfinished = folder / f".{LANGUAGE}.partial"
        # A killed import may have left shards of another model.
        shutil.rmtree(unfinished, ignore_errors=True)
        _save_language(parts.decoder, checkpoint, unfinished)
        write_json_atomically(unfinished / _IDENTITY, identity)
        commit_atomically(unfinished, language)
    stored = read_json(language / _IDENTITY) if (language / _IDENTITY).is_file() else {}
    if stored.get("sha256") != identity["sha256"]:
        raise UserError(f"{language}: not of {checkpoint.name} (got {stored.get('source')}); expected a new folder")
    dtype = "fp32" if parts.decoder.dtype == torch.float32 else "bf16"
    # Frozen: LoRA would cost time in every answer; a training that adds regions adds it.
    source = {"source": str(language.resolve()), "chat": chat, "tuning": "frozen", "dtype": dtype}
    settings = validate(MultimodalSettings, {**parts.settings, "language": source}, where=checkpoint.name)
    assert isinstance(settings.language, SourceSettings)
    opened = open_source(settings.language)
    model = build_model(settings, language_model=opened.model, region_id=opened.tokenizer.special[REGION])
    built: Any = model.tower
    load_part(built.encoder.trunk, _to_float(parts.tower), f"{checkpoint.name}: tower")
    load_part(model.connector, _to_float(parts.connector), f"{checkpoint.name}: connector")
    if model.region_reader is not None:
        load_part(model.region_reader.encoder, _to_float(parts.regions), f"{checkpoint.name}: region encoder")
    # Our models scale visual tokens to the length of embeddings; these were trained at their length.
    model.visual_gain.data.fill_(1)
    card = (
        f"# {checkpoint.name}, imported\n\nWeights of {checkpoint.name} ({identity['sha256']}) in the format of "
        "Foveate, written by `foveate mllm import`. Their license is that of the original; nothing was measured.\n"
    )
    return save_model(
        folder / MODEL,
        settings=settings,
        weights=model.state_dict(),
        language=opened,
        preprocess=model.tower.preprocess.to_dict(),
        card=card,
        provenance={"imported": identity},
    )


def identify(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return name, commit and digest of a checkpoint, to recognize what was imported."""
    return {"source": checkpoint.name, "commit": checkpoint.commit, "sha256": checkpoint.digest()}


def find_imported(folder: Path, checkpoint: Checkpoint, *, tower: str | None, chat: str | None) -> Path | None:
    """Return the model that an earlier import of the same checkpoint left in a folder.

    Raises:
        UserError: the folder holds another model, or the same with another tower or template.
    """
    # This file is written last: if it is missing, an earlier import was stopped, and the model is written again.
    if not (folder / MODEL / CONFIG).is_file():
        return None
    settings, config = read_settings(folder / MODEL)
    earlier = config["provenance"].get("imported")
    if earlier is None or earlier["sha256"] != checkpoint.digest():
        raise UserError(f"{folder}: holds another model (got {earlier}); expected a new folder for {checkpoint.name}")
    assert isinstance(settings.language, SourceSettings)
    for name, value, stored in (("tower", tower, earlier.get("tower")), ("chat", chat, settings.language.chat)):
        if value not in (None, stored):
            raise UserError(f"{name}: {folder} was imported with {stored} (got {value}); expected it, or a new folder")
    return folder / MODEL


def _save_language(decoder: Any, checkpoint: Checkpoint, folder: Path) -> None:
    from transformers import AutoTokenizer

    with loading(checkpoint.name):
        tokenizer: Any = AutoTokenizer.from_pretrained(str(checkpoint.folder), trust_remote_code=False)
        # The template of a processor that writes images; ours is named in the settings.
        tokenizer.chat_template = None
        decoder.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))


def _to_float(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in tensors.items()}
