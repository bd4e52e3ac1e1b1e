"""Load a network to adapt: a folder of Foveate, timm, transformers or open_clip, or an architecture by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foveate.adapt.module_map import parse_modules
from foveate.adapt.networks import LITE0_OPTIONS, open_lite0, open_network, open_torchvision, open_transformers
from foveate.core.errors import UserError, choose
from foveate.core.progress import say
from foveate.vision.preprocess import Preprocess
from foveate.vision.registry import build_image_encoder, detect_kind, encoder_kinds, parse_name

# Encoders of `foveate.vision` whose networks are adapted, and libraries whose networks are no encoders here.
_INNER = ("timm", "dinov2", "clip", "open_clip")
_LIBRARIES = ("transformers", "torchvision")


@dataclass(frozen=True)
class LoadedBackbone:
    """A network ready to be adapted.

    Attributes:
        model: a network of its own library, or Foveate's.
        preprocess: how images become pixels.
        settings: what loads it again.
        model_args: what a network of timm was built with.
        modules: role -> pattern of names, where the user gave them; see `foveate.adapt.module_map`.
    """

    model: nn.Module
    preprocess: Preprocess
    settings: dict[str, Any]
    model_args: dict[str, Any] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return uint8 pixels as the network takes them; floating-point values are that already."""
        return pixels if pixels.is_floating_point() else self.preprocess.normalize(pixels)

    @property
    def title(self) -> str:
        """Name of its folder or architecture, or else its kind."""
        source = self.settings.get("source")
        return Path(source).name if source else str(self.settings.get("model") or self.settings["kind"])


def parse_backbone(text: str, modules: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings of `--backbone`: a folder, or KIND:NAME such as timm:vit_small_patch16_224, or lite0.

    Raises:
        UserError: it is neither; the kinds are listed.
    """
    if modules:
        return {**parse_backbone(text), "modules": parse_modules(modules)}
    known = encoder_kinds("IMAGE_ENCODER")
    kinds = [*(candidate for candidate in (*_INNER, "lite0") if candidate in known), *_LIBRARIES]
    return parse_name(text, kinds, field="backbone", detect=_detect_kind)


def _detect_kind(path: Path) -> str:
    if kind := detect_kind(path):
        # Only these of transformers' towers have a map of their modules.
        return kind if kind in (*_INNER, "foveate") else "transformers"
    raise UserError(
        f"{path / 'config.json'}: not a model that can be adapted; expected a model of Foveate, timm or open_clip, or "
        "a vision model of transformers"
    )


def load_backbone(settings: Mapping[str, Any], *, seed: int = 0, drop_path: float = 0.0) -> LoadedBackbone:
    """Load the network of `parse_backbone`, in float32 on the CPU.

    Args:
        settings: `kind`, `source` or `model`, and further fields of that encoder.
        seed: of initial values, where no weights are loaded; a seed in the settings wins, so that an adapter finds
            the random network again that it was trained on.
        drop_path: rate at the last block, growing linearly from 0; only networks of timm have it.
    """
    options = dict(settings)
    kind = options.get("kind")
    seed = int(options.pop("seed", seed))
    modules = dict(options.pop("modules", None) or {})
    settings = {**options, **({"seed": seed} if seed else {}), **({"modules": modules} if modules else {})}
    if kind == "foveate":
        from foveate.vision.localizer.folder import load_model

        model: Any = load_model(Path(str(options["source"])), device="cpu")
        # Saved models are opened frozen; which tensors are trained is for the method to decide.
        model.requires_grad_(True)
        backbone = LoadedBackbone(model, model.image_encoder.preprocess, dict(settings))
    elif kind == "lite0" and set(options) <= {"kind", *LITE0_OPTIONS}:
        lite0 = open_lite0(options)
        backbone = LoadedBackbone(lite0.model, lite0.preprocess, dict(settings), lite0.model_args)
    elif kind == "timm" and (network := open_network(options, seed=seed)) is not None:
        pinned = _pin_revision(settings, network.commit)
        backbone = LoadedBackbone(network.model, network.preprocess, pinned, network.model_args)
    elif kind in _LIBRARIES:
        network = open_transformers(options) if kind == "transformers" else open_torchvision(options, seed=seed)
        backbone = LoadedBackbone(network.model, network.preprocess, _pin_revision(settings, network.commit))
    else:
        choose(str(kind), (*_INNER, "lite0", *_LIBRARIES), "kind of backbone")
        if kind == "lite0":
            say(
                "lite0 with fields of an encoder: its convolutions stay frozen below a projection that is drawn at "
                "random; without them the network itself is tuned"
            )
        if kind != "lite0":
            # An image encoder needs a projection to a joint embedding; it takes no part here, so it is made small.
            if kind in ("timm", "dinov2", "clip"):
                options.setdefault("embed_dim", 8)
            if kind == "clip":
                options.setdefault("projection", "new")
        encoder: Any = build_image_encoder(options, seed=seed)
        inner = {"open_clip": "visual", "lite0": ""}.get(str(kind), "trunk")
        model = getattr(encoder, inner) if inner else encoder
        arguments = encoder.architecture()["config"]["model_args"] if kind == "timm" else {}
        commit = None if options.get("source") is None else encoder.architecture().get("revision")
        backbone = LoadedBackbone(model, encoder.preprocess, _pin_revision(settings, commit), dict(arguments))
    if kind in ("timm", "open_clip", "torchvision") and options.get("source") is None and options.get("model"):
        trained = "NAME.TAG, OWNER/NAME or a folder" if kind != "torchvision" else "backbone.source=FILE.safetensors"
        say(f"{kind}:{options['model']} is untrained; give {trained} for trained weights")
    if drop_path:
        set_drop_path(backbone.model, drop_path)
    return dataclasses.replace(backbone, modules=modules) if modules else backbone


def _pin_revision(settings: Mapping[str, Any], commit: str | None) -> dict[str, Any]:
    """Add the commit of a hub model, so that it loads the same after its branch has moved."""
    return {**settings, **({} if commit is None else {"revision": commit})}


def has_drop_path(model: Any) -> bool:
    """Whether the blocks of a network have modules for DropPath (those of timm)."""
    blocks = list(getattr(model, "blocks", []))
    return bool(blocks) and all(hasattr(block, "drop_path1") for block in blocks)


def set_drop_path(model: Any, rate: float) -> None:
    """Give the blocks of a plain network DropPath with rates from 0 to `rate`; 0 removes it."""
    if not has_drop_path(model):
        if rate:
            say(f"drop_path {rate:g} has no effect: the blocks of a {type(model).__name__} have none")
        return
    from timm.layers import DropPath

    blocks = list(model.blocks)
    for number, block in enumerate(blocks):
        # Linear from 0 at the first block to `rate` at the last, as timm builds it; set here for networks already
        # built.
        block_rate = rate * number / max(1, len(blocks) - 1)
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, DropPath(block_rate) if block_rate else nn.Identity())
