"""An OpenAI-compatible server for any model folder or index, and a page to play with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate.serve.application import Application


def app(folders: Sequence[str], *, key: str = "", **settings: Any) -> Application:
    """Open models and indexes, and return an ASGI application that serves them.

    Args:
        folders: model folders, index folders, or names that `foveate ask` takes.
        key: what clients must send as bearer token; "" for none.
        settings: fields of `foveate.serve.settings.ServeSettings`.

    Raises:
        UserError: a folder cannot be opened, or a setting is wrong.

    Example:
        >>> application = app(["mini"], allow_host=["testserver"])  # doctest: +SKIP
    """
    from foveate.core.recipes import validate
    from foveate.serve.adapters import check_extra, open_adapters, read_key
    from foveate.serve.settings import ServeSettings

    check_extra()
    from foveate.serve.application import Application

    checked = validate(ServeSettings, settings, where="serve")
    return Application(open_adapters(folders, checked), checked, key=key or read_key(checked))
