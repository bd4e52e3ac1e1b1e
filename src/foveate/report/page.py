"""Render a page: the jinja2 environment and the frame (style, script, content policy) that all pages share."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from foveate.report import charts, images, numbers, words


@dataclass(frozen=True, slots=True)
class Page:
    """Result of a page builder: the template's name, the window title, and the template's variables."""

    template: str
    title: str
    context: Mapping[str, Any] = field(default_factory=dict)


def _asset(name: str) -> str:
    return resources.files("foveate.report").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def environment() -> Environment:
    """Return the jinja2 environment: everything is escaped, an unknown variable is an error."""
    env = Environment(
        loader=PackageLoader("foveate.report", "templates"),
        autoescape=True,
        # A field that was renamed must fail here instead of leaving a gap on the page.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(
        count=numbers.count,
        percent=numbers.percent,
        rounded=numbers.rounded_percent,
        measure=numbers.measure,
        decimal=numbers.decimal,
        signed=numbers.signed,
        duration=numbers.duration,
        field=numbers.field,
        millions=numbers.millions,
        source=words.source,
        data=words.data,
        reality=words.reality,
        rule=words.rule,
        slice_name=words.slice_name,
        plain=words.plain,
        unbroken=unbroken,
        breakable=breakable,
    )
    functions: dict[str, Any] = {
        "interval": numbers.interval,
        "interval_bar": charts.interval_bar,
        "overlay": images.Overlay,
        "overlay_svg": images.overlay_svg,
        "place": images.corner_style,
    }
    env.globals.update(functions)
    return env


def draw(macro: str, *args: Any, template: str = "macros.html.j2", **options: Any) -> Markup:
    """Return what a macro of a template draws."""
    return Markup(getattr(environment().get_template(template).module, macro)(*args, **options))


def unbroken(text: str) -> Markup:
    """Keep every word of a command in one line: browsers break lines behind a hyphen, also in `--option`."""
    lines = [[Markup("<span>{}</span>").format(word) for word in line.split(" ")] for line in text.split("\n")]
    return Markup("\n").join(Markup(" ").join(spans) for spans in lines)


def breakable(path: str) -> Markup:
    """Let a browser break a path behind its slashes, before it breaks a name."""
    return Markup("<wbr>").join(re.findall(r"[^/\\]*[/\\]|[^/\\]+", path))


def _source_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def render_page(page: Page, run_images: images.RunImages) -> str:
    """Render one HTML text with style, script and images inside and a policy that loads nothing else.

    Only the shipped script may run: its hash is part of the policy, so that a caption which holds a script
    would stay inert even if it were not escaped.
    """
    script = _asset("page.js")
    template = environment().get_template(page.template)
    return template.render(
        title=page.title,
        # Not escaped, because both files ship with the package and hold no user text.
        style=Markup(_asset("page.css")),
        script=Markup(script),
        script_hash=_source_hash(script),
        run_images=run_images,
        **page.context,
    )


def command_text(command: str | list[str]) -> str:
    """Join the arguments of a command, quoted so that it can be copied."""
    return command if isinstance(command, str) else shlex.join(command)
