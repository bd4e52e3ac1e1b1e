"""Parts of a model from elsewhere, and the model folder that they become."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.files import commit_atomically, read_json, write_json_atomically
from foveate.core.hub import Checkpoint, loading
from foveate.core.model_folder import CONFIG
from foveate.core.recipes import validate
from foveate.multimodal.build import build_model, open_source
from foveate.multimodal.folder import read_settings, save_model
from foveate.multimodal.settings import MultimodalSettings, SourceSettings
from foveate.records.conversations import REGION

MODEL, LANGUAGE = "model", "language"
_IDENTITY = "imported.json"


@dataclass(frozen=True)
class ImportedParts:
    """Parts of a model from elsewhere.

    Attributes:
        settings: of the model, but for its language model.
        decoder: a causal language model of transformers.
        tower, connector, regions: weights under our names, tower and connector without prefix.
    """

    settings: dict[str, Any]
    decoder: Any
    tower: Mapping[str, Tensor]
    connector: Mapping[str, Tensor]
    regions: Mapping[str, Tensor] = field(default_factory=dict)


def load_part(module: torch.nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load the weights of a part; raise UserError for the first that is missing, surplus or of another shape."""
    # Compared here, because the error of `load_state_dict` lists all names of a part without naming its file.
    expected = module.state_dict()
    for name in sorted({*expected, *tensors}):
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape:
            got = tuple(tensors[name].shape) if name in tensors else "none"
            shape = tuple(expected[name].shape) if name in expected else "no such tensor"
            raise UserError(f"{where}.{name}: does not fit its config (got {got}); expected {shape}")
    module.load_state_dict(dict(tensors))


def write_model(parts: ImportedParts, checkpoint: Checkpoint, folder: Path, *, tower: str | None, chat: str) -> Path:
    """Write the parts as FOLDER/language, in the format of transformers, and FOLDER/model; return the latter.

    Args:
        tower: see `foveate.mllm.checkpoints.opening.import_model`. chat: template.

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
