"""Parts of a model from elsewhere, and the model folder that they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.files import commit_atomically
from foveate.core.hub import Checkpoint, loading
from foveate.core.recipes import validate
from foveate.multimodal.build import build_model, open_source
from foveate.multimodal.folder import read_settings, save_model
from foveate.multimodal.settings import MultimodalSettings, SourceSettings
from foveate.records.conversations import REGION

MODEL, LANGUAGE = "model", "language"


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
    expected = module.state_dict()
    for name in sorted({*expected, *tensors}):
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape:
            got = tuple(tensors[name].shape) if name in tensors else "none"
            shape = tuple(expected[name].shape) if name in expected else "no such tensor"
            raise UserError(f"{where}.{name}: does not fit its config (got {got}); expected {shape}")
    module.load_state_dict(dict(tensors))


def write_model(parts: ImportedParts, checkpoint: Checkpoint, folder: Path, *, chat: str, tuning: str) -> Path:
    """Write the parts as FOLDER/language, in the format of transformers, and FOLDER/model; return the latter."""
    language = folder / LANGUAGE
    if not language.is_dir():
        unfinished = folder / f".{LANGUAGE}.partial"
        _save_language(parts.decoder, checkpoint, unfinished)
        commit_atomically(unfinished, language)
    dtype = "fp32" if parts.decoder.dtype == torch.float32 else "bf16"
    source = {"source": str(language.resolve()), "chat": chat, "tuning": tuning, "dtype": dtype}
    settings = validate(MultimodalSettings, {**parts.settings, "language": source}, where=checkpoint.name)
    assert isinstance(settings.language, SourceSettings)
    opened = open_source(settings.language)
    model = build_model(settings, language_model=opened.model, region_id=opened.tokenizer.special[REGION])
    tower: Any = model.tower
    load_part(tower.encoder.trunk, _to_float(parts.tower), f"{checkpoint.name}: tower")
    load_part(model.connector, _to_float(parts.connector), f"{checkpoint.name}: connector")
    if model.region_reader is not None:
        load_part(model.region_reader.encoder, _to_float(parts.regions), f"{checkpoint.name}: region encoder")
    # Our models scale visual tokens to the length of embeddings; these were trained at their length.
    model.visual_gain.data.fill_(1)
    identity = identify(checkpoint)
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


def find_imported(folder: Path, checkpoint: Checkpoint) -> Path | None:
    """Return the model that an earlier import of the same checkpoint left in a folder.

    Raises:
        UserError: the folder holds another model.
    """
    if not (folder / MODEL).is_dir():
        return None
    earlier = read_settings(folder / MODEL)[1]["provenance"].get("imported")
    if earlier is None or earlier["sha256"] != checkpoint.digest():
        raise UserError(f"{folder}: holds another model (got {earlier}); expected a new folder for {checkpoint.name}")
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
