"""Files that let a killed server continue: clients' answers of a round, and states of trainings.

A state is a safetensors file; JSON values, the format and the options of its run are in the file's metadata.

What was made of other data is never used again where the data are in this process: they have a `digest`. Over a network
a server cannot know whether a client's data changed, so answers and states of a finished run are removed there.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
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
_METADATA = "snapshot"


def digest(*parts: Any) -> str:
    """SHA-256 of arrays and strings in this order: types, shapes and values.

    Anything that is not an array of numbers or strings gets a new digest each time: it equals nothing, not even itself.
    """
    result = hashlib.sha256()
    for part in parts:
        value = part.detach().cpu() if hasattr(part, "detach") else part  # a tensor, perhaps on a GPU
        try:
            array = np.asarray(value)
        except (ValueError, TypeError):
            array = np.asarray(None)
        # Objects have no bytes that mean anything; a random digest makes sure that nothing of them is ever reused.
        readable = not array.dtype.hasobject
        # Type and shape between the parts: otherwise [1, 2] and [[1, 2]], or two parts and one longer, would be equal.
        result.update(f"|{array.dtype}|{array.shape}|".encode())
        result.update(np.ascontiguousarray(array).tobytes() if readable else secrets.token_bytes(32))
    return result.hexdigest()


def check_same_data(stored: str, current: str, rounds: int) -> None:
    """Raise UserError if a state was made of other data.

    Args:
        stored, current: digests.
        rounds: finished rounds of the state, for the error.
    """
    if stored != current:
        raise UserError(
            f"the stored state of {rounds} finished rounds was made of other data; use another folder or delete it"
        )


def write_state(
    path: Path, options: Settings, arrays: Mapping[str, NDArray[Any]], header: Mapping[str, Any], *, format: int
) -> None:
    """Write a state atomically.

    Args:
        header: everything that is not an array, as JSON values.
        format: number of the file's format.
    """
    metadata = {"format": format, "options": options.model_dump(mode="json"), **header}
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes_atomically(path, save(tensors, {_METADATA: json.dumps(metadata)}))


def read_state(
    path: Path,
    options: Settings,
    build: Callable[[dict[str, NDArray[Any]], dict[str, Any]], T],
    *,
    format: int,
) -> T | None:
    """Read what `write_state` wrote; None if there is no file yet.

    Args:
        build: makes the state from arrays and header; a key that it misses there is damage.

    Raises:
        UserError: the file is damaged, has another format, or belongs to other options.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        arrays = load(content)
        # safetensors' numpy reader returns no metadata, so the header is read by its own layout: a length, then JSON.
        length = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_METADATA])
        if header["format"] != format:
            raise UserError(
                f"{path}: field 'format' must be {format} (got {header['format']}); delete it to start over"
            )
        before, now = header["options"], options.model_dump(mode="json")
        # An option that is newer than the run had no effect on it, so it counts from here on.
        if changed := sorted(name for name in now if before.get(name, now[name]) != now[name]):
            name = changed[0]
            raise UserError(
                f"{path}: the run began with {name} {before.get(name)} (got {now[name]}); use another folder or "
                "delete it"
            )
        return build(arrays, header)
    except UserError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}); delete it to start over") from None


class AnswerStore:
    """A folder with the answers of rounds: `000003-query.lloyd/7-DIGEST.safetensors`.

    An answer belongs to the exact request that it was given to, and to the data that it was made of: the name holds the
    digest of both, so a server that continues with other settings, other earlier answers, or other data asks anew.
    Where data are elsewhere (`data` is empty), only the request is known.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, request: Message, client: int, data: str = "") -> Path:
        """File of a client's answer to this request."""
        # 32 of 64 hexadecimal digits, 128 bits: enough that no two requests meet, and paths stay short.
        name = digest(request.digest(), data)[:32]
        return self.folder / f"{request.round:06d}-{request.kind}" / f"{client}-{name}.safetensors"

    def read(self, request: Message, client: int, data: str = "") -> Message | None:
        """Load an answer; None if there is none, or a broken one."""
        try:
            return Message.from_bytes(self.path(request, client, data).read_bytes())
        # A broken file is asked for again, not an error: the client still has its data.
        except (FileNotFoundError, MessageError):
            return None

    def write(self, request: Message, client: int, answer: Message, data: str = "") -> None:
        """Store a validated answer atomically."""
        path = self.path(request, client, data)
        # A stored answer is never replaced: it may have been used already.
        if not path.is_file():
            write_bytes_atomically(path, answer.to_bytes())

    def forget(self, *, before: int | None = None) -> None:
        """Delete the answers of all rounds before that number, or all, and with these the empty folder."""
        for folder in self.folder.glob("[0-9]*-*"):
            if before is None or int(folder.name.partition("-")[0]) < before:
                shutil.rmtree(folder)
        if before is None:
            with suppress(OSError):
                self.folder.rmdir()
