"""Write what the docs repeat from the code: option tables of the verbs and the API reference.

    python tools/write_docs.py            # rewrites docs/verbs/*.md between markers, and docs/reference
    python tools/write_docs.py --check    # exit 1 and name the files that are out of date

First come the constructors of the federated estimators, which `write_signatures.py` writes and the reference shows.

In a page, `<!-- verdicts: MegaDetector, SpeciesNet -->` and `<!-- /verdicts -->` enclose the table of doubtful values
of these formats, `<!-- options: adapt train -->` and `<!-- /options -->` enclose the table of a command, and
`<!-- fields: federated.policy:Policy by SECTIONS -->` and `<!-- /fields -->` that of the fields of a settings
model, in the order of a mapping of headings to fields beside it.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import write_signatures
from write_signatures import write_stale

import foveate
from foveate.cli.main import cli
from foveate.core.recipes import Settings
from foveate.survey.verdicts import verdicts_table

DOCS = Path(__file__).resolve().parents[1] / "docs"
_BLOCK = re.compile(r"(<!-- options: ([^\n]*?) -->\n).*?(<!-- /options -->)", re.DOTALL)
_FIELDS = re.compile(r"(<!-- fields: ([\w.]+):(\w+) by (\w+) -->\n).*?(<!-- /fields -->)", re.DOTALL)
_VERDICTS = re.compile(r"(<!-- verdicts: ([^\n]*?) -->\n).*?(<!-- /verdicts -->)", re.DOTALL)
_COMMON = ("--json", "--quiet", "--device", "--seed", "--workers")
"""Options that mean the same everywhere and are listed in one row."""
ROOMS = (
    "core", "records", "survey", "metrics", "vision", "training", "multimodal", "pretrain", "search", "mllm", "video",
    "caption", "adapt", "calibrate", "federated", "species", "report", "serve",
)  # fmt: skip
"""Rooms with a door: a package whose `__all__` is public."""
_SECTIONS = ("Args", "Parameters", "Attributes", "Returns", "Raises", "Source", "Example", "Examples", "Yields")


def find_command(words: str) -> click.Command:
    """Return the command that words such as "adapt train" call."""
    command: click.Command = cli
    for word in words.split():
        assert isinstance(command, click.Group), f"'{word}' of '{words}' is no sub-verb"
        inner = command.get_command(click.Context(command), word)
        assert inner is not None, f"no command '{words}'"
        command = inner
    return command


def options_table(command: click.Command) -> str:
    """Return the Markdown table of a command's options: name, default, allowed values, meaning."""
    rows, common = ["| option | default | meaning |", "|---|---|---|"], []
    for parameter in command.get_params(click.Context(command)):
        if not isinstance(parameter, click.Option) or parameter.hidden or "--help" in parameter.opts:
            continue
        if parameter.opts[0] in _COMMON and parameter.opts[0] != "--seed":
            common.append(f"`{parameter.opts[0]}`")
            continue
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--"))
        rows.append(f"| {names} | {_default(parameter)} | {_meaning(parameter)} |")
    if common:
        rows.append(f"| {', '.join(common)} | | [common options](pretrain.md#common-options) |")
    return "\n".join(rows) + "\n"


def _default(option: click.Option) -> str:
    if option.required:
        return "required"
    value = option.default
    if option.is_flag:
        # A switch --no-x has the default of x, not of itself.
        return "on" if value is True and not option.opts[0].startswith("--no-") else ""
    if callable(value) or value in (None, (), "") or "UNSET" in repr(value).upper():
        return ""
    return f"`{','.join(map(str, value)) if isinstance(value, tuple | list) else value}`"


def _meaning(option: click.Option) -> str:
    text = (option.help or "").replace("|", "\\|")
    kind = option.type
    if isinstance(kind, click.Choice):
        return f"{text} One of {', '.join(f'`{choice}`' for choice in kind.choices)}."
    if isinstance(kind, click.IntRange | click.FloatRange):
        bounds = _bounds(kind)
        return f"{text} {bounds}." if bounds else text
    return text


def _bounds(kind: Any) -> str:
    """Bounds of a number in words: "32 to 8192", "At least 1", "Above 0, at most 1"."""
    low, high = kind.min, kind.max
    if low is not None and high is not None and not kind.min_open and not kind.max_open:
        return f"{low} to {high}"
    parts = [f"{'above' if kind.min_open else 'at least'} {low}"] if low is not None else []
    parts += [f"{'below' if kind.max_open else 'at most'} {high}"] if high is not None else []
    words = ", ".join(parts)
    return words[:1].upper() + words[1:]


def fields_table(model: type[Settings], names: Iterable[str]) -> str:
    """Return the Markdown table of fields of a settings model: name, default, meaning."""
    rows = ["| field | default | meaning |", "|---|---|---|"]
    for name in names:
        field = model.model_fields[name]
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        shown = ", ".join(map(str, default)) if isinstance(default, tuple) else default
        text = "required" if field.is_required() else "" if shown in (None, "") else f"`{shown}`"
        rows.append(f"| `{name}` | {text} | {(field.description or '').replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def fill_page(text: str) -> str:
    """Return a page with every marked table of options or fields made anew."""

    def fill_fields(match: re.Match[str]) -> str:
        module = importlib.import_module(f"foveate.{match[2]}")
        names = [name for section in getattr(module, match[4]).values() for name in section]
        return match[1] + fields_table(getattr(module, match[3]), names) + match[5]

    text = _VERDICTS.sub(lambda match: match[1] + verdicts_table(match[2].split(", ")) + match[3], text)
    text = _BLOCK.sub(lambda match: match[1] + options_table(find_command(match[2])) + match[3], text)
    return _FIELDS.sub(fill_fields, text)


def public_rooms() -> dict[str, dict[str, Any]]:
    """Return room -> {public name: object}: what `from foveate.ROOM import ...` offers, floors from below."""
    rooms: dict[str, dict[str, Any]] = {}
    for room in ROOMS:
        door = importlib.import_module(f"foveate.{room}")
        # `foveate.adapt` and `foveate.search` can be called; the docstring is that of the function.
        called = {room: door.called} if hasattr(door, "called") else {}
        rooms[room] = called | {name: getattr(door, name) for name in sorted(door.__all__, key=str.casefold)}
    return rooms


def reference() -> dict[Path, str]:
    """Return the pages of the API reference, one per room and a list of all names."""
    folder, made = DOCS / "reference", "Made from the docstrings by `python tools/write_docs.py`."
    index = [
        "# API reference\n",
        f"{made} Every name here is public and has an\nexample that runs in the tests. Those in bold are also names of "
        "`foveate` itself. Modules below a room are private:\ntheir names may move without notice, also those that the "
        "scripts in docs/examples use to reproduce numbers.\n",
        "In examples, `collection_folder`, `image_file` and the like are files of yours, `new_folder` does not exist "
        "yet, and\n`collection_copy` is changed.\n",
    ]
    pages = {}
    for room, names in public_rooms().items():
        index.append(f"## [{room}]({room}.md)\n\n| `from foveate.{room} import` | |\n|---|---|")
        parts = [f"# foveate.{room}\n", f"{made}\n"]
        for name, value in names.items():
            link = f"[`{name}`]({room}.md#{name.lower()})"
            index.append(f"| {f'**{link}**' if name in foveate.__all__ else link} | {_first_sentence(value)} |")
            parts += _describe(name, value)
        index.append("")
        pages[folder / f"{room}.md"] = "\n".join(parts).rstrip() + "\n"
    return {folder / "index.md": "\n".join(index).rstrip() + "\n", **pages}


def _first_sentence(value: Any) -> str:
    paragraph = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0].replace("|", "\\|")


def _describe(name: str, value: Any) -> Iterator[str]:
    """Yield the section of a public name: its signature, docstring and public methods."""
    yield f"## `{name}`\n"
    if callable(value) and not (inspect.isclass(value) and issubclass(value, BaseException)):
        yield f"```text\n{name}{_signature(value)}\n```\n"
    if inspect.isclass(value):
        yield from _describe_fields(value)
    yield render_docstring(inspect.getdoc(value) or "")
    for method_name, method in _methods(value) if inspect.isclass(value) else ():
        yield f"### `{name}.{method_name}`\n"
        if not isinstance(method, property):
            yield f"```text\n{method_name}{_signature(method)}\n```\n"
        yield render_docstring(inspect.getdoc(method) or "")


def _describe_fields(value: type) -> list[str]:
    """List the fields of settings with their descriptions, as one part of a section."""
    if not issubclass(value, Settings):
        return []
    fields = value.model_fields.items()
    return ["\n".join(f"- `{name}`: {field.description}" for name, field in fields) + "\n"]


def _signature(value: Any) -> str:
    if inspect.isclass(value) and issubclass(value, Settings):
        # Annotations of fields hold validators, whose addresses change with every run.
        fields = (
            name if field.is_required() else f"{name}={field.get_default(call_default_factory=True)!r}"
            for name, field in value.model_fields.items()
        )
        return f"(*, {', '.join(fields)})"
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    # Annotations are texts, which are shown without their quotes; those of defaults stay.
    text = re.sub(r"(: |-> )(['\"])(.*?)\2(?=[ ,)]|$)", r"\1\3", str(signature.replace(parameters=parameters)))
    return re.sub(r"foveate(\.\w+)+\.(\w+)", r"\2", text.replace("~", ""))


def _methods(value: type) -> Iterator[tuple[str, Any]]:
    """Yield a class's own public methods and properties, in the order of its source."""
    for name, member in vars(value).items():
        inner = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if name.startswith("_") or not (inspect.isfunction(inner) or isinstance(member, property)):
            continue
        if inspect.getdoc(inner):
            yield name, getattr(value, name) if isinstance(member, classmethod | staticmethod) else member


def render_docstring(text: str) -> str:
    """Turn a Google-style docstring into Markdown: sections become bold words and lists, examples become code."""
    lines, output, section, code = text.splitlines(), [], "", False
    for line in lines:
        stripped = line.strip()
        is_code = stripped.startswith(">>>") or (code and bool(stripped))
        if is_code != code:
            output.append("```" if code else "```pycon")
            code = is_code
        if code:
            output.append(stripped)
        elif stripped.rstrip(":") in _SECTIONS and stripped.endswith(":") and line == line.lstrip():
            section = stripped.rstrip(":")
            output += ["", f"**{section}**", ""]
        elif section and stripped:
            indent = len(line) - len(line.lstrip())
            output.append(f"- {_item(stripped)}" if indent <= 4 else f"  {stripped}")
        else:
            section = section if stripped or line else section
            output.append(line)
    if code:
        output.append("```")
    return "\n".join(output).strip() + "\n"


def _item(text: str) -> str:
    name, colon, rest = text.partition(":")
    return f"`{name}`:{rest}" if colon and len(name) < 60 and not name.startswith("`") else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is out of date")
    check = parser.parse_args().check
    stale = write_stale(write_signatures.modules(), check=check)
    pages = {path: fill_page(path.read_text(encoding="utf-8")) for path in sorted((DOCS / "verbs").glob("*.md"))}
    stale += write_stale(pages | reference(), check=check)
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
