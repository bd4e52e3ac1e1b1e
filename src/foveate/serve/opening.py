"""Folders to adapters: under which names they are served, what they take, and who may reach them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from foveate.core.errors import UserError
from foveate.serve.adapters import name_folder
from foveate.serve.calls import Adapter
from foveate.serve.settings import ServeSettings


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
    # Imported here, so that a missing extra or key is reported before the model libraries are loaded.
    from foveate.multimodal.opening import find_folder
    from foveate.serve.adapters import find_kind

    models = []
    for folder, name in zip(folders, name_folders(folders, settings), strict=True):
        kind = find_kind(folder)
        size = sum(file.stat().st_size for file in find_folder(folder).rglob("*") if file.is_file())
        models.append({"name": name, "kind": kind, "folder": str(folder), "bytes": size})
    return models


def open_adapters(folders: Sequence[str], settings: ServeSettings) -> list[Adapter]:
    """Open models and indexes.

    Raises:
        UserError: a folder holds nothing that can be served, or two have one name.
    """
    from foveate.serve.adapters import open_served

    device = None if settings.device == "auto" else settings.device
    return [
        open_served(folder, name=name, device=device, precision=settings.precision, max_tokens=settings.max_tokens)
        for folder, name in zip(folders, name_folders(folders, settings), strict=True)
    ]
