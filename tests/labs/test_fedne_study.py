"""The study `fedne`: its design holds together, its cells measure, its control shuffles; the effects, slow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.core.experiment_grid import Cell
from foveate.federated.messages import Message
from foveate.federated.rounds import Client, Log
from foveate_labs.studies import fedne
from foveate_labs.studies.study import row_values, summary
from naming import raises_naming

TINY = replace(fedne.QUICK, rounds=3, seeds=1)


def test_claims_name_rows_measures_and_conditions_that_exist() -> None:
    design = fedne.DESIGN
    rows, measures = {row.key for row in design.rows}, {one.key for one in design.measures}
    for claim in design.claims:
        assert {claim.better, claim.worse} <= rows
        assert claim.measure in measures
        drawn = fedne.DRAWN.get(claim.condition, tuple(fedne.VARIANTS))
        trained = {row.key: row.trained_as for row in design.rows}
        assert {trained[claim.better], trained[claim.worse]} <= set(drawn)
    assert {row.trained_as for row in design.rows} == set(fedne.VARIANTS)
    assert {condition.key for condition in design.conditions} == set(fedne.WORLDS)


def test_networks_are_trained_on_two_sets_and_mnist_needs_its_package() -> None:
    whole = fedne.STUDY.cells(fedne.FULL, seed=0, datasets=fedne.USED)
    assert len(whole) == len(set(whole)) == 5 * (11 + 10 + 6 + 5 + 4 + 4 + 10 + 8)
    assert [cell.seed for cell in whole if (cell.condition, cell.variant) != (fedne.MNIST, "network")] == sorted(
        cell.seed for cell in whole if (cell.condition, cell.variant) != (fedne.MNIST, "network")
    )
    assert {cell.condition for cell in whole if cell.variant == "network"} == {fedne.SHARDS, fedne.MNIST}
    without = fedne.STUDY.cells(fedne.FULL, seed=0, datasets=())
    assert fedne.MNIST not in {cell.condition for cell in without}
    assert fedne.STUDY.identity(fedne.FULL, datasets=()) == fedne.STUDY.identity(fedne.QUICK, datasets=("mnist",))
    with raises_naming(UserError, "fedne"):
        fedne.STUDY.find_datasets((Path("x"),))


@pytest.mark.parametrize("variant", fedne.QUICK.variants)
def test_a_cell_measures(variant: str, tmp_path: Path) -> None:
    study = fedne.STUDY(tmp_path, TINY, {})
    study.prepare()
    found = study.measure(Cell(0, fedne.SHARDS, variant))
    assert {"knn", "trustworthiness", "continuity", "hit", "distances", "megabytes"} <= set(found)
    assert 0 < found["foreign"] < 1
    assert ("r2" in found) == (variant in ("grid", "exact", "shuffled"))
    assert (found["megabytes"] > 0) == (variant not in ("local", "global"))
    done = {Cell(0, fedne.SHARDS, variant): found}
    assert summary(fedne.DESIGN, row_values(fedne.ROWS, done.items()))["table"]


def test_the_control_has_the_same_values_in_another_order() -> None:
    seen: list[np.ndarray] = []

    def handler(data: object, request: Message, client: int) -> Message:
        seen.append(request.array("field"))
        return request.answer(points=1)

    from foveate.federated.messages import MessageRule

    exchange = fedne.shuffling(0)([Client(0, None, {"train": handler})], Log())
    field = np.arange(50.0)
    rule = MessageRule("train", values={"points": int})
    exchange.ask({0: Message("train", 3, {"field": field})}, rule)
    exchange.ask({0: Message("train", 3, {"field": field})}, rule)
    assert sorted(seen[0].tolist()) == field.tolist()
    assert not (seen[0] == field).all()
    assert (seen[0] == seen[1]).all()


@pytest.mark.slow
def test_images_are_points_with_categories(tmp_path: Path) -> None:
    from foveate.federated.sources import read_points
    from foveate_labs.studies.image_features import LENGTH, write_image_features

    write_image_features(tmp_path / "images.npz")
    found = read_points(tmp_path / "images.npz")
    assert found.points_ND.shape[1] == 432
    assert np.linalg.norm(found.points_ND, axis=1) == pytest.approx(LENGTH, rel=1e-5)
    assert len(set(found.column("label", "column"))) == 7
