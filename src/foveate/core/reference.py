"""Options that exist to compare with released code: Python passes them; commands and networks refuse them.

A field carries the mark itself, `json_schema_extra=REFERENCE`, or names the values that are such variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from foveate.core.errors import UserError

_MARK = "reference"
REFERENCE: dict[str, Any] = {_MARK: True}


def reference_values(*values: str) -> dict[str, Any]:
    """Mark some values of a field as variants for comparisons."""
    return {_MARK: list(values)}


def refuse_reference(model: type[BaseModel], content: Mapping[str, Any], *, where: str) -> None:
    """Raise UserError for an option, or a value of one, that is a variant for comparisons.

    Args:
        content: options as the user gave them. where: what names them, for the error.
    """
    for name, value in content.items():
        extra = model.model_fields[name].json_schema_extra if name in model.model_fields else None
        mark = extra.get(_MARK) if isinstance(extra, dict) else None
        if mark is True or (isinstance(mark, list) and value in mark):
            raise UserError(
                f"{where}: {name}={value} is a variant of released code, kept for comparisons; expected it in Python "
                f"only, as {model.__name__}(..., {name}={value!r})"
            )
