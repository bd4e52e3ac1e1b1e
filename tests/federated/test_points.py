"""Columns of points: what each reader says of names and types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foveate.federated.points import Feature
from foveate.federated.sources import gather, read_points


def test_a_table_names_its_columns_and_a_matrix_does_not(tmp_path: Path) -> None:
    table = pa.table({"bmi": [20.0, 21.5], "ward": ["a", "b"], "age": [40.0, 50.5]})
    pq.write_table(table, tmp_path / "t.parquet")
    read = read_points(tmp_path / "t.parquet")
    assert read.features == (Feature("bmi"), Feature("age"))
    np.save(tmp_path / "m.npy", np.zeros((3, 2)))
    assert read_points(tmp_path / "m.npy").features == (Feature(), Feature())


def test_every_client_has_its_columns(tmp_path: Path) -> None:
    for name, columns in (("north", ("age", "bmi")), ("south", ("bmi", "age"))):
        pq.write_table(pa.table({column: [1.5, 2.5, 3.5] for column in columns}), tmp_path / f"{name}.parquet")
    clients = gather([tmp_path / "north.parquet", tmp_path / "south.parquet"], align_columns=True)
    assert clients.features == [(Feature("age"), Feature("bmi"))] * 2
    split = gather([tmp_path / "north.parquet"], split="even", clients=2)
    assert split.features == [(Feature("age"), Feature("bmi"))] * 2
