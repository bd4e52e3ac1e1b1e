"""Find the ledgers of nearly the same data: they are one account, or a row more or less would buy a new budget.

Beside each ledger lies a sketch of its data: keyed hashes of the rows, the smallest 2^18 of them, and of the columns.
Two data sets that share at least half of the distinct rows of the smaller one, or half of its columns, are linked, and
links are transitive. A row's hash depends neither on its place nor on the order of its values, a column's not on the
order of the rows, and both only on three digits of each value. So rows and columns in another order, rows that are
repeated, added, left out or changed, columns that are added, and values that are rounded a little are found. Rows and
columns that change both, values that are rounded to two digits, and other units of all columns make other data.

A sketch is written once, whole or not at all, before anything is answered about its data. It never leaves the client;
its key lies beside it, readable by the owner only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.core.files import commit_atomically, file_lock, sweep
from foveate.federated import reasons
from foveate.federated.reasons import Refusal

MAX_HASHES = 1 << 18
"""Hashes of a sketch: all rows of most data sets, and 2 MiB at most."""
_BATCH_VALUES = 1 << 22
_KEY_BYTES = 32
_DAMAGE = (errno.EISDIR, errno.EIO, errno.ELOOP, errno.ENXIO)
"""Errors of a file that is there and cannot be read as one; others are those of a disk that cannot be written."""
RESTORE = "nothing is answered until it is restored, or moved away, which forgets what these data have cost"


@dataclass(frozen=True)
class Sketch:
    """Rows of a data set, as hashes.

    Attributes:
        rows: number of distinct rows.
        hashes: the smallest of their hashes, ascending.
        columns: hashes of the columns.
        linked: names of the ledgers with nearly the same data when it was made.
    """

    rows: int
    hashes: NDArray[np.uint64]
    columns: frozenset[str] = frozenset()
    linked: tuple[str, ...] = ()

    @classmethod
    def of_points(cls, points_ND: NDArray[np.floating], key: bytes) -> Sketch:
        """Hash the rows and the columns."""
        batch = max(1, _BATCH_VALUES // max(1, points_ND.shape[1]))
        digests: list[bytes] = []
        for start in range(0, len(points_ND), batch):
            content = np.sort(_round(points_ND[start : start + batch]), axis=1).tobytes()
            width = 4 * points_ND.shape[1]
            digests += [
                hashlib.blake2b(content[place : place + width], key=key, digest_size=8).digest()
                for place in range(0, len(content), width)
            ]
        hashes = np.unique(np.frombuffer(b"".join(digests), dtype="<u8"))
        columns = frozenset(
            hashlib.blake2b(np.sort(_round(column_N)).tobytes(), key=key, digest_size=8).hexdigest()
            for column_N in points_ND.T
            # Columns of one value, such as the black borders of images, are in any data.
            if (column_N != column_N[0]).any()
        )
        return cls(len(hashes), hashes[:MAX_HASHES], columns)

    def is_near(self, other: Sketch) -> bool:
        """Whether the two share at least half of the rows, or of the columns, of the smaller one."""
        fewer = min(len(self.columns), len(other.columns))
        if fewer and 2 * len(self.columns & other.columns) >= fewer:
            return True
        small, large = (self, other) if self.rows <= other.rows else (other, self)
        # Below the largest hash of a sketch that was cut, all are known; so there the sketches are equal samples.
        bounds = [sketch.hashes[-1] for sketch in (small, large) if sketch.rows > len(sketch.hashes)]
        sample = small.hashes if not bounds else small.hashes[small.hashes <= min(bounds)]
        shared = np.isin(sample, large.hashes, assume_unique=True).sum()
        return bool(len(sample)) and 2 * int(shared) >= len(sample)

    def to_bytes(self, key: bytes) -> bytes:
        """Content of its file: a checksum, a line about it, the hashes."""
        about = {"rows": self.rows, "columns": sorted(self.columns), "linked": self.linked, "key": _fingerprint(key)}
        content = json.dumps(about).encode() + b"\n" + self.hashes.astype("<u8").tobytes()
        return hashlib.sha256(content).hexdigest().encode() + b"\n" + content

    @classmethod
    def from_bytes(cls, data: bytes, key: bytes) -> Sketch:
        """Read what `to_bytes` returned.

        Raises:
            ValueError: other content, or that of another key, whose hashes cannot be compared.
        """
        checksum, _, content = data.partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != checksum:
            raise ValueError("is damaged")
        line, _, hashes = content.partition(b"\n")
        about = json.loads(line)
        if about["key"] != _fingerprint(key):
            raise ValueError(f"was made with another key than {_KEY}")
        columns = frozenset(about["columns"])
        return cls(about["rows"], np.frombuffer(hashes, dtype="<u8"), columns, tuple(about["linked"]))


def _round(values: NDArray[np.floating]) -> NDArray[np.uint32]:
    """Round values to ten binary digits after the first, as the bits of float32."""
    with np.errstate(over="ignore"):
        # Adding 0 turns -0.0, which equals 0.0 and has other bits, into 0.0.
        bits = (values.astype("<f4") + np.float32(0.0)).view("<u4")
    # Half of the last digit that is kept is added first; infinity has no digits, and stays above all.
    return (bits + np.uint32(1 << 12)) & ~np.uint32((1 << 13) - 1)


_KEY, _LOCK, _SUFFIX = "rows.key", "rows.lock", ".sketch"


def list_account(
    folder: Path, name: str, points_ND: NDArray[np.floating] | None = None, *, is_kept: bool = True
) -> list[str]:
    """Return the names of all ledgers that belong to one account with a ledger, itself included, sorted.

    Args:
        folder: of the ledgers. name: of the ledger.
        points_ND: its data, which get a sketch if they have none; None = what is known already.
        is_kept: write that sketch; False for a plan, which changes nothing.

    Raises:
        Refusal: a sketch or the key cannot be read or written.
    """
    path = folder / f"{name}{_SUFFIX}"
    # Without a key nothing is known yet.
    if not is_kept and not os.path.lexists(folder / _KEY):
        return [name]
    with _locked(folder):
        key = _read_key(folder)
        is_new = points_ND is not None and not os.path.lexists(path)
    # Outside of the lock: it takes seconds for a million rows, and others need not wait for it.
    sketch = Sketch.of_points(points_ND, key) if is_new and points_ND is not None else None
    with _locked(folder):
        sketches = _read_all(folder, key)
        if sketch is not None and name not in sketches:
            linked = sorted(other for other, known in sketches.items() if sketch.is_near(known))
            sketch = replace(sketch, linked=tuple(linked))
            if is_kept:
                _write(path, sketch.to_bytes(key))
            sketches[name] = sketch
    return _connect(name, sketches)


def _connect(name: str, sketches: Mapping[str, Sketch]) -> list[str]:
    """Return all names that are linked to a name, over any number of links."""
    neighbors: dict[str, set[str]] = {}
    for one, sketch in sketches.items():
        for other in sketch.linked:
            neighbors.setdefault(one, set()).add(other)
            neighbors.setdefault(other, set()).add(one)
    members, waiting = {name}, [name]
    while waiting:
        new = neighbors.get(waiting.pop(), set()) - members
        members |= new
        waiting += new
    return sorted(members)


def _read_all(folder: Path, key: bytes) -> dict[str, Sketch]:
    # All of them: a link between two accounts may be written in any sketch.
    sketches = {}
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            sketches[path.name.removesuffix(_SUFFIX)] = Sketch.from_bytes(_read_file(path), key)
        except (ValueError, KeyError, TypeError) as problem:
            text = f"{path}: the sketch of the rows {problem}; {RESTORE}"
            raise Refusal(reasons.LEDGER_DAMAGED, text) from problem
    return sketches


def _read_key(folder: Path) -> bytes:
    """Read the key of the hashes, or draw one for a folder without sketches."""
    path = folder / _KEY
    if os.path.lexists(path):
        key = _read_file(path)
        if len(key) != _KEY_BYTES:
            raise Refusal(
                reasons.LEDGER_DAMAGED, f"{path}: the key has {len(key)} bytes instead of {_KEY_BYTES}; {RESTORE}"
            )
        return key
    if sketches := sorted(folder.glob(f"*{_SUFFIX}")):
        # With a new key no sketch would equal an old one, and all data would be new.
        raise Refusal(reasons.LEDGER_DAMAGED, f"{path}: the key is gone, but not {sketches[0].name}; {RESTORE}")
    key = secrets.token_bytes(_KEY_BYTES)
    _write(path, key)
    return key


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the sketches of a folder; held for reading and writing them only, never for an answer."""
    path = folder / _LOCK
    lock = file_lock(path, mode=0o600)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire()
    except OSError as problem:
        raise refuse_file(path, "the lock", problem) from problem
    try:
        yield
    finally:
        lock.release()


def _read_file(path: Path) -> bytes:
    try:
        # A pipe or a device would be read for ever.
        if not path.is_file():
            raise Refusal(reasons.LEDGER_DAMAGED, f"{path}: it is no file; {RESTORE}")
        return path.read_bytes()
    except OSError as problem:
        raise refuse_file(path, "it", problem) from problem


def _write(path: Path, data: bytes) -> None:
    """Write a file of mode 0600, whole or not at all; the folder is locked."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        # What a kill left is removed: under the lock nobody else writes it.
        sweep(path)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        commit_atomically(temporary, path)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise refuse_file(path, "it", problem) from problem


def _fingerprint(key: bytes) -> str:
    return hashlib.sha256(b"key of rows" + key).hexdigest()[:16]


def refuse_file(path: Path, name: str, problem: OSError) -> Refusal:
    """Refusal for a file of the account that cannot be read, or cannot be written."""
    is_unreadable = os.path.exists(path) and not os.access(path, os.R_OK)
    if is_unreadable or problem.errno in _DAMAGE:
        return Refusal(reasons.LEDGER_DAMAGED, f"{path}: {name} cannot be read ({problem.strerror}); {RESTORE}")
    return Refusal(
        reasons.LEDGER_UNWRITABLE,
        f"{path}: {name} cannot be written ({problem.strerror}); nothing is answered that is not logged",
    )
