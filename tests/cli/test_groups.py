"""Groups of commands import the module of a command when it is used, and not before."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from foveate.cli.options import LazyCommands
from verbs import VERBS, module_of

GROUPS = [verb for verb in VERBS if isinstance(getattr(module_of(verb).command, "commands", None), LazyCommands)]


def test_commands_are_imported_when_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    package = "foveate.cli.verbs.mllm"
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    commands = LazyCommands(package, {"commands": ("plan", "prepare-dense", "import")})
    assert list(commands) == ["plan", "prepare-dense", "import"]
    assert not [name for name in sys.modules if name.startswith(f"{package}.")]
    assert commands["import"].name == "import"
    assert [name for name in sys.modules if name.startswith(f"{package}.")] == [f"{package}.commands"]
    assert commands["import"] is commands["import"]
    assert "nothing" not in commands
    assert len(commands) == 3


def test_commands_can_be_added_and_removed() -> None:
    commands = LazyCommands("foveate.cli.verbs.mllm", {"commands": ("plan",)})
    commands["mine"] = click.Command("mine")
    assert list(commands) == ["plan", "mine"]
    del commands["plan"]
    assert list(commands) == ["mine"]


@pytest.mark.parametrize("verb", GROUPS)
def test_every_command_of_a_group_has_its_own_name(verb: str) -> None:
    commands = module_of(verb).command.commands
    assert {name: command.name for name, command in commands.items()} == {name: name for name in commands}


def test_groups_are_lazy() -> None:
    assert {"adapt", "mllm", "species", "video"} <= set(GROUPS)
    code = "; ".join(f"import foveate.cli.verbs.{verb}" for verb in ("adapt", "mllm", "species", "video"))
    code += "; import sys; print([name for name in sys.modules if name.count('.') > 3 and '.verbs.' in name])"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert imported.stdout.strip() == "[]"
