"""Answers of sites on disk, so that a killed server asks again only those whose answers it has not."""

from __future__ import annotations

import shutil
from pathlib import Path

from foveate.federated.messages import Message, MessageError
from foveate.settings.files import write_bytes_atomically


class Kept:
    """A folder with the answers of rounds: `000003-query.lloyd/7-DIGEST.safetensors`.

    An answer belongs to the very question that it was given to: the name holds the question's digest, so that a
    server that goes on with other settings, or other answers before, asks anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, request: Message, site: int) -> Path:
        """Where the site's answer to this question is kept."""
        return self.folder / f"{request.round:06d}-{request.kind}" / f"{site}-{request.digest()[:32]}.safetensors"

    def read(self, request: Message, site: int) -> Message | None:
        """The kept answer; None where there is none, or a broken one."""
        path = self.path(request, site)
        try:
            return Message.from_bytes(path.read_bytes())
        except (FileNotFoundError, MessageError):
            return None

    def write(self, request: Message, site: int, answer: Message) -> None:
        """Keeps an answer that was believed, whole or not at all."""
        path = self.path(request, site)
        if not path.is_file():
            write_bytes_atomically(path, answer.to_bytes())

    def forget(self, *, before: int) -> None:
        """Deletes the answers of all rounds before that number: their outcome is kept elsewhere."""
        for folder in self.folder.glob("[0-9]*-*"):
            if int(folder.name.partition("-")[0]) < before:
                shutil.rmtree(folder)
