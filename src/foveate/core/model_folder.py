"""A model folder on disk: a JSON config that names its kind and format, weights as safetensors, and files beside them.

Writing is atomic file by file, the config last: a folder without a config is not a model yet. Where there is a model
already, its config is removed first. Opening is strict: another kind or format, a missing field, and a missing, surplus
or wrongly shaped tensor are errors, never random values.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.core.errors import UserError
from foveate.core.files import (
    atomic_file,
    read_json,
    write_bytes_atomically,
    write_json_atomically,
    write_text_atomically,
)
from foveate.core.hub import ModelKind, check_folder
from foveate.core.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS, PREPROCESS, METRICS, CARD = (
    "config.json",
    "model.safetensors",
    "preprocess.json",
    "metrics.json",
    "README.md",
)
# Names of the fields that count layers in the configs of open_clip, timm and transformers.
_LAYERS = re.compile(r"(^|_)(layers?|depths?|blocks)$")


def write_model_folder(
    folder: Path,
    *,
    kind: str,
    format: int,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    files: Mapping[str, str | bytes | Mapping[str, Any]] | None = None,
    config_name: str = CONFIG,
    weights_name: str = WEIGHTS,
) -> Path:
    """Write a model folder; return it.

    Args:
        kind, format: written first into the config; `read_config` refuses others.
        config: further fields, JSON values.
        tensors: name -> tensor, of any device; written detached, on the CPU.
        files: name -> text, bytes or a JSON mapping, for example the card and `metrics.json`.
    """
    from safetensors.torch import save  # the ground floor loads torch only when tensors are written

    folder.mkdir(parents=True, exist_ok=True)
    # safetensors refuses tensors that are not contiguous.
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    weights = save(plain, metadata={"format": "pt"})
    with atomic_file(folder / weights_name) as handle:
        handle.write(weights)
        # An earlier model of the folder ends here, before its first file is replaced: the old config must not describe
        # new weights. After the write, which a full disk would refuse.
        (folder / config_name).unlink(missing_ok=True)
    for name, content in (files or {}).items():
        if isinstance(content, bytes):
            write_bytes_atomically(folder / name, content)
        elif isinstance(content, str):
            write_text_atomically(folder / name, content)
        else:
            write_json_atomically(folder / name, dict(content))
    # Written last: a config marks a complete folder.
    header = {"kind": kind, "format": format, "foveate": __version__}
    write_json_atomically(folder / config_name, {**header, **config})
    return folder


def read_config(
    folder: Path,
    *,
    kind: str,
    formats: Sequence[int],
    fields: Mapping[str, type | tuple[type, ...]] | None = None,
    label: str = "model",
    config_name: str = CONFIG,
) -> dict[str, Any]:
    """Read and check the config of a model folder.

    Args:
        kind, formats: what is accepted.
        fields: name -> type of the fields that must be there.
        label: what the folder is, for the error ("adapter").

    Raises:
        UserError: the folder is missing, of another kind or format, or lacks a field.
    """
    check_folder(folder, ModelKind(label, f"a folder with {config_name}", files=(config_name,)))
    path = folder / config_name
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object (got {type(config).__name__})")
    # The kind is checked before the format, because each kind numbers its formats separately.
    if config.get("kind") != kind:
        raise UserError(f"{path}: field 'kind' must be '{kind}' (got {config.get('kind')!r})")
    check_format(config.get("format"), formats, path)
    for name, expected in (fields or {}).items():
        if name not in config:
            raise UserError(f"{path}: field '{name}' is missing")
        if not isinstance(config[name], expected):
            raise UserError(f"{path}: field '{name}' has the wrong type (got {type(config[name]).__name__})")
    return config


def check_format(number: object, formats: Sequence[int], path: Path) -> None:
    """Raise UserError if the format number of a file is none that this version reads."""
    if number not in formats:
        allowed = " or ".join(map(str, formats))
        raise UserError(
            f"{path}: field 'format' must be {allowed} (got {number!r}): the file was written by another version of "
            "Foveate; write it again with this one"
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: it is missing, a folder, not a regular file, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _require_regular(path)
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; the model folder is incomplete") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged safetensors file ({error})") from error
    for name, value in tensors.items():
        # Training diverged: every answer would be NaN, which JSON cannot hold. Masks may be -inf. NaN is not
        # below infinity either, so a single comparison finds both.
        if value.is_floating_point() and not bool((value < float("inf")).all()):
            raise UserError(
                f"{path}: tensor '{name}' holds NaN or infinity; the training has diverged or the file is damaged"
            )
    return tensors


def check_header(path: Path, config: Mapping[str, Any], build: Callable[[], Any], *, where: Path) -> None:
    """Compare the header of a safetensors file with the network that a config describes, before either takes memory.

    A config that asks for a million layers, or a width of ten million, is refused for what its weights are not.

    Args:
        config: architecture; integers that count layers must not exceed the tensors of the file.
        build: builds the network; called on the meta device.
        where: file of the config, for errors.

    Raises:
        UserError: the file is missing, damaged, or of another architecture.
    """
    shapes = read_shapes(path)
    # Checked before the network is built: a million layers take time and memory even on the meta device.
    _check_layer_counts(config, len(shapes), where)
    import torch

    with shapes_alone():
        expected = build().state_dict()
    check_tensors({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, expected, path)


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Build networks on the meta device, which has no values; initial ones are skipped within the block."""
    import torch

    class WithoutValues(torch.overrides.TorchFunctionMode):
        """Skip initial values: torch imports its compiler, 1 s, to draw them on the meta device."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if getattr(func, "__module__", "") == "torch.nn.init" or func in (
                torch.Tensor.normal_,
                torch.Tensor.uniform_,
            ):
                return args[0] if args else kwargs["tensor"]
            if func is torch.randn:
                return torch.empty(*args, **{name: value for name, value in kwargs.items() if name != "generator"})
            return func(*args, **kwargs)

    with torch.device("meta"), WithoutValues():
        yield


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read name and shape of every tensor of a safetensors file, without its values; see `read_tensors` for errors."""
    from safetensors import SafetensorError, safe_open

    _require_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; the model folder is incomplete") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged safetensors file ({error})") from error


def _require_regular(path: Path) -> None:
    # A FIFO would block for ever, a folder gives an OSError without a name.
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file; expected a safetensors file")


def _check_layer_counts(value: Any, num_tensors: int, where: Path, field: str = "") -> None:
    """Raise UserError if a field that counts layers exceeds the tensors of the file: each layer has at least one."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_layer_counts(inner, num_tensors, where, str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_layer_counts(inner, num_tensors, where, field)
    elif isinstance(value, int) and _LAYERS.search(field) and value > num_tensors:
        raise UserError(f"{where}: field '{field}' is {value}, but the weights have only {num_tensors} tensors")


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError unless names and shapes of `tensors` are exactly those of `expected`."""
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or surplus:
        raise UserError(
            f"{path}: tensors do not match the architecture: missing {missing[:3] or 'none'}, "
            f"unexpected {surplus[:3] or 'none'}"
        )
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            raise UserError(
                f"{path}: tensor '{name}' has shape {tuple(value.shape)}; expected {tuple(expected[name].shape)}"
            )
