"""Kinds are found by the names of modules, in a package and in what is added to it from elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate.core import plugins
from foveate.core.errors import UserError
from foveate.core.plugins import load_all, load_module, load_plugin, module_names
from naming import raises_naming


@pytest.fixture
def kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two packages: `own_kinds`, and `added_kinds` whose modules are added to it."""
    for package, modules in {"own_kinds": ("fast", "_helper"), "added_kinds": ("fast", "slow", "broken")}.items():
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        for module in modules:
            (tmp_path / package / f"{module}.py").write_text(f"KIND = '{package}.{module}'\n")
    (tmp_path / "added_kinds" / "broken.py").write_text("import a_library_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_ADDED", {"own_kinds": "added_kinds", "alone": "own_kinds", "none": "absent_kinds"})
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("own_kinds", "added_kinds")]:
        del sys.modules[name]


def test_kinds_of_both_packages_are_found_and_own_ones_win(kinds: Path) -> None:
    assert module_names("own_kinds") == ["broken", "fast", "slow"]
    assert load_plugin("own_kinds", "fast", "KIND", label="kind") == "own_kinds.fast"
    assert load_plugin("own_kinds", "slow", "KIND", label="kind") == "added_kinds.slow"
    with raises_naming(UserError, "slwo", "slow"):
        load_module("own_kinds", "slwo", label="kind")


def test_a_door_needs_no_package_of_its_own_and_what_is_added_may_be_missing(kinds: Path) -> None:
    assert load_all("alone", "KIND") == {"fast": "own_kinds.fast"}
    assert module_names("none") == []


def test_a_library_that_a_kind_misses_is_not_taken_for_a_missing_package(kinds: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_missing"):
        load_module("own_kinds", "broken", label="kind")
    (kinds / "added_kinds" / "__init__.py").write_text("import a_library_that_is_missing\n")
    sys.modules.pop("added_kinds", None)
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_missing"):
        module_names("own_kinds")
