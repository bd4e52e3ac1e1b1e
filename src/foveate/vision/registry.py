"""Encoders by name: kind `x` is the module `foveate.vision.x`, which offers IMAGE_ENCODER, TEXT_ENCODER or both.

A new encoder is one new module in this folder; nothing here changes.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch

import foveate.vision
from foveate.settings.errors import UserError, choose, nearest
from foveate.vision.encoder import ImageEncoder, TextEncoder

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
    """Modules built inside start from this seed; the process's own random state is untouched."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def encoder_kinds(attribute: str) -> list[str]:
    """Names of the modules that offer `attribute` ("IMAGE_ENCODER" or "TEXT_ENCODER")."""
    names = sorted(module.name for module in pkgutil.iter_modules(foveate.vision.__path__))
    return [name for name in names if hasattr(importlib.import_module(f"foveate.vision.{name}"), attribute)]


def tower_options(kind: str, tower: str) -> list[str]:
    """Names of the options of a kind's "image_encoder" or "text_encoder"; empty where it has no such tower."""
    builder = _builder(kind, {"image_encoder": "IMAGE_ENCODER", "text_encoder": "TEXT_ENCODER"}[tower])
    return [] if builder is None else list(inspect.signature(builder).parameters)


def build_image_encoder(settings: Mapping[str, Any], *, seed: int = 0) -> ImageEncoder:
    """The image encoder that `settings["kind"]` names; the other keys are its options.

    Raises:
        UserError: for an unknown kind or option, with the nearest match.
    """
    return cast(ImageEncoder, _build(settings, "IMAGE_ENCODER", "image", seed))


def build_text_encoder(settings: Mapping[str, Any], *, seed: int = 0) -> TextEncoder:
    """The text encoder that `settings["kind"]` names; see `build_image_encoder`."""
    return cast(TextEncoder, _build(settings, "TEXT_ENCODER", "text", seed))


def _builder(kind: str, attribute: str) -> Any:
    found = importlib.util.find_spec(f"foveate.vision.{kind}") if kind.isidentifier() else None
    return getattr(importlib.import_module(found.name), attribute, None) if found else None


def _build(settings: Mapping[str, Any], attribute: str, field: str, seed: int) -> Any:
    options = dict(settings)
    kind = options.pop("kind", None)
    if not isinstance(kind, str):
        raise UserError(f"{field}.kind is missing: allowed are {', '.join(encoder_kinds(attribute))}")
    builder = _builder(kind, attribute)
    if builder is None:
        choose(kind, encoder_kinds(attribute), f"{field}.kind")
        raise AssertionError(kind)
    known = list(inspect.signature(builder).parameters)
    for key in options:
        if key not in known:
            listed = ", ".join(known)
            raise UserError(f"{field}: '{kind}' has no option '{key}': allowed are {listed}{nearest(key, known)}")
    try:
        with seeded(seed):
            return builder(**options)
    except UserError:
        raise
    except _UNUSABLE as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        place = _place_here(error)
        if place:
            why += f", in {place}; if the options are as documented, this is a defect of Foveate: please report it"
        raise UserError(f"{field}: '{kind}' cannot be built with these options ({why})") from error


def _place_here(error: BaseException) -> str:
    """Module and line of Foveate that raised the error; "" where a library did that it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return f"{name}, line {trace.tb_lineno}" if trace is not None and name.startswith("foveate.") else ""
