"""Opens what is to be adapted: a folder of Foveate, timm, transformers or open_clip, or an architecture by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from foveate.adapt.networks import open_network
from foveate.core.errors import UserError, choose, nearest
from foveate.core.files import read_json
from foveate.core.progress import say
from foveate.vision.hf.loading import KIND_OF_TYPE
from foveate.vision.hub import HUB_ID
from foveate.vision.preprocess import Preprocess
from foveate.vision.registry import build_image_encoder, encoder_kinds

_INNER = ("timm", "dinov2", "clip", "open_clip")


@dataclass(frozen=True)
class Opened:
    """A backbone ready to be adapted.

    Attributes:
        model: a network of its own library, or Foveate's. preprocess: how images become pixels.
        model_args: what a network of timm was built with. settings: what opens it again.
    """

    model: nn.Module
    preprocess: Preprocess
    settings: dict[str, Any]
    model_args: dict[str, Any] = field(default_factory=dict)


def backbone_settings(text: str) -> dict[str, Any]:
    """Settings of what `--backbone` says: a folder, or KIND:NAME such as timm:vit_small_patch16_224, or lite0.

    Raises:
        UserError: when it is neither, naming the kinds.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return {"source": str(path), "kind": _kind_of_folder(path)}
    kind, _, name = text.partition(":")
    kinds = [one for one in (*_INNER, "lite0") if one in encoder_kinds("IMAGE_ENCODER")]
    if kind not in kinds:
        if "/" in text or path.suffix:
            raise UserError(f"backbone '{text}': no such folder{_on_the_hub(text)}")
        raise UserError(
            f"backbone '{text}': no such folder, and no kind of backbone; kinds are {', '.join(kinds)}"
            f"{nearest(kind, kinds)}"
        )
    if not name:
        return {"kind": kind}
    by_name = kind in ("timm", "open_clip") and "/" not in name and "." not in name
    return {"kind": kind, ("model" if by_name else "source"): name}


def _on_the_hub(text: str) -> str:
    """How a model of the hub is named, where the text may be meant as one: OWNER/NAME, after hf-hub: for some."""
    name = text.removeprefix("hf-hub:")
    if not HUB_ID.fullmatch(name):
        return ""
    return f"; a model of the hub is named with the kind of its files: {', '.join(f'{kind}:{name}' for kind in _INNER)}"


def _kind_of_folder(path: Path) -> str:
    if (path / "open_clip_config.json").is_file():
        return "open_clip"
    if not (path / "config.json").is_file():
        raise UserError(f"backbone {path}: it has neither config.json nor open_clip_config.json")
    said = read_json(path / "config.json")
    if isinstance(said, dict):
        if said.get("kind") == "localizing-encoder":
            return "foveate"
        if "architecture" in said:
            return "timm"
        kind = KIND_OF_TYPE.get(str(said.get("model_type")))
        if kind in _INNER:
            return kind
    raise UserError(
        f"{path / 'config.json'}: no model that can be adapted; allowed are Foveate's, timm's, open_clip's, and "
        "CLIP and DINOv2 of transformers"
    )


def open_backbone(settings: Mapping[str, Any], *, seed: int = 0, drop_path: float = 0.0) -> Opened:
    """The network of `backbone_settings`, with fields of its encoder changed if wanted, in float32 on the CPU.

    Args:
        seed: of first values, where weights are not loaded; settings that hold one (those of `Opened`) go before.
        drop_path: rate of the last block, growing linearly from 0; timm's networks alone have the places for it.
    """
    given = dict(settings)
    kind = given.get("kind")
    seed = int(given.pop("seed", seed))
    settings = {**given, **({"seed": seed} if seed else {})}
    if kind == "foveate":
        from foveate.vision.localizer.folder import load_model

        model: Any = load_model(Path(str(given["source"])), device="cpu")
        model.requires_grad_(True)
        opened = Opened(model, model.image_encoder.preprocess, dict(settings))
    elif kind == "timm" and (network := open_network(given, seed=seed)) is not None:
        opened = Opened(network.model, network.preprocess, _pinned(settings, network.commit), network.model_args)
    else:
        choose(str(kind), (*_INNER, "lite0"), "kind of backbone")
        if kind != "lite0":
            # The projection to a joint embedding takes no part; vision towers alone have none.
            if kind in ("timm", "dinov2", "clip"):
                given.setdefault("embed_dim", 8)
            if kind == "clip":
                given.setdefault("projection", "new")
        encoder: Any = build_image_encoder(given, seed=seed)
        inner = {"open_clip": "visual", "lite0": ""}.get(str(kind), "trunk")
        network = getattr(encoder, inner) if inner else encoder
        arguments = encoder.architecture()["config"]["model_args"] if kind == "timm" else {}
        commit = None if given.get("source") is None else encoder.architecture().get("revision")
        opened = Opened(network, encoder.preprocess, _pinned(settings, commit), dict(arguments))
    if kind in ("timm", "open_clip") and given.get("source") is None and given.get("model"):
        say(f"{kind}:{given['model']} is untrained; give NAME.TAG, OWNER/NAME or a folder for trained weights")
    if drop_path:
        set_drop_path(opened.model, drop_path)
    return opened


def _pinned(settings: Mapping[str, Any], commit: str | None) -> dict[str, Any]:
    """With the commit that a model of the hub was of, so that it opens again after its branch has moved."""
    return {**settings, **({} if commit is None else {"revision": commit})}


def set_drop_path(model: Any, rate: float) -> None:
    """Gives the blocks of a plain network, not an adapted one, DropPath of rates from 0 to `rate`; 0 takes it out."""
    blocks = list(getattr(model, "blocks", []))
    if not blocks or not all(hasattr(block, "drop_path1") for block in blocks):
        if rate:
            say(f"drop_path {rate:g} has no effect: a {type(model).__name__} has no places for it")
        return
    from timm.layers import DropPath

    for number, block in enumerate(blocks):
        own = rate * number / max(1, len(blocks) - 1)
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, DropPath(own) if own else nn.Identity())
