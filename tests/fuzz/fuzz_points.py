"""Sources of the federated verbs made hostile: arrays, tables, cells; and what must hold of their points."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_run import Target, Trial
from fuzz_values import damaged, odd_number, odd_text

from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.methods import resolve
from foveate.federated.clustering.protocol import HANDLERS
from foveate.federated.points import MAX_COORDINATE, Points, ReadOptions, is_missing
from foveate.federated.rounds import Client, InProcess
from foveate.federated.sources import gather, read_points

SECRET = 7777.0
TYPES = (
    "<f8",
    "<f4",
    ">f8",
    "<f2",
    "|b1",
    "<i8",
    "|u1",
    "<c16",
    "<M8[s]",
    "<U3",
    "|S2",
    "|O",
    "<f16",
    "<U0",
    "x",
    "<i3",
)
SHAPES = (
    (4, 2),
    (4,),
    (),
    (0, 2),
    (4, 0),
    (10**9, 3),
    (2**62, 4),
    (-1, 2),
    (True, 2),
    (4, 2, 1),
    (1.5, 2),
    "4",
    (3, 2),
)


def _options(random: Random) -> ReadOptions:
    columns: tuple[str, ...] = ()
    if random.random() < 0.4:
        odd = random.choice(("a", "b", "!a", "label", "[", "nothing", "points", odd_text(random)))
        columns = random.choice((("*",), ("*",), ("!label",), (odd,), ("*", odd)))
    # Small, so that what claims to be large is refused and not tried.
    return ReadOptions(columns=columns, drop_missing=random.random() < 0.5, max_gib=random.choice((0.01, 0.2)))


def _attempt(trial: Trial, path: Path) -> str:
    random = trial.random
    options = _options(random) if path.suffix in ("", ".csv", ".parquet") else ReadOptions(max_gib=0.05)
    others = random.choice(((), ("label",), ("label",), ("a", "nothing")))
    trial.note((path.name, options.columns, options.drop_missing, others))
    points = read_points(path, options, others=others)
    check(points)
    if len(points.points_ND) >= 4 and random.random() < 0.3:
        clients = gather([path, path], options=options, label="label" if "label" in others else None)
        members = [Client(number, part, HANDLERS) for number, part in enumerate(clients.points)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = cluster(InProcess(members), resolve(2, on_few_groups="return", n_init=1), evaluate=True)
        assert np.isfinite(found.centers).all()
        return "clustered"
    return "read"


def check(points: Points) -> None:
    """Points are finite numbers within bounds, and everything beside them has one entry per row."""
    values = points.points_ND
    assert values.dtype == np.float64
    assert values.ndim == 2
    assert values.shape[0] > 0
    assert values.shape[1] > 0
    assert (np.abs(values) <= MAX_COORDINATE).all()
    assert not (values == SECRET).any(), "another file was read"
    assert len(points.features) == values.shape[1]
    for name, column in points.columns.items():
        assert len(column) == len(values), name
        # What a run does with labels and names of clients.
        with_text = [str(value) for value in column.tolist()]
        np.unique(np.array(with_text))
        if not is_missing(column).any():
            assert len(points.column(name, "column").tolist()) == len(values)


def _npy(random: Random) -> bytes:
    """An array in NumPy's format whose header, type or bytes may be anything."""
    kind, shape = random.choice(TYPES), random.choice(SHAPES)
    if random.random() < 0.5:
        kind, shape = "<f8", (4, 2)
    header = {"descr": kind, "fortran_order": random.choice((False, False, True, 1)), "shape": shape}
    choice = random.random()
    if choice < 0.1:
        header["descr"] = random.choice(([("a", "<f8")], [("a", [("b", "<f8")])], ("<f8", (2,)), None, 8))
    elif choice < 0.15:
        header.pop(random.choice(list(header)))
    elif choice < 0.2:
        header[odd_text(random)] = odd_text(random)
    text = repr(header).encode("utf-8", "surrogatepass")
    if random.random() < 0.1:
        text = random.choice(
            (b"[" * 9000, b"(" * 200, b"-" * 9000, b"{}", b"", b"\xff" * 20, b"1+1j", b"__import__('os')")
        )
    if random.random() < 0.1:
        text = damaged(random, text)
    version = random.choice((1, 1, 1, 2, 3, 0, 9))
    length = len(text) if random.random() < 0.9 else random.choice((0, 5, 65535, 2**31))
    size = struct.pack("<H", length & 0xFFFF) if version == 1 else struct.pack("<I", length & 0xFFFFFFFF)
    body = np.arange(8.0).tobytes() if random.random() < 0.7 else random.randbytes(random.choice((0, 1, 64, 300)))
    data = b"\x93NUMPY" + bytes([version, 0]) + size + text + body
    return damaged(random, data) if random.random() < 0.2 else data


def _array(random: Random) -> np.ndarray:
    values = np.array([[random.gauss(0, 1) for _ in range(2)] for _ in range(5)])
    if random.random() < 0.3:
        try:
            values[random.randrange(5), random.randrange(2)] = odd_number(random)
        except (OverflowError, TypeError, ValueError):
            values[0, 0] = np.inf
    return values


def arrays(trial: Trial) -> str:
    """A .npy file: its header changed by value and byte, its type by one that is no number."""
    random, path = trial.random, trial.folder / "a.npy"
    if random.random() < 0.3:
        np.save(path, _array(random))
        path.write_bytes(damaged(random, path.read_bytes(), changes=random.choice((0, 1, 3))))
    else:
        path.write_bytes(_npy(random))
    return _attempt(trial, path)


def archives(trial: Trial) -> str:
    """A .npz archive: members of any name, type and size, packed to nothing, damaged."""
    random, path = trial.random, trial.folder / "a.npz"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "w") as archive:
            for _ in range(random.choice((1, 2, 3))):
                odd = odd_text(random).encode("utf-8", "replace").decode() or "?"
                name = random.choice(("points.npy", "X.npy", "label.npy", "embedding", odd, "points.npy/"))
                method = random.choice((*[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED] * 4, zipfile.ZIP_LZMA))
                choice, content = random.random(), io.BytesIO()
                if choice < 0.3:
                    content.write(_npy(random))
                elif choice < 0.5:
                    shape = (random.choice((10**6, 10**7)), 1)
                    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(content, header)
                    content.write(bytes(8 * 10**6))
                elif choice < 0.6:
                    labels = np.array(["a", "b\0c", "", "\U0001f600", "e"])
                    np.save(content, labels)
                else:
                    np.save(content, _array(random))
                try:
                    archive.writestr(name, content.getvalue(), method)
                except (ValueError, IndexError, struct.error):  # names that no archive takes
                    archive.writestr("points.npy", content.getvalue(), method)
    if random.random() < 0.3:
        path.write_bytes(damaged(random, path.read_bytes()))
    return _attempt(trial, path)


def _column(random: Random, rows: int) -> pa.Array:
    """A column of any type."""
    texts = [odd_text(random).encode("utf-8", "replace").decode() for _ in range(3)]
    flat = [random.gauss(0, 1) for _ in range(rows)]
    choices: list[Any] = [
        lambda: pa.array(flat),
        lambda: pa.array(flat, pa.float32()),
        lambda: pa.array([random.choice((None, 1.5, float("nan"), float("inf"), 1e200, 2.0)) for _ in range(rows)]),
        lambda: pa.array([random.randrange(3) for _ in range(rows)]),
        lambda: pa.array([random.choice((0, 2**63, 2**64 - 1, None)) for _ in range(rows)], pa.uint64()),
        lambda: pa.array([random.choice((True, False, None)) for _ in range(rows)]),
        lambda: pa.array([random.choice(texts) for _ in range(rows)]),
        lambda: pa.array([random.choice((b"\xff\xfe", b"a", b"\xff\xfe", None)) for _ in range(rows)]),
        lambda: pa.array([[1.0, float(row)] for row in range(rows)]),
        lambda: pa.array([[1.0] * random.choice((1, 2)) for row in range(rows)]),
        lambda: pa.array([random.choice((None, [None, 1.0], [2.0, 3.0])) for _ in range(rows)], pa.list_(pa.float64())),
        lambda: pa.array([["a", "1.5"] for _ in range(rows)]),
        lambda: pa.array([[[1.0], [2.0]] for _ in range(rows)]),
        lambda: pa.array([[] for _ in range(rows)], pa.list_(pa.float64())),
        lambda: pa.array([[1, 2]] * rows, pa.list_(pa.int64(), 2)),
        lambda: pa.array([{"x": 1.0} for _ in range(rows)]),
        lambda: pa.array([random.randrange(-(2**62), 2**62) for _ in range(rows)], pa.timestamp("ns", "UTC")),
        lambda: pa.array([random.randrange(10**6) for _ in range(rows)], pa.duration("us")),
        lambda: pa.array([random.randrange(10**4) for _ in range(rows)], pa.date32()),
        lambda: pa.array([random.choice(texts) for _ in range(rows)]).dictionary_encode(),
        lambda: pa.nulls(rows),
        lambda: pa.array(flat).cast(pa.decimal128(30, 10), safe=False),
        lambda: pa.array(flat, pa.float16()) if hasattr(pa, "float16") else pa.array(flat),
    ]
    try:
        return random.choice(choices)()
    except (pa.ArrowException, ValueError, TypeError):
        return pa.array(flat)


def tables(trial: Trial) -> str:
    """A Parquet table: columns of any type and name, lists of all kinds, damaged bytes; at times a folder of parts."""
    random = trial.random
    folder = trial.folder / "parts"
    folder.mkdir()
    parts = random.choice((1, 1, 1, 2))
    names = ["a", "b", "label"]
    for _ in range(random.choice((0, 1, 1))):
        names[random.randrange(3)] = random.choice(("points", "embedding", "key", "a", odd_text(random)))
    for number in range(parts):
        rows = random.choice((0, 1, 5, 5, 5, 40))
        flat = pa.array([random.gauss(0, 1) for _ in range(rows)])
        columns = [_column(random, rows) if random.random() < 0.5 else flat for _ in names]
        path = folder / f"{number}.parquet"
        try:
            pq.write_table(pa.Table.from_arrays(columns, [n.encode("utf-8", "replace").decode() for n in names]), path)
        except (pa.ArrowException, ValueError):
            pq.write_table(pa.table({"a": [1.5, 2.5, 3.5, 4.5]}), path)
        if random.random() < 0.3:
            path.write_bytes(damaged(random, path.read_bytes()))
    return _attempt(trial, folder if parts > 1 or random.random() < 0.1 else folder / "0.parquet")


def _cell(random: Random) -> str:
    return f"{random.gauss(0, 30):.3f}" if random.random() < 0.99 else random.choice(("", "NA", "1e200", "-inf", "<5"))


def _code(random: Random) -> str:
    return random.choice(("0", "1", "2"))


def _odd_cell(random: Random) -> str:
    return random.choice(
        ("", "NA", "<5", "1e400", "nan", "-inf", "x", "1,234", "12", "0x1", "1/2", "2020-01-01", "true")
    )


def texts(trial: Trial) -> str:
    """A CSV file: delimiters, decimal commas, quotes, encodings, rows of other lengths, text among numbers."""
    random, path = trial.random, trial.folder / "a.csv"
    delimiter = random.choice((",", ";", "\t", "|", ";", " "))
    comma = delimiter != "," and random.random() < 0.4
    names = ["a", "b", "label"]
    if random.random() < 0.2:
        names[random.randrange(3)] = random.choice(("", "a", '"q"', '"', odd_text(random)))
    makers = [_cell if random.random() < 0.85 else random.choice((_code, _odd_cell)) for _ in names]
    lines = [delimiter.join(names)]
    for _ in range(random.choice((0, 1, 5, 5, 30, 30))):
        cells = [make(random) for make in makers]
        if random.random() < 0.01:
            cells = [_odd_cell(random)] * random.choice((0, 2, 4, 50))
        lines.append(delimiter.join(cell.replace(".", ",") if comma else cell for cell in cells))
        if random.random() < 0.005:
            lines[-1] += odd_text(random)
    text = random.choice(("\n", "\r\n", "\n", "\r")).join(lines)
    data = text.encode(random.choice((*["utf-8"] * 6, "utf-8-sig", "utf-16")), "surrogatepass")
    path.write_bytes(damaged(random, data) if random.random() < 0.1 else data)
    return _attempt(trial, path)


def _odd_member(random: Random, file: h5py.File, name: str, other: Path) -> None:
    """A member that is not what is expected: a link, virtual or external data, another type or shape."""
    kind = random.randrange(12)
    if kind == 0:
        file[name] = h5py.ExternalLink(str(other), "/secret")
    elif kind == 1:
        file["elsewhere"] = h5py.ExternalLink(str(other), "/")
        file[name] = h5py.SoftLink("/elsewhere/secret")
    elif kind == 2:
        layout = h5py.VirtualLayout(shape=random.choice(((5, 2), (10**9, 50))), dtype="f8")
        layout[0:5, 0:2] = h5py.VirtualSource(str(other), "secret", shape=(5, 2))
        file.create_virtual_dataset(name, layout)
    elif kind == 3:
        file.create_dataset(name, shape=(5, 2), dtype="f8", external=[(str(other), 0, 80)])
    elif kind == 4:
        file.create_dataset(name, shape=random.choice(((10**9, 50), (2**31, 1))), dtype="f8", chunks=(100, 1))
    elif kind == 5:
        file[name] = h5py.Empty("f8")
    elif kind == 6:
        file.create_group(name)
    elif kind == 7:
        file[name] = np.zeros(5, [("a", "f8"), ("b", "S3")])
    elif kind == 8:
        file[name] = np.zeros((5, 2), random.choice((complex, "S4", "i2", "f2", bool, "u8")))
    elif kind == 9:
        file[name] = [
            odd_text(random).encode("utf-8", "replace").replace(b"\0", b"") for _ in range(random.choice((5, 3)))
        ]
    elif kind == 10:
        file[name] = np.zeros(random.choice(((), (0, 2), (5,), (3, 2), (5, 0), (5, 2, 2))))
    else:
        file[name] = h5py.SoftLink(random.choice((f"/{name}", "/nowhere", "/")))


def cells(trial: Trial) -> str:
    """An .h5ad file: links, virtual and external data, short columns, wrong codes, damaged bytes."""
    random, path, other = trial.random, trial.folder / "a.h5ad", trial.folder / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.full((5, 2), SECRET)
    odd = random.choice(
        ("obsm", "obsm/X_pca", "obs", "obs/label", "obs/kind", "obs/kind/codes", "obs/kind/categories", "")
    )
    trial.note(odd)
    with h5py.File(path, "w") as file:
        parts: dict[str, Any] = {
            "obsm/X_pca": _array(random),
            "obs/label": np.arange(random.choice((5, 5, 3))),
            "obs/kind/codes": np.array([0, 1, random.choice((0, -1, -2, 2, 127)), 0, 1], np.int8),
            "obs/kind/categories": ["B", "T"],
        }
        for name, values in parts.items():
            if not odd or not f"{name}/".startswith(f"{odd}/"):
                file[name] = values
        if odd:
            _odd_member(random, file, odd, other)
    if random.random() < 0.1:
        path.write_bytes(damaged(random, path.read_bytes()))
    return _attempt(trial, path)


POINTS = {
    target.name: target
    for target in (
        Target("arrays", arrays),
        Target("archives", archives),
        Target("point-tables", tables),
        Target("point-texts", texts),
        Target("cells", cells),
    )
}
