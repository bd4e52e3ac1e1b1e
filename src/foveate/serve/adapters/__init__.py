"""Adapters by kind: what a folder holds, behind the server.

A kind is a module with `matches(folder)` and `open_adapter(folder, ...)`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.core.hub import INNER, find
from foveate.core.model_folder import CONFIG
from foveate.core.plugins import load_module, module_names
from foveate.multimodal.settings import OpeningOptions
from foveate.serve.calls import Adapter, Refused
from foveate.serve.settings import ServeSettings

# A folder of transformers may be a classifier or a CLIP, and any other is an image-text-to-text model.
_LAST = "multimodal"
MODEL = "model"
# A verdict embeds every word by itself: with a text of megabytes a call would hold the model for minutes.
_MAX_LETTERS = 10_000


def open_served(
    folder: str | Path,
    *,
    name: str | None = None,
    device: str | None = None,
    precision: str = "auto",
    max_tokens: int = 1024,
    opening: OpeningOptions | None = None,
) -> Adapter:
    """Open a model folder or an index for the server.

    Args:
        folder: of `foveate mllm train`, `pretrain`, `adapt train` or `index`, or of transformers; or mini, mini-ferret.
        name: under which it is served; `name_folder` by default.
        precision: bfloat16, float32, or auto: as the model is opened elsewhere.
        max_tokens: longest answer of a model that writes.
        opening: dtype, device map and quantization of a model of transformers; no other kind takes it.

    Raises:
        UserError: there is no such folder, it holds nothing that can be served, or it is damaged.
    """
    kind, path = find_kind(folder), find("served", folder).folder
    options: dict[str, Any] = {"opening": opening} if opening is not None else {}
    if options and kind != _LAST:
        raise UserError(f"{folder}: a model of kind {kind} takes no dtype, device map or quantization")
    adapter: Adapter = load_module(__name__, kind, label="kind").open_adapter(
        path, name=name or name_folder(path), device=device, precision=precision, max_tokens=max_tokens, **options
    )
    return adapter


def name_folder(folder: str | Path) -> str:
    """Return the name of a folder; of a run's folder `model` that of the run."""
    # Resolved, because the name of `Path(".")` is empty.
    path = Path(folder).resolve()
    return (path.parent.name if path.name == MODEL else "") or path.name


def find_kind(folder: str | Path) -> str:
    """Return the kind of what a folder holds, without opening it: the name of the module that serves it.

    Raises:
        UserError: there is no such folder, or it holds nothing that can be served.
    """
    path = find("served", folder).folder
    names = sorted(module_names(__name__), key=lambda name: (name == _LAST, name))
    for name in names:
        if load_module(__name__, name, label="kind").matches(path):
            return name
    # A common mistake is to give the folder of a run instead of the model in it.
    inner = [path / name for name in INNER if (path / name).is_dir()]
    near = f". Did you mean '{inner[0]}'?" if inner else ""
    config = read_folder_config(path)
    kind = f"kind {config['kind']!r}" if "kind" in config else "no kind of its own" if config else f"no {CONFIG}"
    raise UserError(f"{path}: holds nothing that can be served (got {kind}); expected {', '.join(names)}{near}")


def read_folder_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a folder; empty where there is none, or it is no object."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return config if isinstance(config, dict) else {}


def use_precision(precision: str, network: Any) -> AbstractContextManager[Any]:
    """Return a context in which a network computes in a precision."""
    import torch

    # The weights stay as they were opened; autocast changes only the computation.
    if precision != "bfloat16":
        return contextlib.nullcontext()
    return torch.autocast(next(network.parameters()).device.type, dtype=torch.bfloat16)


def check_letters(texts: Collection[str], *, param: str) -> None:
    """Raise `Refused` for texts that together are too long for a model that embeds or locates them."""
    if (num_letters := sum(map(len, texts))) > _MAX_LETTERS:
        text = f"{param}: {num_letters:,} letters; expected at most {_MAX_LETTERS:,}"
        raise Refused(text, param=param, code="context_length_exceeded")


def count_bytes(network: Any) -> int:
    """Return the bytes of a network's weights in memory; opens networks that it would load at first use."""
    networks = [network]
    for module in network.modules():
        # The networks of `bridge` are no submodules: no parameter tells of them.
        if hasattr(module, "open_networks"):
            networks += module.open_networks(next(module.buffers()).device)
    parameters = (parameter for each in networks for parameter in each.parameters())
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


# Folders to adapters: under which names they are served, what they take, and who may reach them.


def check_extra() -> None:
    """Raise UserError unless the packages of the extra `serve` are installed."""
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"foveate serve needs {' and '.join(missing)}: run `pip install 'foveate[serve]'`")


def read_key(settings: ServeSettings) -> str:
    """Return the key that clients must send, "" for none.

    Raises:
        UserError: its variable is empty, or a server that others reach would have none.
    """
    name = settings.api_key_env
    key = os.environ.get(name, "") if name else ""
    # The guard strips the key that a client sends, so a key with spaces around it could never match.
    if name and (not key or key != key.strip() or not key.isprintable()):
        raise UserError(f"--api-key-env {name}: expected a key without spaces around it in this variable")
    # A server that other machines can reach needs a key or an explicit choice to go without one.
    if not (key or settings.is_local or settings.without_key):
        raise UserError(
            f"--host {settings.host}: whoever reaches this machine could use the models; expected a key "
            "(--api-key-env NAME), or --without-key"
        )
    return key


def name_folders(folders: Sequence[str], settings: ServeSettings) -> list[str]:
    """Return the name of each folder's model in requests.

    Raises:
        UserError: two have the same, or --name was given for some of them only.
    """
    if settings.name and len(settings.name) != len(folders):
        raise UserError(f"--name: expected one for each of {len(folders)} folders (got {len(settings.name)})")
    names = list(settings.name) or [name_folder(folder) for folder in folders]
    for name in names:
        equal = [folder for folder, other in zip(folders, names, strict=True) if other == name]
        if len(equal) > 1:
            raise UserError(
                f"{' and '.join(equal)}: would be served under one name (got '{name}'); expected --name for each"
            )
    return names


def plan(folders: Sequence[str], settings: ServeSettings) -> list[dict[str, Any]]:
    """Describe what would be served, without opening it: name, kind, folder and the bytes of its files.

    Raises:
        UserError: a folder holds nothing that can be served.
    """
    models = []
    for folder, name in zip(folders, name_folders(folders, settings), strict=True):
        kind = find_kind(folder)
        size = sum(file.stat().st_size for file in find("served", folder).folder.rglob("*") if file.is_file())
        models.append({"name": name, "kind": kind, "folder": str(folder), "bytes": size})
    return models


def open_adapters(
    folders: Sequence[str], settings: ServeSettings, *, opening: OpeningOptions | None = None
) -> list[Adapter]:
    """Open models and indexes.

    Raises:
        UserError: a folder holds nothing that can be served, or two have one name.
    """
    device = None if settings.device == "auto" else settings.device
    return [
        open_served(
            folder,
            name=name,
            device=device,
            precision=settings.precision,
            max_tokens=settings.max_tokens,
            opening=opening,
        )  # fmt: skip
        for folder, name in zip(folders, name_folders(folders, settings), strict=True)
    ]
