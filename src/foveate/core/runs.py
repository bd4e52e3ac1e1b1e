"""Run folders: the resolved recipe, metrics.jsonl, result.json and the other outputs of a command."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from foveate.core.errors import UserError
from foveate.core.files import (
    append_json_lines,
    read_json,
    read_json_lines,
    write_json_atomically,
    write_text_atomically,
)

IDENTITY = "data.json"
# Written before any work, so they alone do not bind the folder to a recipe or to data.
_FILES_BEFORE_WORK = ("recipe.yaml", "run.json", IDENTITY)
_MAX_VALUE = 60  # characters of a value in an error


class RunFolder:
    """The folder of one run. The same command opens the same folder again and resumes.

    Attributes:
        resumed: whether the folder held work when it was opened.
        identity: name -> JSON value of what the run was begun on, as in data.json.
        listeners: called with each row that is appended to metrics.jsonl.
    """

    def __init__(self, path: Path, *, new: bool = False, prepared: Sequence[str] = ()) -> None:
        self.path, self._new, self._prepared = path, new, tuple(prepared)
        self.resumed = False
        self.identity: dict[str, Any] = {}
        self.listeners: list[Callable[[dict[str, Any]], None]] = []

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        command: list[str] | None = None,
        recipe: str | None = None,
        free: Sequence[str] = (),
        data: Mapping[str, Any] | None = None,
        prepared: Sequence[str] = (),
        older: Mapping[str, str] | None = None,
    ) -> RunFolder:
        """Create the folder, or open it again if it holds the same recipe on the same data, or no work yet.

        Args:
            command: the command line, saved in run.json.
            recipe: the resolved recipe as YAML; None for a command that has none.
            free: dotted names of fields that may change between sessions, such as the number of workers; a list on the
                way stands for each of its entries.
            data: name -> JSON value of what identifies the data, saved in data.json; a recipe need not say it.
            prepared: names of files and folders in the run folder that are written before any work and, like the
                recipe, are none; files that an attempt without work left are removed, folders are caches.
            older: file -> name of the value that it holds, of runs begun before data.json existed; "": all values.

        Raises:
            UserError: the path is a file, or the folder holds a run of another recipe or on other data, or a recipe of
                the user that would be overwritten; without a recipe, a run of any recipe.
        """
        check_run_path(path, has_recipe=recipe is not None)
        # Checked before the folder is created: `discard` deletes only folders that this run created.
        new = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot create the folder ({error.strerror})") from error
        run = cls(path, new=new, prepared=(*prepared, *(older or {})))
        run.resumed = run._has_work()
        saved, begun = path / "recipe.yaml", path / "run.json"
        if recipe is not None:
            same = not saved.exists() or _identity(saved.read_text(encoding="utf-8"), free) == _identity(recipe, free)
            if not same and run.resumed:
                raise UserError(
                    f"{path} holds a run of another recipe (compare {saved}); choose another folder with --out"
                )
            by_user = command is not None and saved.exists() and not begun.exists() and not run.resumed
            if by_user and saved.read_text(encoding="utf-8") != recipe:
                raise UserError(
                    f"{saved} was not written by a run and would be overwritten; choose another folder with --out"
                )
        else:
            saved.unlink(missing_ok=True)  # of a try that was refused before any work
        if data is not None:
            if run.resumed:
                run.identity = run._read_identity(older or {})
            run._check_identity(data)
        if saved.exists() and not run.resumed:
            for leftover in (path / name for name in prepared):
                if leftover.is_file():
                    leftover.unlink()
        # Before the recipe: a recipe.yaml without a run.json beside it is a file of the user.
        if command is not None:
            write_json_atomically(begun, {"command": command})
        if recipe is not None:
            write_text_atomically(saved, recipe)
        if data is not None:
            run.identify(data)
        return run

    def identify(self, data: Mapping[str, Any], *, write: bool = True) -> None:
        """Add values to data.json.

        Args:
            data: name -> JSON value, such as the hash of weights that the run starts from.
            write: False on processes that leave the file to another one.

        Raises:
            UserError: the run was begun with another value of one of them.
        """
        self._check_identity(data)
        self.identity |= data
        if write and self.identity:
            write_json_atomically(self.path / IDENTITY, self.identity)

    def _read_identity(self, older: Mapping[str, str]) -> dict[str, Any]:
        if (self.path / IDENTITY).is_file():
            return read_json(self.path / IDENTITY)
        contents = {name: read_json(self.path / file) for file, name in older.items() if (self.path / file).is_file()}
        return {**contents.pop("", {}), **contents}

    def _check_identity(self, data: Mapping[str, Any]) -> None:
        """Raise UserError naming the values that differ; a value that an earlier version did not save is accepted."""
        before = _flatten({name: self.identity[name] for name in data if name in self.identity})
        now = _flatten({name: data[name] for name in data if name in self.identity})
        different = [
            f"{name} {_shorten(now.get(name))} instead of {_shorten(before.get(name))}"
            for name in dict.fromkeys((*now, *before))
            if now.get(name) != before.get(name)
        ]
        if different:
            raise UserError(
                f"{self.path} holds a run on other data (compare {IDENTITY}: {'; '.join(different)}); choose another "
                "folder with --out"
            )

    def discard(self) -> None:
        """Delete the folder if this run created it and was refused before any work."""
        if self._new and not self._has_work():
            shutil.rmtree(self.path, ignore_errors=True)

    def _has_work(self) -> bool:
        """Whether the folder holds results: a mistyped option of a first attempt must not block the corrected one."""
        return any(
            path.is_file()
            and path.name not in _FILES_BEFORE_WORK
            and path.relative_to(self.path).parts[0] not in self._prepared
            for path in self.path.rglob("*")
        )

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Append one row to metrics.jsonl."""
        append_json_lines(self.metrics_path, [row])
        for listen in self.listeners:
            listen(row)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the rows of metrics.jsonl up to a line that a kill cut off."""
        return read_json_lines(self.metrics_path)

    def truncate_metrics(self, *, after_step: int) -> None:
        """Drop rows beyond `after_step`, so that the curve of a resumed run equals an uninterrupted one."""
        # Also drops a last line that a kill cut off: appending to it would join two rows in one.
        rows = [row for row in self.read_metrics() if row["step"] <= after_step]
        write_text_atomically(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))

    def write_result(self, result: dict[str, Any], name: str = "result.json") -> Path:
        """Write the result of the run atomically and return its path."""
        path = self.path / name
        write_json_atomically(path, result)
        return path

    def read_result(self, name: str = "result.json") -> dict[str, Any]:
        """Read the result of the run.

        Raises:
            UserError: the run has no result yet.
        """
        return read_json(self.path / name)


def make_free_folder(parent: Path, text: str) -> Path:
    """Create the folder `parent`/WORDS-OF-TEXT, or with -2, -3 and so on if it exists; return its path."""
    name = "-".join(re.findall(r"[^\W_]+", text.casefold()))[:40].strip("-") or "unnamed"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            path = parent / (name if number == 1 else f"{name}-{number}")
            # `mkdir` itself tells whether the name is free: after a check of its own, another process could take it.
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as error:
        raise UserError(f"{parent}: cannot create a folder in it ({error.strerror})") from error
    raise AssertionError("unreachable: the numbers never end")


def check_run_path(path: Path | None, *, has_recipe: bool = False) -> None:
    """Raise UserError for a run folder that is a file or, for a command without a recipe, that of a run with one.

    Called before the work whose result the folder is to hold.
    """
    if path is None or not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path} is a file; --out must be a directory")
    saved = path / "recipe.yaml"
    # Such as the folder of a training: its result.json and page would be replaced.
    if not has_recipe and saved.exists() and (RunFolder(path)._has_work() or not (path / "run.json").exists()):
        raise UserError(f"{path} holds a run of a recipe ({saved}); choose another folder with --out")


def _flatten(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of values that are objects as `value.field`, so that an error names the one that differs."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= (
            {f"{name}.{field}": inner for field, inner in value.items()} if isinstance(value, dict) else {name: value}
        )
    return flat


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 3]}..."


def _identity(recipe: str, free: Sequence[str]) -> Any:
    """Parse a recipe without its free fields; return the text itself if it is not YAML."""
    try:
        content = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return recipe
    for name in free:
        *parents, last = name.split(".")
        groups = [content]
        for parent in parents:
            inner = [group.get(parent) for group in groups if isinstance(group, dict)]
            groups = [entry for value in inner for entry in (value if isinstance(value, list) else [value])]
        for group in groups:
            if isinstance(group, dict):
                group.pop(last, None)
    return content
