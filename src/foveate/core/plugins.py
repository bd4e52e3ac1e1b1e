"""A kind is a module, or a row in a module's table: methods, backends, importers, verbs and pages.

Nothing is registered and no central list grows: a large kind is one new module in the right package and found by the
name of its file; small kinds of a family share a module, whose table {name: kind} lists them. Rooms above, and the
laboratory, have a package of their own for the kinds that they add to a package of a room below. Other distributions
add modules by entry points, as docs/how-to/plugins.md shows.
"""

from __future__ import annotations

import configparser
import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from foveate.core.errors import UserError, choose, shorten_reason
from foveate.core.progress import say

# Groups of entry points, and the packages that their modules join.
GROUPS: Mapping[str, str] = {
    "foveate.backends": "foveate.caption.backends",
    "foveate.detectors": "foveate.caption.vesl.detection",
    "foveate.encoders": "foveate.vision",
    "foveate.exporters": "foveate.records.exporters",
    "foveate.importers": "foveate.records.importers",
    "foveate.methods": "foveate.adapt.methods",
    "foveate.stages": "foveate.species.stages",
    "foveate.trackers": "foveate.training.trackers",
    "foveate.verbs": "foveate.cli.verbs",
}
# Kinds that this distribution adds to a package from elsewhere: a room above, or the laboratory.
_ADDED: Mapping[str, str] = {
    "foveate.caption.backends": "foveate_labs.captions.backends",
    "foveate.caption.ground_truths": "foveate_labs.captions.ground_truths",
    "foveate.caption.targets.material": "foveate_labs.captions.sources",
    "foveate.cli.verbs": "foveate_labs.verbs",
    "foveate.records.builders": "foveate_labs.worlds",
    "foveate.records.exporters": "foveate.survey.exporters",
    "foveate.records.importers": "foveate.survey.importers",
    "foveate.report.pages": "foveate_labs.pages",
}


def _import_added(package: str) -> ModuleType | None:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        # The laboratory may be left out. A module that one of its packages misses is another matter.
        if error.name is None or not f"{package}.".startswith(f"{error.name}."):
            raise
        return None


def _list_folders(package: str) -> Iterable[str]:
    return getattr(_import_added(package), "__path__", ())


# Listed once for a process and folder: `foveate --help` asks for every command by its name.
@functools.cache
def _list_modules(package: str, folders: tuple[str, ...]) -> dict[str, str]:
    """Return {name: dotted name} of the public modules of a package, without importing them."""
    names = [module.name for module in pkgutil.iter_modules(folders)]
    return {name: f"{package}.{name}" for name in names if not name.startswith("_")}


@dataclass(frozen=True)
class Plugin:
    """A module of another distribution: its dotted name, and the distribution with its release."""

    module: str
    distribution: str


@functools.cache
def _read_entry_points(paths: tuple[str, ...]) -> Mapping[str, Mapping[str, Plugin]]:
    """Return group -> name -> plug-in of the distributions in folders of modules."""
    groups: dict[str, dict[str, Plugin]] = {}
    for file in sorted(file for path in paths for file in Path(path).glob("*.dist-info/entry_points.txt")):
        try:
            content = file.read_bytes()
        except OSError:  # such as a link that leads nowhere, which Python's own import passes over
            continue
        # Most distributions have none, and parsing all metadata takes longer than `foveate --help` may.
        if b"[foveate." in content:
            parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
            parser.optionxform = str  # type: ignore[assignment] - names keep their capitals
            owner = " ".join(file.parent.name.removesuffix(".dist-info").rsplit("-", 1))
            try:
                parser.read_string(content.decode("utf-8"))
            except (configparser.Error, UnicodeDecodeError) as problem:
                _say_once(f"plug-ins of {owner} cannot be read: {file}: {shorten_reason(problem)}")
                continue
            for group in parser.sections():
                points = {name: Plugin(value, owner) for name, value in parser[group].items()}
                groups.setdefault(group, {}).update(points)
    return groups


def find_plugins(package: str) -> dict[str, Plugin]:
    """Return {name: plug-in} of what other distributions add to a package, without names that it has itself."""
    groups = _read_entry_points(tuple(sys.path))
    own = set(_find_own_modules(package))
    wanted = {group: points for group, points in groups.items() if GROUPS.get(group) == package}
    return {name: point for points in wanted.values() for name, point in points.items() if name not in own}


def load_from_plugin(package: str, name: str, attribute: str) -> Any:
    """Import a module of another distribution and return its `attribute`.

    Args:
        name: one of `find_plugins`.

    Raises:
        UserError: it cannot be imported or has no such attribute; the sentence names the distribution.
    """
    plugin = find_plugins(package)[name]
    module = _import_plugin(name, plugin)
    if not hasattr(module, attribute):
        raise UserError(f"plug-in '{name}' of {plugin.distribution}: {plugin.module} has no {attribute}")
    return getattr(module, attribute)


def _import_plugin(name: str, plugin: Plugin) -> ModuleType:
    try:
        return importlib.import_module(plugin.module)
    except Exception as problem:  # of code that nobody here has seen
        raise UserError(
            f"plug-in '{name}' of {plugin.distribution} cannot be imported: {type(problem).__name__}: "
            f"{shorten_reason(problem)}"
        ) from problem


def _import_plugins(package: str) -> dict[str, ModuleType]:
    """Import the plug-ins of a package; of one that cannot be imported, a line is said once."""
    modules = {}
    for name, plugin in sorted(find_plugins(package).items()):
        try:
            modules[name] = _import_plugin(name, plugin)
        except UserError as problem:
            _say_once(str(problem))
    return modules


@functools.cache
def _say_once(text: str) -> None:
    say(text)


def _find_own_modules(package: str) -> dict[str, str]:
    """Return {name: dotted name} of the public modules of a package and of what this distribution adds to it."""
    added = _ADDED.get(package)
    modules = {} if added is None else dict(_list_modules(added, tuple(_list_folders(added))))
    # The package's own come last and replace what is added: a kind of the product cannot be taken over.
    return modules | _list_modules(package, tuple(_list_folders(package)))


def module_names(package: str) -> list[str]:
    """List the public modules of a package, sorted, without importing them.

    Args:
        package: dotted name; the package itself is imported. Names that begin with `_` are helpers and left out.
    """
    return sorted((*_find_own_modules(package), *find_plugins(package)))


def load_module(package: str, name: str, *, label: str) -> ModuleType:
    """Import one module of a package by name.

    Args:
        label: what the modules are, for the error ("captioner backend").

    Raises:
        UserError: there is no such module; the sentence lists all and the nearest match.
    """
    choose(name, module_names(package), label)
    plugins = find_plugins(package)
    if name in plugins:
        return _import_plugin(name, plugins[name])
    return importlib.import_module(_find_own_modules(package)[name])


def load_plugin(package: str, name: str, attribute: str, *, label: str) -> Any:
    """Import one module of a package by name and return its `attribute` (see `load_module`)."""
    if name in find_plugins(package):
        return load_from_plugin(package, name, attribute)
    return getattr(load_module(package, name, label=label), attribute)


def load_all(package: str, attribute: str) -> dict[str, Any]:
    """Import every module of a package; return {module name: its `attribute`} for those that have one."""
    own = {name: importlib.import_module(dotted) for name, dotted in _find_own_modules(package).items()}
    modules = sorted((_import_plugins(package) | own).items())
    return {name: getattr(module, attribute) for name, module in modules if hasattr(module, attribute)}


def load_table(package: str, table: str) -> dict[str, Any]:
    """Import a module or a package with all its modules, and what is added to it; return the merged rows of `table`."""
    added = _ADDED.get(package)
    # The package's own rows come last, as its modules do.
    roots = [None if added is None else _import_added(added), importlib.import_module(package)]
    own = [importlib.import_module(name) for name in _find_own_modules(package).values()]
    modules = (*_import_plugins(package).values(), *roots, *own)
    return {key: kind for module in modules for key, kind in getattr(module, table, {}).items()}


def load_row(package: str, name: str, table: str, *, label: str) -> Any:
    """Return one kind by its name from the tables of a module or package (see `load_table`).

    Raises:
        UserError: there is no such row; the sentence lists all and the nearest match.
    """
    rows = load_table(package, table)
    return rows[choose(name, rows, label)]


# Packages whose names are loaded when they are first used, and packages that can be called.


def load_lazily(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package whose names are loaded with their first use.

    Args:
        names: public name -> module that defines it, or `module:name` where the name in the module is another. A
            package cannot offer `evaluate` of its module `evaluate`: importing the module hides the function.
    """

    def get(name: str) -> Any:
        if name in names:
            module, _, inner = names[name].partition(":")
            return getattr(importlib.import_module(module), inner or name)
        raise AttributeError(f"module '{package}' has no attribute {name!r}")

    return get, lambda: sorted(names)


def make_callable(package: str, module: str, name: str) -> None:
    """Let a package be called as the function `name` of `module`.

    Importing any module of `foveate.adapt` sets the attribute `adapt` of `foveate` to the package, which hides a
    function of that name: so the package itself answers the call, whichever import came first.
    """

    class CallablePackage(ModuleType):
        @property
        def called(self) -> Any:
            """The function that a call of the package calls, for documentation."""
            return getattr(importlib.import_module(module), name)

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return self.called(*arguments, **options)

    sys.modules[package].__class__ = CallablePackage
