"""Model folder of a captioner: config, weights, tokenizer, preprocessing, metrics and a card.

The frozen network of the image encoder is not in it: it comes with a package and is checked by its hash when loaded.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from foveate.caption.prompts import CAPTION_KINDS
from foveate.caption.small.model import CaptionerModel
from foveate.caption.small.recipe import CaptionerRecipe
from foveate.caption.small.tokens import CaptionTokens
from foveate.core.errors import UserError
from foveate.core.files import sha256_file
from foveate.core.model_folder import (
    CARD,
    CONFIG,
    METRICS,
    PREPROCESS,
    WEIGHTS,
    check_header,
    check_tensors,
    read_config,
    read_tensors,
    write_model_folder,
)
from foveate.core.recipes import validate
from foveate.vision.precision import choose_device
from foveate.vision.preprocess import check_preprocess

KIND = "captioner"
FORMAT = 3  # 3: recipe fields word_training, pixel_shuffle, max_alt_tokens and data.images
TOKENIZER = "tokenizer.json"


@dataclass
class SmallCaptioner:
    """A loaded captioner.

    Attributes:
        lengths: caption kind -> default length class.
        revision: hash over configuration, tokenizer and weights, 16 hexadecimal digits.
        provenance: how it was trained.
    """

    model: CaptionerModel
    tokens: CaptionTokens
    lengths: dict[str, int]
    revision: str
    provenance: dict[str, Any]


def save_captioner(
    folder: Path,
    *,
    recipe: CaptionerRecipe,
    weights: Mapping[str, Tensor],
    tokens: CaptionTokens,
    lengths: Mapping[str, int],
    preprocess: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model folder atomically; return it."""
    parameters = sum(value.numel() for value in weights.values())
    return write_model_folder(
        folder,
        kind=KIND,
        format=FORMAT,
        config={
            "vocabulary": len(tokens),
            "lengths": dict(lengths),
            "provenance": dict(provenance or {}),
            "recipe": recipe.model_dump(mode="json"),
        },
        tensors=weights,
        files={
            TOKENIZER: tokens.to_json(),
            # transformers opens the tokenizer with these two files alone.
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<end>",
                "pad_token": "<pad>",
            },
            PREPROCESS: preprocess,
            METRICS: metrics or {},
            CARD: card(recipe, parameters, metrics or {}, provenance or {}),
        },
    )


def load_captioner(folder: Path, *, device: str | None = None) -> SmallCaptioner:
    """Load a model folder for captioning.

    Raises:
        UserError: the folder holds no captioner, one of another format, or is incomplete or damaged.
    """
    fields = {"recipe": dict, "vocabulary": int, "lengths": dict, "provenance": dict}
    config = read_config(folder, kind=KIND, formats=(FORMAT,), fields=fields, label="captioner")
    if set(config["lengths"]) != set(CAPTION_KINDS):
        raise UserError(f"{folder / CONFIG}: field 'lengths' needs a number for each of {', '.join(CAPTION_KINDS)}")
    tokens = CaptionTokens.from_json(_read_text(folder / TOKENIZER))
    if len(tokens) != config["vocabulary"]:
        raise UserError(
            f"{folder / TOKENIZER}: wrong number of tokens (got {len(tokens)}); expected {config['vocabulary']} as "
            "in the weights"
        )
    recipe = validate(CaptionerRecipe, config["recipe"], where=str(folder / CONFIG))

    def build() -> CaptionerModel:
        return CaptionerModel(recipe, vocabulary=len(tokens), names=len(tokens.names), definite=tokens.definite)

    check_header(folder / WEIGHTS, config["recipe"]["decoder"], build, where=folder / CONFIG)
    model = build()
    check_preprocess(folder / PREPROCESS, model.image_encoder.preprocess)
    load_weights(model, folder / WEIGHTS)
    model.to(choose_device(device or "auto")).eval().requires_grad_(False)
    return SmallCaptioner(model, tokens, config["lengths"], revision_of(folder), config["provenance"])


def revision_of(folder: Path) -> str:
    """Hash the files that decide what the captioner writes, to 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in (CONFIG, TOKENIZER, WEIGHTS):
        digest.update(f"{name} {sha256_file(folder / name)}\n".encode())
    return digest.hexdigest()[:16]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; the model folder is incomplete") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged, not UTF-8 text") from error


def load_weights(model: CaptionerModel, path: Path) -> None:
    """Load the weights of a file into a model; all names and shapes must match."""
    tensors = read_tensors(path)
    check_tensors(tensors, model.state_dict(), path)
    model.load_state_dict(tensors)


def card(recipe: CaptionerRecipe, parameters: int, metrics: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Write the model card."""
    source = provenance.get("collection")
    data = f"Collection `{source}`; its license, as it states it: {provenance.get('license') or 'none stated'}."
    rows = "".join(
        f"| {row['question']} | {row['data']} | {column} | {value['value']:.3f} | {row['n']} |\n"
        for row in metrics.get("table", [])
        for column, value in row["values"].items()
        if value.get("value") is not None
    )
    table = f"| question | data | way | value | n |\n|---|---|---|---|---|\n{rows}" if rows else "Not evaluated."
    command = f"Trained by `{shlex.join(provenance['command'])}`. " if provenance.get("command") else ""
    return f"""---
license: other
license_name: chosen-by-the-publisher
library_name: foveate
pipeline_tag: image-to-text
tags: [image-captioning, controllable]
---
# Controllable captioner

{parameters:,} weights: the head of image encoder `{recipe.image_encoder["kind"]}`, a prefix, and a decoder of
transformers' type `{recipe.decoder["model_type"]}`. It writes short (ssc), descriptive (dsc), dense (dsc_plus) captions
and captions with facts of the AltText (afc).

## How to use it

`foveate caption COLLECTION --format ssc,dsc --backend foveate --set model=THIS_FOLDER` captions a collection,
`foveate captioner serve THIS_FOLDER` answers over HTTP as an OpenAI-compatible server.

## Data

{data if source else "The training collection is not recorded in this folder."}
{command}{provenance.get("revision") or ""}

## Measured

{table}

## Intended use and limits

For captions of images like those it was trained on, and for studies of what captions do to training. It is small: it
knows the names in its training texts only, and names wrong things as confidently as right ones, more often in longer
formats. Audit its captions (`foveate audit`) before you train on them. Do not identify people with it.
"""
