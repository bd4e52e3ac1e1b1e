"""Constructors of estimators, written from the fields of their settings: signature, attributes, section of the docs.

scikit-learn reads an estimator's parameters from the signature of `__init__`, and sets each as an attribute of the same
name. Bounds, defaults and meanings are declared in the settings, so the constructor is made from these.
"""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

_WIDTH = 120


@dataclass(frozen=True)
class Parameter:
    """One parameter of a constructor.

    Attributes:
        type: as the signature shows it. text: its meaning, for the docstring.
    """

    type: str
    default: Any
    text: str


def field_parameters(
    settings: type[BaseModel], fields: Iterable[str], *, names: Mapping[str, str] | None = None, optional: bool = False
) -> dict[str, Parameter]:
    """Return the parameters that set these fields, by name.

    Args:
        names: parameters by field, where they have names of their own, such as those that scikit-learn has for a field.
        optional: the default is None, which stands for a default that depends on other parameters.
    """
    parameters = {}
    for field in fields:
        info = settings.model_fields[field]
        text = _describe_type(info.annotation)
        if optional and "None" not in text.split(" | "):
            text += " | None"
        default = None if optional else info.get_default(call_default_factory=True)
        parameters[(names or {}).get(field, field)] = Parameter(text, default, info.description or "")
    return parameters


def _describe_type(annotation: Any) -> str:
    """Return a type as a reader would write it, without validators."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe_type(inner[0])
    if origin in (Union, types.UnionType):
        return " | ".join(_describe_type(part) for part in inner)
    if annotation is type(None):
        return "None"
    if origin is tuple and inner[-1] is Ellipsis:
        return f"Sequence[{_describe_type(inner[0])}]"
    if origin is not None:
        return str(annotation).replace("typing.", "")
    return getattr(annotation, "__name__", str(annotation))


class FromParameters:
    """Base of estimators whose constructor is made from `parameters`; the first may be passed by position.

    >>> class Model(FromParameters, parameters={"width": Parameter("int", 8, "of a layer")}):
    ...     pass
    >>> inspect.signature(Model), Model(width=3).width
    (<Signature (width: 'int' = 8) -> 'None'>, 3)
    """

    def __init_subclass__(cls, parameters: Mapping[str, Parameter] | None = None, **more: Any) -> None:
        super().__init_subclass__(**more)
        if parameters is not None:
            cls.__init__ = _make_constructor(cls, parameters)  # type: ignore[method-assign]
            cls.__doc__ = _add_section(cls.__doc__, parameters)

    if TYPE_CHECKING:
        # A type checker sees neither the signature nor the attributes that are made at runtime.
        def __init__(self, *values: Any, **parameters: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...


def _make_constructor(cls: type, parameters: Mapping[str, Parameter]) -> Any:
    kind = inspect.Parameter
    listed = [kind("self", kind.POSITIONAL_OR_KEYWORD)]
    for number, (name, parameter) in enumerate(parameters.items()):
        kind_of_call = kind.KEYWORD_ONLY if number else kind.POSITIONAL_OR_KEYWORD
        listed.append(kind(name, kind_of_call, default=parameter.default, annotation=parameter.type))
    signature = inspect.Signature(listed, return_annotation="None")

    def __init__(self: Any, *values: Any, **named: Any) -> None:
        try:
            bound = signature.bind(self, *values, **named)
        except TypeError as problem:
            raise TypeError(f"{cls.__name__}.__init__() {problem}") from None
        bound.apply_defaults()
        # As they were passed: scikit-learn's `clone` compares by identity.
        for name in parameters:
            setattr(self, name, bound.arguments[name])

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    __init__.__module__ = cls.__module__
    return __init__


def _add_section(text: str | None, parameters: Mapping[str, Parameter]) -> str | None:
    """Put the section of the parameters before that of the attributes."""
    match = re.search(r"^( *)Attributes:$", text or "", re.MULTILINE)
    if text is None or match is None:
        return text
    indent = match[1]
    lines = [f"{indent}Parameters:"]
    for name, parameter in parameters.items():
        lines += textwrap.wrap(
            f"{name}: {parameter.text}.",
            _WIDTH,
            initial_indent=f"{indent}    ",
            subsequent_indent=f"{indent}        ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    return text[: match.start()] + "\n".join(lines) + f"\n\n{text[match.start() :]}"
