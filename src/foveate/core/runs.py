"""A run folder: the resolved recipe, metrics.jsonl, result.json and whatever the command makes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from foveate.core.errors import UserError
from foveate.core.files import read_json, write_json_atomically, write_text_atomically

_BEFORE_WORK = ("recipe.yaml", "run.json")


class RunFolder:
    """Where one run keeps its files. The same command opens the same folder again and goes on."""

    def __init__(self, path: Path, *, new: bool = False) -> None:
        self.path, self._new = path, new

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        command: list[str] | None = None,
        recipe: str | None = None,
        free: Sequence[str] = (),
    ) -> RunFolder:
        """Makes the folder, or opens it again when it holds the same recipe, or no work of another one yet.

        Args:
            recipe: the resolved recipe as YAML.
            free: dotted names of fields that may change from one session to the next.

        Raises:
            UserError: when it is a file, or holds a run of another recipe.
        """
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: is a file; a run needs a folder")
        new = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: the folder cannot be made ({error.strerror})") from error
        run = cls(path, new=new)
        saved = path / "recipe.yaml"
        if recipe is not None:
            same = not saved.exists() or _identity(saved.read_text(encoding="utf-8"), free) == _identity(recipe, free)
            if not same and run._begun():
                raise UserError(
                    f"{path}: holds a run of another recipe (compare {saved}); give another folder with --run"
                )
            write_text_atomically(saved, recipe)
        if command is not None:
            write_json_atomically(path / "run.json", {"command": command})
        return run

    def discard(self) -> None:
        """Takes the folder away where it was made for a command that then was refused, before any work."""
        if self._new and not self._begun():
            shutil.rmtree(self.path, ignore_errors=True)

    def _begun(self) -> bool:
        """Whether it holds more than a command that failed before its work leaves: a typing error binds no folder."""
        return any(one.is_file() and one.name not in _BEFORE_WORK for one in self.path.rglob("*"))

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds one row to metrics.jsonl."""
        with self.metrics_path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line cut off by a kill is left out."""
        if not self.metrics_path.exists():
            return []
        rows = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def truncate_metrics(self, *, after_step: int) -> None:
        """Drops rows beyond `after_step`, so that a resumed run's curve is that of an uninterrupted one."""
        kept = [row for row in self.read_metrics() if row["step"] <= after_step]
        write_text_atomically(self.metrics_path, "".join(json.dumps(row) + "\n" for row in kept))

    def write_result(self, result: dict[str, Any], name: str = "result.json") -> Path:
        """Writes the run's result atomically; returns its path."""
        path = self.path / name
        write_json_atomically(path, result)
        return path

    def read_result(self, name: str = "result.json") -> dict[str, Any]:
        """The run's result.

        Raises:
            UserError: when the run has none yet.
        """
        return read_json(self.path / name)


def _identity(recipe: str, free: Sequence[str]) -> Any:
    """A recipe's content without the fields that may change; the text itself where it is no mapping."""
    try:
        content = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return recipe
    for name in free:
        *parents, last = name.split(".")
        place = content
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.pop(last, None)
    return content
