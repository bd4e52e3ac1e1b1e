"""Built-in collections come in through a door: those of the laboratory, or none."""

from __future__ import annotations

import pytest

from foveate.core import plugins
from foveate.records.importers.formats import Builder, load_builders


def test_builders_of_the_laboratory_are_found() -> None:
    builders = load_builders()
    assert {"clipart", "emoji", "scenes", "documents", "traps"} <= set(builders)
    assert all(isinstance(builder, Builder) for builder in builders.values())
    assert {name for name, builder in builders.items() if not builder.is_drawn} == {"clipart", "emoji"}


def test_without_the_laboratory_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_ADDED", {"foveate.records.builders": "foveate_absent.worlds"})
    assert load_builders() == {}
