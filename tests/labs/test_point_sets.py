"""Sets of the federated studies: found where they are, refused where they are not."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from foveate.core.errors import UserError
from foveate.federated.public_sets import FASHION_IMAGES, FASHION_LABELS
from foveate_labs.studies import point_sets
from naming import raises_naming

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "feca"


def test_the_s_sets_of_a_folder() -> None:
    found = point_sets.find_datasets((GOLDENS,), {point_sets.S_SETS}, "feca")
    assert found == {point_sets.S_SETS: GOLDENS}
    points, labels = point_sets.points_of("s2", folder=Path(), datasets=found, seed=0)
    assert points.shape == (5000, 2)
    assert points.max() < 10
    assert len(np.unique(labels)) == 15
    assert point_sets.present("s2", found)
    assert not point_sets.present("s2", {})
    assert point_sets.present("digits", {})


def test_fashion_is_drawn_by_seed(tmp_path: Path) -> None:
    inside = tmp_path / "usr" / "share" / "datasets" / "fashion-mnist"
    inside.mkdir(parents=True)
    images = bytes([0, 0, 8, 3, *[0, 0, 0, 9], *[0, 0, 0, 1], *[0, 0, 0, 2], *range(18)])
    (inside / FASHION_IMAGES).write_bytes(gzip.compress(images))
    (inside / FASHION_LABELS).write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, *range(9)])))
    datasets = point_sets.find_datasets((tmp_path,), {point_sets.FASHION}, "fedne")
    assert datasets[point_sets.FASHION] == inside
    drawn = [
        point_sets.points_of("fashion", folder=Path(), datasets=datasets, seed=seed, max_points=4) for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(drawn[0][0], drawn[1][0])
    assert drawn[0][1].tolist() != drawn[2][1].tolist()
    for points, labels in drawn:
        np.testing.assert_allclose(points[:, 0] * 255, 2 * labels)


def test_a_folder_with_nothing_of_use_is_refused(tmp_path: Path) -> None:
    with raises_naming(UserError, "feca"):
        point_sets.find_datasets((tmp_path,), set(point_sets.OPTIONAL), "feca")
    with raises_naming(UserError, "deepfeca"):
        point_sets.find_datasets((GOLDENS,), {point_sets.MNIST}, "deepfeca")
