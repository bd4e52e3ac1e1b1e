"""What a server keeps on disk, so that a killed one goes on where it was: answers of clients, and states of trainings.

A state is a safetensors file; what is no array stands in its metadata as JSON, with the format and the options of the
run that it belongs to.

What was made of other data is never used again where the data are in this process: they have a `digest`. Over a network
a server cannot know whether a client's data changed, so that answers and states of a finished run are removed there.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from foveate.core.errors import UserError
from foveate.core.files import write_bytes_atomically
from foveate.core.recipes import Settings
from foveate.federated.messages import Message, MessageError

T = TypeVar("T")


def digest(*parts: Any) -> str:
    """SHA-256 of arrays and words in this order: types, shapes and numbers.

    What is no array of numbers or words has another digest each time: it equals nothing, not even itself.
    """
    found = hashlib.sha256()
    for part in parts:
        given = part.detach().cpu() if hasattr(part, "detach") else part  # a tensor, perhaps on a GPU
        try:
            array = np.asarray(given)
        except (ValueError, TypeError):
            array = np.asarray(None)
        readable = not array.dtype.hasobject
        found.update(f"|{array.dtype}|{array.shape}|".encode())
        found.update(np.ascontiguousarray(array).tobytes() if readable else secrets.token_bytes(32))
    return found.hexdigest()


def same_data(kept: str, now: str, finished: int) -> None:
    """Returns where a state was made of the data that are here.

    Args:
        kept, now: digests. finished: the state's rounds, for the sentence.

    Raises:
        UserError: it was made of other data.
    """
    if kept != now:
        raise UserError(
            f"the kept state of {finished} finished rounds was made of other data; give it another place or remove it"
        )


def write_state(
    path: Path,
    name: str,
    options: Settings,
    arrays: Mapping[str, NDArray[Any]],
    about: Mapping[str, Any],
    *,
    form: int,
) -> None:
    """Writes a state, whole or not at all.

    Args:
        name: of the metadata. about: all that is no array, as JSON can hold it. form: number of the file's format.
    """
    whole = {"format": form, "options": options.model_dump(mode="json"), **about}
    content = save({one: np.ascontiguousarray(array) for one, array in arrays.items()}, {name: json.dumps(whole)})
    write_bytes_atomically(path, content)


def read_state(
    path: Path,
    name: str,
    options: Settings,
    build: Callable[[dict[str, NDArray[Any]], dict[str, Any]], T],
    *,
    form: int,
) -> T | None:
    """What `write_state` wrote; None where there is no file yet.

    Args:
        build: makes the state of the arrays and of `about`; what it misses there is damage.

    Raises:
        UserError: the file is damaged, is of another format, or belongs to other options.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        arrays = load(content)
        length = int.from_bytes(content[:8], "little")
        about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][name])
        if about["format"] != form:
            raise UserError(f"{path}: format {about['format']}, this version reads {form}")
        was, now = about["options"], options.model_dump(mode="json")
        if odd := sorted(one for one in now if was.get(one) != now[one]):
            raise UserError(
                f"{path}: was begun with {odd[0]} {was.get(odd[0])}, not {now[odd[0]]}; give another place or remove it"
            )
        return build(arrays, about)
    except UserError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}); remove it to begin again") from None


class AnswerStore:
    """A folder with the answers of rounds: `000003-query.lloyd/7-DIGEST.safetensors`.

    An answer belongs to the very question that it was given to, and to the data that it was made of: the name holds the
    digest of both, so that a server that goes on with other settings, other answers before, or other data asks anew.
    Where data are elsewhere (`data` is empty), only the question is known.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, request: Message, client: int, data: str = "") -> Path:
        """Where the client's answer to this question is kept."""
        name = digest(request.digest(), data)[:32]
        return self.folder / f"{request.round:06d}-{request.kind}" / f"{client}-{name}.safetensors"

    def read(self, request: Message, client: int, data: str = "") -> Message | None:
        """The kept answer; None where there is none, or a broken one."""
        path = self.path(request, client, data)
        try:
            return Message.from_bytes(path.read_bytes())
        except (FileNotFoundError, MessageError):
            return None

    def write(self, request: Message, client: int, answer: Message, data: str = "") -> None:
        """Keeps an answer that was believed, whole or not at all."""
        path = self.path(request, client, data)
        if not path.is_file():
            write_bytes_atomically(path, answer.to_bytes())

    def forget(self, *, before: int | None = None) -> None:
        """Deletes the answers of all rounds before that number, or all: their outcome is kept elsewhere."""
        for folder in self.folder.glob("[0-9]*-*"):
            if before is None or int(folder.name.partition("-")[0]) < before:
                shutil.rmtree(folder)
