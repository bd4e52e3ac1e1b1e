"""The captioner's model folder: config.json, model.safetensors, tokenizer.json, preprocess.json, metrics.json, a card.

Opened strictly: another kind, another format version, a missing or surplus weight is refused. The frozen network of the
image encoder comes with a package and is checked by its hash when it is loaded.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from foveate.caption.prompts import CAPTION_KINDS
from foveate.caption.small.model import CaptionerModel
from foveate.caption.small.recipe import CaptionerRecipe
from foveate.caption.small.tokens import CaptionTokens
from foveate.core.errors import UserError
from foveate.core.files import (
    read_json,
    sha256_file,
    write_bytes_atomically,
    write_json_atomically,
    write_text_atomically,
)
from foveate.core.recipes import validate
from foveate.core.version import __version__
from foveate.vision.precision import choose_device

KIND = "captioner"
FORMAT = 2
CONFIG, WEIGHTS, TOKENIZER, PREPROCESS, METRICS, CARD = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "preprocess.json",
    "metrics.json",
    "README.md",
)


@dataclass
class SmallCaptioner:
    """An opened captioner. lengths: caption kind -> the length class that is asked for by default. revision: the first
    16 digits of a hash over its configuration, tokenizer and weights."""

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
    """Writes a model folder, each file atomically, config.json last; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    write_bytes_atomically(folder / WEIGHTS, save(found))
    write_text_atomically(folder / TOKENIZER, tokens.to_json())
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<pad>"}
    write_json_atomically(folder / "tokenizer_config.json", special)
    write_json_atomically(folder / PREPROCESS, dict(preprocess))
    write_json_atomically(folder / METRICS, dict(metrics or {}))
    parameters = sum(value.numel() for value in found.values())
    write_text_atomically(folder / CARD, card(recipe, parameters, metrics or {}, provenance or {}))
    config = {
        "kind": KIND,
        "format": FORMAT,
        "foveate": __version__,
        "vocabulary": len(tokens),
        "lengths": dict(lengths),
        "provenance": dict(provenance or {}),
        "recipe": recipe.model_dump(mode="json"),
    }
    write_json_atomically(folder / CONFIG, config)
    return folder


def load_captioner(folder: Path, *, device: str | None = None) -> SmallCaptioner:
    """Opens a model folder for captioning.

    Raises:
        UserError: when it is no captioner's, of another version, incomplete or damaged.
    """
    config = _read_config(folder)
    tokens = CaptionTokens.from_json(_read_text(folder / TOKENIZER))
    if len(tokens) != config["vocabulary"]:
        raise UserError(f"{folder / TOKENIZER}: has {len(tokens)} tokens, the weights are for {config['vocabulary']}")
    recipe = validate(CaptionerRecipe, config["recipe"], where=str(folder / CONFIG))
    model = CaptionerModel(recipe, vocabulary=len(tokens), names=len(tokens.names), definite=tokens.definite)
    fill(model, folder / WEIGHTS)
    chosen = choose_device(device or "auto")
    model.to(chosen).eval().requires_grad_(False)
    return SmallCaptioner(model, tokens, config["lengths"], revision_of(folder), config["provenance"])


def revision_of(folder: Path) -> str:
    """16 hexadecimal digits that change with any of the files that decide what the captioner says."""
    digest = hashlib.sha256()
    for name in (CONFIG, TOKENIZER, WEIGHTS):
        digest.update(f"{name} {sha256_file(folder / name)}\n".encode())
    return digest.hexdigest()[:16]


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        hint = folder / "model"
        also = f". Did you mean '{hint}'?" if (hint / CONFIG).is_file() else ""
        why = f"it has no {CONFIG}" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder}: not a captioner's folder, {why}{also}")
    config = read_json(folder / CONFIG)
    kind = config.get("kind") if isinstance(config, dict) else None
    if kind != KIND:
        raise UserError(f"{folder / CONFIG}: kind is '{kind}', allowed here is '{KIND}'")
    if config.get("format") != FORMAT:
        raise UserError(f"{folder / CONFIG}: format {config.get('format')}, this version reads {FORMAT}")
    for name in ("recipe", "vocabulary", "lengths", "provenance"):
        if name not in config:
            raise UserError(f"{folder / CONFIG}: field '{name}' is missing")
    lengths = config["lengths"]
    if not isinstance(lengths, dict) or set(lengths) != set(CAPTION_KINDS):
        raise UserError(f"{folder / CONFIG}: field 'lengths' must have a number for each of {', '.join(CAPTION_KINDS)}")
    return config


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; the model folder is not complete") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged, it is no text") from error


def fill(model: CaptionerModel, path: Path) -> None:
    """Puts the weights of a file into a model, strictly."""
    try:
        weights = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; the model folder is not complete") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error})") from error
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unexpected:
        raise UserError(f"{path}: weights missing: {missing[:3] or 'none'}, unexpected: {unexpected[:3] or 'none'}")
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            wanted = tuple(expected[name].shape)
            raise UserError(f"{path}: '{name}' has shape {tuple(value.shape)}, the model's is {wanted}")
    model.load_state_dict(weights)


def card(recipe: CaptionerRecipe, parameters: int, metrics: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """The README.md of the model folder."""
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
and such that take up facts of the AltText (afc).

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
knows the names that its training texts had, it names wrong things with the same confidence as right ones, and more so
in longer formats. Audit its captions (`foveate audit`) before you train on them. Do not identify people with it.
"""
