"""Registry of encoders: a kind is the name of a module that defines IMAGE_ENCODER, TEXT_ENCODER or both.

The module is in `foveate.vision` or in the folder of its library. A new encoder is one new module; nothing here
changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from foveate.core.errors import UserError, choose, nearest
from foveate.core.files import read_json
from foveate.core.hub import HUB_ID, find
from foveate.core.plugins import load_all, load_module, module_names
from foveate.vision.encoder import ImageEncoder, TextEncoder

_PACKAGES = ("foveate.vision", "foveate.vision.hf")
# What is raised while a network is built from options of a wrong type or size.
_UNUSABLE = (
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the modules built inside the block; the process's random state is untouched."""
    # Asking for the number of GPUs would wake CUDA up in processes that only count parameters.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


# Kinds whose networks have names of their own: architectures, folders, repositories of the hub.
NAMED_KINDS = ("timm", "dinov2", "clip", "open_clip", "siglip")


def parse_name(text: str, kinds: Sequence[str], *, field: str, detect: Callable[[Path], str]) -> dict[str, Any]:
    """Return the settings of a network by its name: a folder, KIND:NAME such as timm:vit_small_patch16_224, or KIND.

    Args:
        kinds: that the opener takes. field: for the error. detect: kind of a folder.

    Raises:
        UserError: it is neither; the kinds are listed.
    """
    kind, _, name = text.partition(":")
    if kind not in kinds or Path(text).is_dir():
        path = Path(text).expanduser()
        if not path.exists() and HUB_ID.fullmatch(text.removeprefix("hf-hub:")):
            named = [f"{each}:{text.removeprefix('hf-hub:')}" for each in kinds if each in NAMED_KINDS]
            raise UserError(
                f"{field}: no such folder (got '{text}'); a model of the hub is named with the kind of its files: "
                f"{', '.join(named)}"
            )
        path = find("backbone", text, names=[each if each == "lite0" else f"{each}:NAME" for each in kinds]).folder
        return {"source": str(path), "kind": detect(path)}
    if not name:
        return {"kind": kind}
    # A bare name is an architecture; NAME.TAG (timm) and OWNER/NAME are trained weights on the hub.
    by_name = kind in ("timm", "open_clip", "torchvision") and "/" not in name and "." not in name
    return {"kind": kind, ("model" if by_name else "source"): name}


def detect_kind(path: Path) -> str:
    """Return the kind of the network in a folder: one of `NAMED_KINDS`, "foveate", "transformers", or "" for none."""
    # Reading the table of transformers' types loads the towers, which only a folder needs.
    from foveate.vision.hf.towers import KIND_OF_TYPE

    if (path / "open_clip_config.json").is_file():
        return "open_clip"
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        return ""
    if config.get("kind") == "localizing-encoder":
        return "foveate"
    # timm writes `architecture` into its config.json, transformers `model_type`.
    if "architecture" in config:
        return "timm"
    model_type = str(config.get("model_type") or "")
    return KIND_OF_TYPE.get(model_type, "transformers" if model_type else "")


def parse_encoder(text: str) -> dict[str, Any]:
    """Return the settings of an image encoder by its name, for `build_image_encoder`; see `parse_name`.

    Raises:
        UserError: no encoder has this name, or the folder has none.

    >>> parse_encoder("dinov2:facebook/dinov2-small")
    {'kind': 'dinov2', 'source': 'facebook/dinov2-small', 'embed_dim': 8}
    """
    known = encoder_kinds("IMAGE_ENCODER")
    kinds = [*(kind for kind in (*NAMED_KINDS, "lite0") if kind in known)]

    def detect(path: Path) -> str:
        if (kind := detect_kind(path)) not in kinds:
            got = f" (got a model of {kind})" if kind else ""
            expected = "expected a vision model of open_clip, timm, CLIP, SigLIP or DINOv2"
            raise UserError(f"{path / 'config.json'}: no image encoder{got}; {expected}")
        return kind

    settings = parse_name(text, kinds, field="encoder", detect=detect)
    # A projection to a joint space takes no part where vectors are read: the network's own are. It is made small.
    if settings["kind"] in ("timm", "dinov2"):
        settings["embed_dim"] = 8
    return settings


def encoder_kinds(attribute: str) -> list[str]:
    """List the kinds whose module defines `attribute` ("IMAGE_ENCODER" or "TEXT_ENCODER")."""
    return sorted({kind for package in _PACKAGES for kind in load_all(package, attribute)})


def tower_options(kind: str, tower: str) -> list[str]:
    """List the options of a kind's "image_encoder" or "text_encoder"; empty where it has no such tower."""
    builder = find_encoder(kind, {"image_encoder": "IMAGE_ENCODER", "text_encoder": "TEXT_ENCODER"}[tower])
    return [] if builder is None else _option_names(builder)


def _option_names(builder: Any) -> list[str]:
    """List the fields of an encoder's `Options`, or the arguments of one that has none."""
    options = getattr(builder, "Options", None)
    return list(inspect.signature(builder).parameters) if options is None else list(options.model_fields)


def build_image_encoder(settings: Mapping[str, Any], *, seed: int = 0) -> ImageEncoder:
    """Build the image encoder that `settings["kind"]` names; the other keys are its options.

    Raises:
        UserError: an unknown kind or option, with the nearest match.
    """
    return cast(ImageEncoder, _build(settings, "IMAGE_ENCODER", "image", seed))


def build_text_encoder(settings: Mapping[str, Any], *, seed: int = 0) -> TextEncoder:
    """Build the text encoder that `settings["kind"]` names; see `build_image_encoder`."""
    return cast(TextEncoder, _build(settings, "TEXT_ENCODER", "text", seed))


def find_encoder(kind: str, attribute: str) -> Any:
    """Return the class that a kind offers as `attribute`, or None."""
    package = next((package for package in _PACKAGES if kind in module_names(package)), None)
    return None if package is None else getattr(load_module(package, kind, label="kind"), attribute, None)


def _build(settings: Mapping[str, Any], attribute: str, field: str, seed: int) -> Any:
    options = dict(settings)
    kind = options.pop("kind", None)
    if not isinstance(kind, str):
        raise UserError(f"{field}.kind: missing; expected one of {', '.join(encoder_kinds(attribute))}")
    builder = find_encoder(kind, attribute)
    if builder is None:
        choose(kind, encoder_kinds(attribute), f"{field}.kind")
        # Not reached: `choose` raises with the nearest name, as the kind is not in its list.
        raise AssertionError(kind)
    known = _option_names(builder)
    for key in options:
        if key not in known:
            listed = ", ".join(known)
            raise UserError(f"{field}: '{kind}' has no option '{key}'; expected one of {listed}{nearest(key, known)}")
    try:
        with seeded(seed):
            return builder(**options)
    # A UserError is a ValueError, but its message already says what is wrong.
    except UserError:
        raise
    except _UNUSABLE as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        position = _place_here(error)
        if position:
            why += f", in {position}; if the options are as documented, this is a defect of Foveate: please report it"
        raise UserError(f"{field}: '{kind}' cannot be built with these options ({why})") from error


def _place_here(error: BaseException) -> str:
    """Find the module and line of Foveate that raised the error; "" where a called library did."""
    # The innermost frame decides: it is ours only where our code is at fault.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return f"{name}, line {trace.tb_lineno}" if trace is not None and name.startswith("foveate.") else ""
