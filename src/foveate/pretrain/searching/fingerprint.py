"""Which model is it? A hash of what its embeddings depend on: architecture, preprocessing, weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from foveate.core.errors import UserError
from foveate.core.files import read_json, sha256_file
from foveate.vision.localizer.folder import CONFIG, PREPROCESS, WEIGHTS


def fingerprint(folder: Path) -> str:
    """The fingerprint of a model folder: 32 hexadecimal digits.

    Its card, its metrics and the rule by which it locates phrases do not count: they change no embedding. Weights
    that come with a package are named, with their hash, by the encoder's kind.

    Raises:
        UserError: when `folder` is no model folder.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: not a model folder, it has no {CONFIG}")
    config = read_json(folder / CONFIG)
    recipe = config.get("recipe") if isinstance(config, dict) else None
    if not isinstance(recipe, dict):
        raise UserError(f"{folder / CONFIG}: field 'recipe' is missing")
    built_of = {name: value for name, value in recipe.items() if name not in ("data", "training")}
    try:
        files = [sha256_file(folder / name) for name in (PREPROCESS, WEIGHTS)]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; the model folder is not complete") from error
    content = json.dumps([built_of, *files], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
