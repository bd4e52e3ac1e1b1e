"""Indexes: search, thumbnails of their images, and embeddings by the model that they were made with."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.records import layout
from foveate.records.images import make_thumbnail
from foveate.search.api import SearchIndex, open_index
from foveate.search.index_folder import DESCRIPTION
from foveate.search.query import Query
from foveate.search.search import Index
from foveate.search.search import search as search_in
from foveate.search.search_result import describe_floor
from foveate.serve.adapters import use_precision
from foveate.serve.adapters.localizer import LocalizerAdapter
from foveate.serve.calls import Call, Endpoint, Refused, SearchCall, SearchReply

_LOG = logging.getLogger("foveate.serve")


class IndexAdapter(LocalizerAdapter):
    """See `foveate.serve.calls.Adapter` and `ImageSource`."""

    kind = "index"
    endpoints: frozenset[Endpoint] = frozenset({"embeddings", "locate", "search"})

    def __init__(self, opened: SearchIndex, *, name: str, precision: str = "auto") -> None:
        super().__init__(opened.model, name=name, precision=precision)
        # Thumbnails are read in any thread while the model thread searches; only one may reopen the index at a time.
        self._index, self._lock = opened.index, threading.Lock()
        self._stamp = self._read_stamp()

    def answer(self, calls: Sequence[Call]) -> list[Any]:
        """Search call by call; else as a localizer."""
        searches = [call for call in calls if isinstance(call, SearchCall)]
        return [self._search(call) for call in searches] if searches else super().answer(calls)

    def thumbnail(self, key: str) -> bytes:
        """Return an image as WebP, encoded again.

        Raises:
            Refused: 404 for a key that is not in the index or removed, or an image that cannot be read any more.
        """
        collection = self._current().collection
        # Neither the nearest key nor the reason: both tell of images and files that were not asked for.
        with contextlib.suppress(UserError):
            if (row := collection.get_row(key)) is not None:
                return make_thumbnail(collection.image_bytes(row))
        raise Refused(f"{self.name}: has no image {key[:80]!r}", status=404, code="image_not_found")

    def _search(self, call: SearchCall) -> SearchReply:
        image = None if call.image is None else call.image.data
        query = Query(text=call.text, image=image, box=call.box, negative=call.negative)
        index, network = self._current(), self.model.network
        with use_precision(self.precision, network):
            try:
                hits, _ = search_in(index, query, network, count=call.count, kind=call.kind)
            except UserError as error:
                # An index and a collection name themselves by their folders, which are nothing for clients.
                text = str(error)
                for folder in (index.folder, index.collection.path):
                    text = text.replace(str(folder), self.name)
                raise UserError(text) from error
            verdict = index.judge(query, hits, network, kind=call.kind)
            return SearchReply(tuple(hits), verdict, describe_floor(index, verdict))

    def _current(self) -> Index:
        """Return the index as it is now: images that were removed since it was opened stay removed.

        Raises:
            Refused: 503 while it cannot be opened again; the reason is for the log.
        """
        with self._lock:
            try:
                if (stamp := self._read_stamp()) != self._stamp:
                    index = Index.open(self._index.folder, collection=self._index.collection.path)
                    # Its vectors are of another space than those of the opened model.
                    if index.description.fingerprint != self._index.description.fingerprint:
                        raise UserError(f"{index.folder}: was made with another model; restart the server")
                    self._index, self._stamp = index, stamp
            except (UserError, OSError) as error:
                _LOG.warning(f"{self.name}: has changed and cannot be opened again: {error}")
                text = f"{self.name}: has changed and cannot be opened again"
                raise Refused(text, status=503, code="index_unreadable", retry_after=5) from error
            return self._index

    def _read_stamp(self) -> tuple[float, ...]:
        files = (self._index.collection.path / layout.REMOVED_FILE, self._index.folder / DESCRIPTION)
        return tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)


def matches(folder: Path) -> bool:
    """Return whether a folder is an index of `foveate index`."""
    return (folder / DESCRIPTION).is_file()


def open_adapter(folder: Path, *, name: str, device: str | None, precision: str, max_tokens: int) -> IndexAdapter:
    """Open an index with its model and collection."""
    return IndexAdapter(open_index(folder, device=device), name=name, precision=precision)
