"""An OpenAI-compatible server for any model folder or index, and a page to play with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foveate.core.plugins import load_lazily

if TYPE_CHECKING:
    from foveate.serve.application import Application

_LAZY = {
    "ServeSettings": "foveate.serve.settings",
    "app": "foveate.serve",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)


def app(folders: Sequence[str], *, key: str = "", **settings: Any) -> Application:
    """Open models and indexes, and return an ASGI application that serves them.

    Args:
        folders: model folders, index folders, or names that `foveate ask` takes.
        key: what clients must send as bearer token; "" for none.
        settings: fields of `foveate.serve.ServeSettings`.

    Raises:
        UserError: a folder cannot be opened, or a setting is wrong.

    Example:
        >>> application = app([str(model_folder)], max_tokens=64)  # for uvicorn, or any other ASGI server
        >>> application.settings.max_tokens
        64
    """
    from foveate.core.recipes import validate
    from foveate.serve.adapters import check_extra, open_adapters, read_key
    from foveate.serve.settings import ServeSettings

    check_extra()
    from foveate.serve.application import Application

    checked = validate(ServeSettings, settings, where="serve")
    return Application(open_adapters(folders, checked), checked, key=key or read_key(checked))
