"""Feature store: frozen features on disk by key. What exists is never computed again, what is new is added.

A store is a folder of parts. A part is one safetensors file with `keys` [n, 2] (two words of a 128-bit hash), `sizes`
[n, 2] and `features` [n, ...]; it is written atomically, and its name is a hash of its keys, so that two processes that
compute the same part write the same file. Everything that all entries depend on is in the folder's name.
`bad-*.json` say why entries have no features; an entry that may be readable later is in no part.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.files import write_bytes_atomically, write_json_atomically
from foveate.core.progress import say, track

# Version of the layout of parts and keys: another number is another folder, and old folders are never read.
VERSION = 2
ABOUT, USED = "about.json", "used"
_PATTERN = "part-*.safetensors"
_PATIENCE_SECONDS = 300.0
_POLL_SECONDS = 0.2

Share = tuple[int, int]


class Failure(NamedTuple):
    """Why an entry has no features; of one that is passing nothing is stored, and the next run tries it again."""

    reason: str
    is_passing: bool = False


# Features and sizes of the entries whose numbers are given, and entry number -> failure of those that have none.
Make = Callable[[Sequence[int]], tuple[Tensor, NDArray[np.int32], dict[int, Failure]]]


def key_of(text: str) -> bytes:
    """Hash a text to 16 bytes, the same on every machine."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def keys_of(texts: Iterable[str]) -> NDArray[np.uint64]:
    """Hash texts to keys [n, 2]."""
    # Little-endian whatever the machine, as in the files.
    return np.frombuffer(b"".join(key_of(text) for text in texts), dtype="<u8").reshape(-1, 2)


class FeatureStore:
    """The entries of a store that a run reads, by number.

    Args:
        folder: of all stores. kind: "images" or "texts". depends: what all entries depend on.
        shape, dtype: of one entry's features.

    Attributes:
        keys: [n, 2], of the entries that were passed to `fill`. sizes: [n, 2] int32.
        bad: entry number -> reason.
        computed: entries that the last `fill` computed.
    """

    def __init__(
        self, folder: Path, *, kind: str, depends: Sequence[str], shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        # Joined by a byte that no part contains, so that moving text from one part to the next changes the hash.
        digest = hashlib.blake2b("\0".join(depends).encode("utf-8"), digest_size=12).hexdigest()
        self.folder = folder / f"{kind}-v{VERSION}-{digest}"
        self.kind, self.depends = kind, list(depends)
        self.shape, self.dtype = shape, dtype
        self._prefix, self._entry_bytes = f"{self.folder}/", math.prod(shape) * dtype.itemsize
        self.sizes = np.zeros((0, 2), np.int32)
        self.bad: dict[int, str] = {}
        self.computed = 0
        self._passing: dict[int, str] = {}
        self._parts: dict[str, int] = {}
        self._names: list[str] = []
        self._offsets: list[int] = []
        self._loaded: Tensor | None = None

    def fill(
        self,
        keys: NDArray[np.uint64],
        make: Make,
        *,
        block: int,
        description: str,
        share: Share = (0, 1),
        patience: float = _PATIENCE_SECONDS,
        only: NDArray[np.bool_] | None = None,
    ) -> None:
        """Compute the entries that do not exist yet.

        Args:
            keys: [n, 2] of all entries, in the same order on every rank; equal keys are one entry.
            make: called with at most `block` entry numbers.
            share: rank and number of processes. Each computes its blocks and waits for those of the others; after
                `patience` seconds without a new part (they may have another disk) it computes theirs too.
            only: [n], the entries that are computed; others that do not exist are read as zeros.
        """
        self._only, self.computed = only, 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / ABOUT).is_file():
            # The folder's name is only a hash; this file is for whoever wants to know what lies in it.
            about = {"kind": self.kind, "version": VERSION, "depends": self.depends}
            write_json_atomically(self.folder / ABOUT, about)
        # Its time is when a run last used the store: `foveate cache` removes unused ones by it.
        (self.folder / USED).touch()
        self.keys = keys
        # The first entry of each distinct key stands for all equal ones. The first word decides; `_take` reads both.
        self._first = np.sort(np.unique(keys[:, 0], return_index=True)[1])
        self._part = np.full(len(keys), -1, np.int32)
        self._passing = {}
        self._place = np.zeros(len(keys), np.int32)
        self.sizes = np.zeros((len(keys), 2), np.int32)
        self._order = np.argsort(keys[:, 0], kind="stable")
        self._words = keys[self._order, 0]
        self._look()
        rank, ranks = share
        mine = [number for number in self._missing(block) if number % ranks == rank]
        for number in track(mine, description=description) if mine else ():
            self._make(self._inside(number, block), make)
        self._look()
        since = time.monotonic()
        while missing := self._missing(block):
            if unread := self._unread_elsewhere()[:block]:
                self._make(unread, make)
            elif time.monotonic() - since > patience:
                say(f"{self.folder}: no new part of other processes for {patience:.0f} s: computing it here")
                self._make(self._inside(missing[0], block), make)
            else:
                time.sleep(_POLL_SECONDS)
            if self._look():
                since = time.monotonic()
        self._read_reasons()

    def _missing(self, block: int) -> list[int]:
        """List the blocks of `block` entries of which some are missing and have not been tried."""
        # By entry number, not by rank among the missing: all processes cut the same blocks.
        return np.unique(self._untried() // block).tolist()

    def _untried(self) -> NDArray[np.int64]:
        missing = self.list_missing()
        missing = missing if self._only is None else missing[self._only[missing]]
        return missing[~np.isin(missing, list(self._passing))] if self._passing else missing

    def list_missing(self) -> NDArray[np.int64]:
        """List the entries that do not exist, of equal ones the first."""
        return self._first[self._part[self._first] < 0]

    def link(self, folder: Path) -> None:
        """Read what exists in another folder of stores as well, which is not written to; called before `fill`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for pattern in (_PATTERN, "bad-*.json"):
            for path in (folder / self.folder.name).glob(pattern):
                if not (self.folder / path.name).exists():
                    (self.folder / path.name).symlink_to(path.resolve())

    def _inside(self, number: int, block: int) -> list[int]:
        untried = self._untried()
        return untried[untried // block == number].tolist()

    def _unread_elsewhere(self) -> list[int]:
        """List entries that another process could not read: it writes no part with them that could be waited for."""
        # A file of an earlier run does no harm: an entry is then computed by two processes.
        files = self.folder.glob("unread-*.json")
        keys = [key for path in files for key in json.loads(path.read_text(encoding="utf-8"))]
        words = np.frombuffer(bytes.fromhex("".join(keys)), dtype="<u8").reshape(-1, 2)[:, 0]
        untried = self._untried()
        return untried[np.isin(self.keys[untried, 0], words)].tolist()

    def _make(self, inside: list[int], make: Make) -> None:
        features, sizes, failures = make(inside)
        self.computed += len(inside)
        passing = {entry: failure.reason for entry, failure in failures.items() if failure.is_passing}
        if passing:
            self._passing |= passing
            unread = np.ascontiguousarray(self.keys[list(passing)])
            path = self.folder / f"unread-{_name_of(unread)}.json"
            write_json_atomically(path, [key.tobytes().hex() for key in unread])
            lasting = [index for index, entry in enumerate(inside) if entry not in passing]
            inside = [inside[index] for index in lasting]
            features, sizes = features[lasting], sizes[lasting]
            if not inside:
                return
        keys = np.ascontiguousarray(self.keys[inside])
        name = _name_of(keys)
        if reasons := {entry: failure.reason for entry, failure in failures.items() if entry not in passing}:
            # Written before the part: whoever sees the part also finds why some of its entries are empty.
            by_key = {self.keys[entry].tobytes().hex(): reason for entry, reason in reasons.items()}
            write_json_atomically(self.folder / f"bad-{name}.json", by_key)
        # Signed, because PyTorch hardly supports unsigned 64-bit numbers; the bits are the same.
        tensors = {
            "keys": torch.from_numpy(keys.view(np.int64)),
            "sizes": torch.from_numpy(sizes),
            "features": features.to("cpu", self.dtype).contiguous(),
        }
        path = self.folder / f"part-{name}.safetensors"
        write_bytes_atomically(path, save(tensors))
        self._take(path)

    def _look(self) -> bool:
        """Register parts that have appeared; return whether there was one."""
        new = sorted(path for path in self.folder.glob(_PATTERN) if path.name not in self._parts)
        for path in new:
            self._take(path)
        return bool(new)

    def _take(self, path: Path) -> None:
        header, start = _header(path)
        shape, dtype = tuple(header["features"]["shape"][1:]), header["features"]["dtype"]
        if (shape, dtype) != (self.shape, _NAMES[self.dtype]):
            expected = f"{list(self.shape)} {_NAMES[self.dtype]}"
            raise UserError(
                f"{path}: features of another encoder (got {list(shape)} {dtype}); expected {expected}; remove it"
            )
        part = self._parts.setdefault(path.name, len(self._parts))
        self._names.append(path.name)
        self._offsets.append(start + header["features"]["data_offsets"][0])
        keys = _read(path, header, start, "keys", np.dtype("<u8"))
        sizes = _read(path, header, start, "sizes", np.dtype("<i4"))
        # Entries low to high of the sorted order have this first word; most words have one or none.
        low, high = (np.searchsorted(self._words, keys[:, 0], side=side) for side in ("left", "right"))
        index = np.repeat(np.arange(len(keys)), high - low)  # equal keys are wanted more than once
        within = np.arange(len(index)) - np.repeat(np.cumsum(high - low) - (high - low), high - low)
        entries = self._order[low[index] + within]
        same = self.keys[entries, 1] == keys[index, 1]
        entries, index = entries[same], index[same]
        self._part[entries], self._place[entries], self.sizes[entries] = part, index, sizes[index]

    def _read_reasons(self) -> None:
        reasons: dict[str, str] = {}
        for path in sorted(self.folder.glob("bad-*.json")):
            reasons |= json.loads(path.read_text(encoding="utf-8"))
        # Unless another process could read it meanwhile.
        unread = {entry: reason for entry, reason in self._passing.items() if self._part[entry] < 0}
        reasons |= {self.keys[entry].tobytes().hex(): reason for entry, reason in unread.items()}
        if reasons:
            reason_of_entry = ((entry, reasons.get(key.tobytes().hex())) for entry, key in enumerate(self.keys))
            self.bad = {entry: reason for entry, reason in reason_of_entry if reason is not None}

    def __getitem__(self, entry: int) -> Tensor:
        """Read the features of an entry; zeros of a bad one."""
        if self._loaded is not None:
            return self._loaded[entry]
        part, size = self._part[entry], self._entry_bytes
        if part < 0:
            # As the stored features of an image that is damaged.
            return torch.zeros(self.shape, dtype=self.dtype)
        path = f"{self._prefix}{self._names[part]}"
        # Read, not mapped: the pages of a mapping would count as this process's memory. Opened each time: there
        # may be more parts than a process may have open files, and many threads read.
        features = torch.empty(size, dtype=torch.uint8)
        with open(path, "rb", buffering=0) as handle:
            handle.seek(self._offsets[part] + int(self._place[entry]) * size)
            read = handle.readinto(memoryview(features.numpy().data))
        if read != size:
            raise UserError(f"{path}: truncated feature part; remove it and start again")
        return features.view(self.dtype).view(self.shape)

    def keep_in_memory(self) -> None:
        """Load all features at once, for small ones."""
        self._loaded = torch.stack([self[entry] for entry in range(len(self.keys))]) if len(self.keys) else None


def _name_of(keys: NDArray[np.uint64]) -> str:
    return hashlib.blake2b(keys.tobytes(), digest_size=12).hexdigest()


_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Read a part's header and the offset of its data."""
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        whole = path.stat().st_size
        header = json.loads(handle.read(length)) if length < whole else {}
    ends = [value["data_offsets"][1] for name, value in header.items() if name != "__metadata__"]
    if {"keys", "sizes", "features"} - set(header) or 8 + length + max(ends) != whole:
        raise UserError(f"{path}: damaged feature part; remove it and start again")
    return header, 8 + length


def _read(path: Path, header: dict[str, Any], start: int, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    shape, (begin, end) = header[name]["shape"], header[name]["data_offsets"]
    return np.fromfile(path, dtype, (end - begin) // dtype.itemsize, offset=start + begin).reshape(shape)
