"""Groups of commands whose modules are imported when they are used or described, so that help is shown at once."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence

import click


class LazyCommands(MutableMapping[str, click.Command]):
    """The commands of a group by name; each is the `command` of a module of its package, imported at first use.

    Args:
        package: for example "foveate.cli.verbs.adapt".
        names: of the commands; `import-peft` is in the module `import_peft`.
        modules: name -> module of those whose module has another name.
    """

    def __init__(self, package: str, names: Sequence[str], modules: Mapping[str, str] | None = None) -> None:
        self._package = package
        self._modules = modules or {}
        self._commands: dict[str, click.Command | None] = dict.fromkeys(names)

    def __getitem__(self, name: str) -> click.Command:
        command = self._commands[name]
        if command is None:
            module = self._modules.get(name, name.replace("-", "_"))
            command = self._commands[name] = importlib.import_module(f"{self._package}.{module}").command
        return command

    # Needed by click: `Group.add_command` assigns to this mapping.
    def __setitem__(self, name: str, command: click.Command) -> None:
        self._commands[name] = command

    def __delitem__(self, name: str) -> None:
        del self._commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._commands)

    def __len__(self) -> int:
        return len(self._commands)
