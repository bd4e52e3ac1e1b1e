"""Find a trained image-text model by name: open_clip's, a hub repository, a folder of another library or Foveate's.

A CLIP or SigLIP of another library is opened from its own files as a `LocalizingModel` without a region module: nothing
is copied, converted or trained. The name that is stored opens the same weights again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.devices import choose_device
from foveate.core.errors import UserError, nearest
from foveate.core.files import read_json, sha256_file
from foveate.core.hub import KINDS, Checkpoint, ModelKind, check_folder, find
from foveate.core.model_folder import CONFIG, PREPROCESS, WEIGHTS
from foveate.vision.hf.towers import KIND_OF_TYPE
from foveate.vision.localizer.folder import KIND, load_model
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.localizer.settings import LocalizerSettings, RegionSettings
from foveate.vision.registry import find_encoder, tower_options

OPEN_CLIP = "open_clip:"
SHIPPED = KINDS["localizer"].shipped
OPEN_CLIP_CONFIG = "open_clip_config.json"
# How open_clip names what `Preprocess` calls geometry.
_GEOMETRIES = {"shortest": "center_crop", "squash": "stretch", "longest": "letterbox"}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A trained model that was found, but not opened.

    Attributes:
        name: opens the same weights again: a folder, OWNER/NAME@COMMIT or open_clip:ARCH/PRETRAINED.
        folder: of its files; None for a name of open_clip.
        is_local: whether `name` is a folder of the user's, which may move.
        embed_dim: E. localizes: whether it learned places. method: of its region module.
        settings: to build it from another library's files; None for a model folder of Foveate.
        pin: commit or tag (with its activation) that names its weights for good; "" where only their bytes do.
    """

    name: str
    folder: Path | None
    is_local: bool
    embed_dim: int
    method: str
    localizes: bool
    settings: LocalizerSettings | None
    pin: str = ""

    def fingerprint(self) -> str:
        """Return a hash of what the embeddings depend on; a folder that was moved is the same model."""
        if self.settings is None:
            assert self.folder is not None
            return fingerprint_folder(self.folder)
        # Not where weights came from but which they are decides, and `weights` says that.
        towers = [
            {key: value for key, value in tower.items() if key not in ("source", "revision", "offline", "pretrained")}
            for tower in (self.settings.image_encoder, self.settings.text_encoder)
        ]
        weights = self.pin or Checkpoint(self.name, self.folder or Path()).digest()
        content = json.dumps([*towers, self.embed_dim, weights], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def load(self, *, device: str | None = None) -> LocalizingModel:
        """Open the model for inference: evaluation mode, no gradient."""
        if self.settings is None:
            assert self.folder is not None
            return load_model(self.folder, device=device)
        model = LocalizingModel(self.settings)
        return model.to(choose_device(device or "auto")).eval().requires_grad_(False)


def find_model(name: str | Path) -> ModelSource:
    """Find a model by name; hub repositories are downloaded into the hub's cache.

    Args:
        name: `small` or `bridge`, which ship with Foveate, `open_clip:ARCH/PRETRAINED`, `OWNER/NAME` or
            `OWNER/NAME@REVISION` of the hub, or a folder of Foveate, open_clip or transformers (CLIP, SigLIP).

    Raises:
        UserError: no such model, a hub out of reach, or a model without an image or text tower.
    """
    text = str(name)
    if text.startswith(OPEN_CLIP):
        return _find_open_clip(text)
    checkpoint = find("localizer", text)
    kind = detect_kind(checkpoint, field="model")
    pinned = text if checkpoint.commit is None else f"{checkpoint.name}@{checkpoint.commit}"
    if kind == KIND:
        return _describe_foveate(checkpoint, pinned, is_local=checkpoint.commit is None and text not in SHIPPED)
    for tower in ("image_encoder", "text_encoder"):
        if not tower_options(kind, tower):
            raise UserError(f"{text}: a '{kind}' has no {tower.replace('_', ' ')}; expected a CLIP or SigLIP")
    options: dict[str, Any] = {"kind": kind, "source": checkpoint.name}
    if checkpoint.commit is not None:
        # It is in the cache now: the towers must not ask the hub again.
        options |= {"revision": checkpoint.commit, "offline": True}
    checkpoint.weights()
    return _describe_foreign(
        pinned,
        checkpoint.folder,
        options,
        embed_dim=joint_width(checkpoint, kind),
        geometry=_geometry(checkpoint, kind),
        pin=checkpoint.commit or "",
        is_local=checkpoint.commit is None,
    )


def open_localizer(name: str | Path, *, device: str | None = None) -> LocalizingModel:
    """Find a trained model by name and open it; see `find_model`."""
    return find_model(name).load(device=device)


def split_open_clip(name: str) -> tuple[str, str]:
    """Split `open_clip:ARCH/PRETRAINED` into architecture and tag or file of weights.

    Raises:
        UserError: open_clip knows no such architecture or no such weights of it.
    """
    import open_clip

    architecture, _, pretrained = name.removeprefix(OPEN_CLIP).partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        raise UserError(f"{name}: open_clip has no architecture '{architecture}'{nearest(architecture, known)}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained not in tags and not Path(pretrained).is_file():
        listed = f"one of {', '.join(tags)}, or a file" if tags else "a file, since open_clip names none"
        raise UserError(
            f"{name}: open_clip has no weights '{pretrained}' of {architecture}; expected {listed}"
            f"{nearest(pretrained, tags) if pretrained else ''}"
        )
    return architecture, pretrained


def open_clip_width(architecture: str) -> int:
    """Return the width of the joint embedding of an architecture of open_clip."""
    import open_clip

    config = open_clip.get_model_config(architecture)
    assert config is not None, architecture
    return int(config["embed_dim"])


def _find_open_clip(name: str) -> ModelSource:
    import open_clip

    architecture, pretrained = split_open_clip(name)
    trained = open_clip.get_pretrained_cfg(architecture, pretrained) or {}
    path = Path(pretrained)
    pin = sha256_file(path) if path.is_file() else pretrained
    if trained.get("quick_gelu") and not (open_clip.get_model_config(architecture) or {}).get("quick_gelu"):
        # Not the tag alone: indexes from before `create_open_clip` heeded it have vectors of the other activation.
        pin += " with quick_gelu"
    return _describe_foreign(
        name,
        None,
        {"kind": "open_clip", "model": architecture, "pretrained": pretrained},
        embed_dim=open_clip_width(architecture),
        # A tag without a resize mode uses open_clip's default "shortest", which crops the center.
        geometry=_GEOMETRIES.get(str(trained.get("resize_mode")), "center_crop"),
        pin=pin,
        is_local=False,
    )


def _describe_foreign(
    name: str,
    folder: Path | None,
    options: dict[str, Any],
    *,
    embed_dim: int,
    geometry: str,
    pin: str,
    is_local: bool,
) -> ModelSource:
    settings = LocalizerSettings(
        image_encoder={**options, "geometry": geometry},
        text_encoder=options,
        embed_dim=embed_dim,
        regions=RegionSettings(method="none"),
    )
    return ModelSource(name, folder, is_local, embed_dim, "none", False, settings, pin)


def _describe_foveate(checkpoint: Checkpoint, name: str, *, is_local: bool) -> ModelSource:
    config = checkpoint.config()
    recipe = config.get("recipe")
    if not isinstance(recipe, dict):
        raise UserError(f"{checkpoint.folder / CONFIG}: field 'recipe' is missing")
    method = str(recipe["regions"]["method"])
    return ModelSource(
        name=name,
        folder=checkpoint.folder,
        is_local=is_local,
        embed_dim=int(recipe["embed_dim"]),
        method=method,
        localizes=bool(config.get("localizes", method != "none")),
        settings=None,
    )


def fingerprint_folder(folder: Path) -> str:
    """Return a hash of what a model folder's embeddings depend on: architecture, preprocessing, weights.

    The card, the metrics and the locate rule are left out: they change no embedding. Weights that come with a package
    are part of the encoder's kind.

    Raises:
        UserError: when `folder` is not a model folder of Foveate.
    """
    check_folder(folder, ModelKind(files=(CONFIG,)))
    config = read_json(folder / CONFIG)
    recipe = config.get("recipe") if isinstance(config, dict) else None
    if not isinstance(recipe, dict):
        raise UserError(f"{folder / CONFIG}: field 'recipe' is missing")
    architecture = {name: value for name, value in recipe.items() if name not in ("data", "training")}
    try:
        files = [sha256_file(folder / name) for name in (PREPROCESS, WEIGHTS)]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; the model folder is not complete") from error
    content = json.dumps([architecture, *files], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def detect_kind(checkpoint: Checkpoint, *, field: str = "initial") -> str:
    """Return the kind of encoder that reads a folder: "localizing-encoder" for Foveate's, else one of vision.

    Raises:
        UserError: when no encoder does.
    """
    folder = checkpoint.folder
    # First, because hub repositories may also contain a config.json of transformers or timm.
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return "open_clip"
    check_folder(folder, ModelKind(field, files=(CONFIG, OPEN_CLIP_CONFIG)))
    config = checkpoint.config()
    if config.get("kind") == KIND:
        return KIND
    kind = KIND_OF_TYPE.get(str(config.get("model_type")))
    if kind is not None:
        return kind
    # timm's folders name no model_type, but an architecture.
    if "architecture" in config:
        return "timm"
    raise UserError(
        f"{field} '{checkpoint.name}': model_type '{config.get('model_type')}' has no encoder; expected "
        f"{', '.join(sorted(KIND_OF_TYPE))}, or a folder of open_clip, timm or Foveate"
    )


def joint_width(checkpoint: Checkpoint, kind: str) -> int:
    """Return the width of a checkpoint's joint embedding."""
    folder = str(checkpoint.folder)
    if detect_kind(checkpoint) == KIND:
        return int(checkpoint.config()["recipe"]["embed_dim"])
    if kind == "open_clip":
        path = checkpoint.folder / OPEN_CLIP_CONFIG
        config = read_json(path)
        if not isinstance(config, dict) or "embed_dim" not in config.get("model_cfg", {}):
            raise UserError(f"{path}: field model_cfg.embed_dim is missing; expected a configuration of open_clip")
        return int(config["model_cfg"]["embed_dim"])
    read_width = getattr(find_encoder(kind, "IMAGE_ENCODER"), "read_joint_width", None)
    width = None if read_width is None else read_width(folder)
    if width is not None:
        return int(width)
    raise UserError(f"embed_dim: '{checkpoint.name}' has no joint embedding to take it from; set a width above 0")


def _geometry(checkpoint: Checkpoint, kind: str) -> str:
    """Return how the checkpoint's library brings an image into the input: whole images embed as it does itself."""
    if kind == "open_clip":
        settings = read_json(checkpoint.folder / OPEN_CLIP_CONFIG).get("preprocess_cfg") or {}
        return _GEOMETRIES.get(str(settings.get("resize_mode")), "center_crop")
    return str(getattr(find_encoder(kind, "IMAGE_ENCODER"), "trained_geometry", "center_crop"))
