"""Files of logits in every format: the same content gives the same arrays, and nothing that is pickled runs."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from foveate.calibrate.evidence import from_logits
from foveate.core.errors import UserError
from foveate.training.logit_files import FORMATS, read_logits, write_logits
from naming import raises_naming

NAMES = ["ant", "bee", "cat", "dog"]
LABELS = np.array([0, 1, 3, 2, 1, 0])
LOGITS = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
TEXTS = [NAMES[label] for label in LABELS]


def write(path: Path, *, texts: bool = True) -> Path:
    """Write the same logits in the format of the ending; labels as texts where the format has them."""
    labels = TEXTS if texts else LABELS.tolist()
    columns = {name: LOGITS[:, number] for number, name in enumerate(NAMES)}
    if path.suffix == ".npz":
        np.savez(path, logits=LOGITS, labels=labels, class_names=NAMES)
    elif path.suffix in (".csv", ".tsv"):
        comma = "," if path.suffix == ".csv" else "\t"
        lines = [comma.join(["label", *NAMES])]
        lines += [comma.join([str(label), *map(repr, row.tolist())]) for label, row in zip(labels, LOGITS, strict=True)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"label": labels, **columns}), path)
    elif path.suffix == ".npy":
        np.save(path, LOGITS)
        (path.with_name(f"{path.stem}-labels.txt")).write_text("\n".join(map(str, labels)) + "\n")
        (path.parent / "class_names.txt").write_text("\n".join(NAMES) + "\n")
    elif path.suffix == ".safetensors":
        tensors = {"logits": torch.from_numpy(LOGITS), "labels": torch.from_numpy(LABELS)}
        save_file(tensors, path, metadata={"class_names": json.dumps(NAMES)})
    else:
        torch.save({"logits": torch.from_numpy(LOGITS), "labels": labels, "class_names": NAMES}, path)
    return path


@pytest.mark.parametrize("texts", [True, False])
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same(suffix: str, texts: bool, tmp_path: Path) -> None:
    file = read_logits(write(tmp_path / f"a{suffix}", texts=texts))
    np.testing.assert_allclose(file.logits, LOGITS, rtol=1e-6)
    np.testing.assert_array_equal(file.labels, LABELS)
    assert file.class_names == NAMES


def test_labels_as_bytes_and_as_whole_floats(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", logits=LOGITS, labels=np.array(TEXTS, dtype="S"), class_names=NAMES)
    np.testing.assert_array_equal(read_logits(tmp_path / "a.npz").labels, LABELS)
    np.savez(tmp_path / "b.npz", logits=LOGITS, labels=LABELS.astype(float))
    np.testing.assert_array_equal(read_logits(tmp_path / "b.npz").labels, LABELS)
    np.savez(tmp_path / "c.npz", logits=LOGITS, labels=LABELS + 0.5)
    with raises_naming(UserError, "c.npz", "labels", "float64"):
        read_logits(tmp_path / "c.npz")


def test_columns_that_are_named_by_numbers(tmp_path: Path) -> None:
    """With columns 9, 3 and 7 a label 7 means the class of that name, not the eighth column."""
    (tmp_path / "a.csv").write_text("9,3,7,label\n1.0,2.0,3.0,7\n0.0,1.0,0.5,9\n")
    file = read_logits(tmp_path / "a.csv")
    assert (file.class_names, file.labels.tolist()) == (["9", "3", "7"], [2, 0])


def test_columns_that_are_no_class(tmp_path: Path) -> None:
    rows = "0,a.png,1.5,-2.0,bee,0.1,0.2\n1,b.png,0.5,1.0,ant,0.3,0.4\n"
    (tmp_path / "a.csv").write_text(f",image,ant,bee,label,feature_0,feature_1\n{rows}")
    file = read_logits(tmp_path / "a.csv")
    assert (file.class_names, file.labels.tolist()) == (["ant", "bee"], [1, 0])
    assert file.features is not None
    np.testing.assert_allclose(file.features, [[0.1, 0.2], [0.3, 0.4]])
    (note,) = file.notes
    assert "image" in note
    # With the prefix everything else is left out, probabilities too.
    (tmp_path / "b.csv").write_text("logit_ant,logit_bee,p_ant,label\n1.5,-2.0,0.9,bee\n")
    file = read_logits(tmp_path / "b.csv")
    assert file.class_names == ["ant", "bee"]
    assert "p_ant" in file.notes[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ant,bee\n1,2\n", ("label",)),
        ("ant,bee,lable\n1,2,0\n", ("label", "lable")),
        ("ant,ant,label\n1,2,0\n", ("ant", "twice")),
        ("ant,bee,note,label\n1,2,good,ant\n", ("note", "good")),
        ("ant,bee,label\n", ("row",)),
        ("ant,bee,label\n1,2,\n3,4,\n", ("label", "2")),
        ("label\nant\n", ("label",)),
        ("ant,bee,label\n1,2,cat\n", ("cat", "2")),
        ("ant,bee,label\n1,2\n", ("2",)),
        ('ant,bee,label\n1,2,"ant\n3,4,bee\n', ("a.csv",)),
        ("", ("a.csv",)),
    ],
)
def test_bad_tables_name_the_column(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with raises_naming(UserError, "a.csv", *words):
        read_logits(tmp_path / "a.csv")


def test_an_empty_cell_is_named_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("ant,bee,label\n1,2,ant\n,4,bee\n")
    with raises_naming(UserError, "a.csv", "row 1"):
        from_logits(tmp_path / "a.csv", seen=["ant"])


class Command:
    """An object whose unpickling would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pickled_objects_never_run(tmp_path: Path) -> None:
    torch.save({"logits": torch.zeros(2, 2), "labels": Command(tmp_path / "ran")}, tmp_path / "a.pt")
    with raises_naming(UserError, "a.pt"):
        read_logits(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"PK\x03\x04 nothing", b"\xff\xfe\xfd,\n\n", b"\x93NUMPY\x01\x00"]
)
def test_broken_files_are_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    (tmp_path / "a-labels.txt").write_text("0\n")
    with raises_naming(UserError, path.name):
        read_logits(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_files_are_read_or_refused(suffix: str, tmp_path: Path) -> None:
    """Some damage hits padding or a digit of a logit; nothing else than logits or a UserError may come of the rest."""
    random = Random(suffix)
    path = write(tmp_path / f"a{suffix}")
    whole = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(random.choice((1, 2, 8))):
            position = random.randrange(len(damaged))
            if random.random() < 0.7:
                damaged[position] = random.randrange(256)
            else:
                del damaged[position : position + random.randrange(1, 20)]
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            assert read_logits(path).classes > 0


def test_pytorch_files_of_other_content(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save((torch.from_numpy(LOGITS).bfloat16().requires_grad_(), torch.from_numpy(LABELS)), path)
    file = read_logits(path)
    np.testing.assert_allclose(file.logits, LOGITS, rtol=1e-2)
    np.testing.assert_array_equal(file.labels, LABELS)
    torch.save(torch.zeros(2, 2), path)
    with raises_naming(UserError, "a.pt", "Tensor", "labels"):
        read_logits(path)
    torch.save({"logits": torch.zeros(2, 2).to_sparse(), "labels": [0, 1]}, path)
    with raises_naming(UserError, "a.pt", "logits"):
        read_logits(path)


def test_bfloat16_of_safetensors(tmp_path: Path) -> None:
    tensors = {"logits": torch.from_numpy(LOGITS).bfloat16(), "labels": torch.from_numpy(LABELS)}
    save_file(tensors, tmp_path / "a.safetensors")
    np.testing.assert_allclose(read_logits(tmp_path / "a.safetensors").logits, LOGITS, rtol=1e-2)
    save_file(tensors, tmp_path / "a.safetensors", metadata={"class_names": "ant, bee"})
    with raises_naming(UserError, "a.safetensors", "class_names"):
        read_logits(tmp_path / "a.safetensors")


def test_a_header_that_promises_too_much_takes_no_memory(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 10), }"
    header += b" " * (64 - (len(header) + 11) % 64) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with raises_naming(UserError, "a.npy"):
        read_logits(tmp_path / "a.npy")


def test_the_labels_of_an_npy_file(tmp_path: Path) -> None:
    np.save(tmp_path / "test-logits.npy", LOGITS)
    with raises_naming(UserError, "test-logits.npy", "test-labels.npy", "test-labels.txt"):
        read_logits(tmp_path / "test-logits.npy")
    np.save(tmp_path / "test-labels.npy", LABELS)
    np.testing.assert_array_equal(read_logits(tmp_path / "test-logits.npy").labels, LABELS)


def test_seen_classes_are_those_of_the_training_file(tmp_path: Path) -> None:
    test = write(tmp_path / "test.csv")
    seen = np.array([1, 3, 3, 1])
    training = write_logits(tmp_path / "training.npz", logits=LOGITS[:4], labels=seen, class_names=NAMES)
    evidence = from_logits(test, training=training)
    assert (evidence.groups.seen.tolist(), evidence.groups.absent.tolist()) == ([1, 3], [0, 2])
    assert any("2 of 4" in note and "training.npz" in note for note in evidence.notes)
    explicit = from_logits(test, seen=["bee", "dog"], training=training)
    assert explicit.groups.seen.tolist() == [1, 3]
    assert from_logits(test, absent=["cat"], training=training).groups.rest.tolist() == [0]
    with raises_naming(UserError, "--classes-seen", "--training"):
        from_logits(test)
    everything = write_logits(tmp_path / "all.npz", logits=LOGITS, labels=LABELS, class_names=NAMES)
    with raises_naming(UserError, "4"):
        from_logits(test, training=everything)


def test_features_in_files_are_named_as_unused(tmp_path: Path) -> None:
    more = {"features": np.ones((len(LABELS), 3))}
    test = write_logits(tmp_path / "test.npz", logits=LOGITS, labels=LABELS, class_names=NAMES)
    assert not any("features" in note for note in from_logits(test, seen=["ant"]).notes)
    np.savez(tmp_path / "more.npz", logits=LOGITS, labels=LABELS, class_names=NAMES, **more)
    notes = from_logits(tmp_path / "more.npz", seen=["ant"]).notes
    assert any("features are not used" in note and "--collection" in note for note in notes)


def test_names_of_the_first_file_serve_the_others(tmp_path: Path) -> None:
    """Fine-tuning data with texts as labels need no class names of their own."""
    np.savez(tmp_path / "training.npz", logits=LOGITS[:3], labels=["bee", "ant", "bee"])
    evidence = from_logits(write(tmp_path / "test.parquet"), training=tmp_path / "training.npz")
    assert evidence.groups.seen.tolist() == [0, 1]
    np.savez(tmp_path / "test.npz", logits=LOGITS, labels=TEXTS)
    with raises_naming(UserError, "test.npz", "class_names", "ant"):
        from_logits(tmp_path / "test.npz", training=tmp_path / "training.npz")
    evidence = from_logits(tmp_path / "test.npz", training=tmp_path / "training.npz", class_names=NAMES)
    assert evidence.groups.absent.tolist() == [2, 3]
