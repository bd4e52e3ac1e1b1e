"""Folders of exports: written beside their name, and moved there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, commit_atomically
from foveate.core.progress import say

_STAGED = "content"


def default_folder(source: Path, to: str) -> Path:
    """Return SOURCE-TARGET next to the source."""
    # "." and ".." have no name to add to.
    named = source if source.name not in ("", "..") else source.resolve()
    return named.with_name(f"{named.name}-{to}")


def check_empty_folder(target: Path) -> None:
    """Raise UserError if the folder of an export exists and is not empty."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"{target}: exists and is not an empty folder; choose another one with --out")


def list_files(folder: Path) -> list[str]:
    """Return the files of a folder, at any depth, sorted and relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@contextmanager
def staged_folder(target: Path, *, identity: str | None = None) -> Iterator[Path]:
    """Yield a folder to write in, which is moved to `target` on a clean exit; killed or failed, nothing is there.

    Args:
        identity: hash of what the content is made from. With it, what a stopped or failed export has written stays
            beside the target, and the next one of the same identity resumes it; without it, each starts from scratch.

    Raises:
        UserError: when another process exports to the same folder, the folder cannot be written, or a file that the
            block opens elsewhere cannot be read.
    """
    check_empty_folder(target)  # here too, so that a refused export leaves no lock beside the folder
    # Absolute: "." has no name.
    final = target.absolute()
    # Next to the target, because a rename is atomic only within one file system.
    stage = final.with_name(f".{final.name}.partial")
    content, note = stage / _STAGED, stage / "identity"
    try:
        stage.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from error
    # The lock is in the stage, not in the target, which must not exist before it is complete.
    with FolderLock(stage, purpose="export"):
        check_empty_folder(target)
        earlier = note.read_text(encoding="utf-8") if note.is_file() else None
        if content.exists() and (identity is None or earlier != identity):
            if earlier is not None:
                say(f"{target}: discarded an unfinished export{' of another source' if identity else ''}")
            shutil.rmtree(content)
        content.mkdir(exist_ok=True)
        note.write_text(identity or "", encoding="utf-8")
        # Whether to keep the stage: a stopped or failed export with an identity is resumed from it.
        finished = False
        try:
            yield content
            if os.name == "nt" and final.is_dir():
                final.rmdir()  # it is empty; Windows renames a folder to no other that exists
            commit_atomically(content, final)
            finished = True
        except OSError as error:
            outside = _find_file_outside(stage, error)
            if outside is not None:
                raise UserError(f"{outside}: cannot be read or written ({error.strerror})") from error
            raise UserError(f"{target}: cannot be written ({error})") from error
        finally:
            if finished or identity is None:
                # On Windows the lock, which is open, stays; the next export takes it.
                shutil.rmtree(stage, ignore_errors=os.name == "nt")


def _find_file_outside(stage: Path, error: OSError) -> Path | None:
    """Return the file that an error names, such as a source that is gone; None for one in the stage or without name."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    path = Path(os.fsdecode(error.filename))
    return None if path.resolve().is_relative_to(stage.resolve()) else path
