"""Registry of encoders: a kind is the name of a module that defines IMAGE_ENCODER, TEXT_ENCODER or both.

The module is in `foveate.vision` or in the folder of its library. A new encoder is one new module; nothing here
changes.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch

from foveate.core.errors import UserError, choose, nearest
from foveate.core.plugins import module_names
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


def encoder_kinds(attribute: str) -> list[str]:
    """List the kinds whose module defines `attribute` ("IMAGE_ENCODER" or "TEXT_ENCODER")."""
    return sorted(kind for kind in _modules() if hasattr(_import_kind(kind), attribute))


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


def _modules() -> dict[str, str]:
    """Map kind to dotted module name, for all modules that may define an encoder."""
    return {name: f"{package}.{name}" for package in _PACKAGES for name in module_names(package)}


def _import_kind(kind: str) -> Any:
    return importlib.import_module(_modules()[kind])


def find_encoder(kind: str, attribute: str) -> Any:
    """Return the class that a kind offers as `attribute`, or None."""
    return getattr(_import_kind(kind), attribute, None) if kind in _modules() else None


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
