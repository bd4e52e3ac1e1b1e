"""The study `deepfeca`: its design holds together, cells measure every row, its control trains to other centers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.core.experiment_grid import Cell
from foveate.federated.deep.encoder import build_network, flatten_weights, prepare_samples
from foveate.federated.deep.job import DeepJob, make_handlers
from foveate.federated.deep.options import METHODS, read_options
from foveate.federated.deep.protocol import EMBEDDED, TRAIN, train_request
from foveate_labs.studies import deepfeca
from foveate_labs.studies.study import row_values, summary
from naming import raises_naming


def test_claims_name_rows_measures_and_conditions_that_exist() -> None:
    design = deepfeca.DESIGN
    rows, measures = {row.key for row in design.rows}, {one.key for one in design.measures}
    for claim in design.claims:
        assert {claim.better, claim.worse} <= rows
        assert claim.measure in measures
        assert claim.condition in deepfeca.WORLDS
    assert {row.trained_as for row in design.rows} == set(deepfeca.VARIANTS)
    assert set(deepfeca.VARIANTS.values()) - {""} == set(METHODS)
    assert set(deepfeca.QUICK.conditions) <= set(deepfeca.WORLDS) == {one.key for one in design.conditions}
    assert {world[0] for world in deepfeca.WORLDS.values()} == set(deepfeca.ENCODERS) == set(deepfeca.SETS)
    assert sum(claim.asserted for claim in design.claims) == 3
    for options in deepfeca.ENCODERS.values():
        read_options({"clusters": 10, **options})


def test_mnist_needs_its_package_and_identity_keeps_finished_cells() -> None:
    whole, without = (deepfeca.STUDY.cells(deepfeca.FULL, seed=0, datasets=datasets) for datasets in (("mnist",), ()))
    assert len(whole) == 5 * 8 * 6
    assert len(without) == 5 * 7 * 6
    assert deepfeca.STUDY.identity(deepfeca.FULL, datasets=()) == deepfeca.STUDY.identity(
        deepfeca.QUICK, datasets=("mnist",)
    )
    other = replace(deepfeca.FULL, rounds=3)
    assert deepfeca.STUDY.identity(other, datasets=()) != deepfeca.STUDY.identity(deepfeca.FULL, datasets=())
    with raises_naming(UserError, "deepfeca"):
        deepfeca.STUDY.find_datasets((Path("x"),))


@pytest.mark.slow
def test_cells_measure_every_row(tmp_path: Path) -> None:
    scale = replace(deepfeca.QUICK, rounds=1, seeds=1, conditions=("digits-some",))
    study = deepfeca.STUDY(tmp_path, scale, {})
    study.prepare()
    done = [(cell, study.measure(cell)) for cell in deepfeca.STUDY.cells(scale, seed=0, datasets=())]
    found = row_values(deepfeca.ROWS, done)
    for row in deepfeca.ROWS:
        values = found["digits-some", row.key][0]
        assert set(values) == {"nmi", "ari", "purity", "knn", "probe", "megabytes"}
        assert 0.5 < values["probe"] <= 1
    megabytes = {row.key: found["digits-some", row.key][0]["megabytes"] for row in deepfeca.ROWS}
    assert megabytes["central"] == 0
    assert (
        megabytes["raw"] < megabytes["untrained"] < megabytes["deepfeca"] == megabytes["local"] == megabytes["shuffled"]
    )
    distinct = {found["digits-some", row.key][0]["nmi"] for row in deepfeca.ROWS}
    assert len(distinct) == len(deepfeca.ROWS), "no two rows are the same training"
    assert summary(deepfeca.DESIGN, found)["table"]


def test_the_network_of_images_is_trained(tmp_path: Path) -> None:
    scale = replace(deepfeca.QUICK, rounds=1, seeds=1, conditions=("drawn-few",))
    values = deepfeca.STUDY(tmp_path, scale, {}).measure(Cell(0, "drawn-few", "deepfeca"))
    assert values["megabytes"] > 10


def test_the_control_pulls_groups_to_other_centers_at_each_client() -> None:
    options = read_options({"clusters": 3, "width": 8, "learning_rate": 0.5, "local_epochs": 20})
    random = np.random.default_rng(0)
    points = random.normal(size=(60, 4)) + 4 * np.eye(4)[:3][np.arange(60) % 3]
    network = build_network(options, 4)
    start = flatten_weights(network)
    centers = np.eye(8)[:3]
    samples = prepare_samples(points, options)
    request = train_request(start, centers, DeepJob(options).rounds.training, 0, 0)
    trained = {
        (name, client): make(network, options)[TRAIN](samples, request, client)
        for name, make in (("right", make_handlers), ("astray", deepfeca.shuffling))
        for client in range(6)
    }
    assert set(deepfeca.shuffling(network, options)) == {EMBEDDED, TRAIN}
    orders = {tuple(deepfeca.order_of(0, client, 3)) for client in range(6)}
    assert len(orders) > 1, "clients disagree"
    for client in range(6):
        moved = (trained["right", client].array("weights") != trained["astray", client].array("weights")).any()
        assert moved == (tuple(deepfeca.order_of(0, client, 3)) != (0, 1, 2))
    np.testing.assert_array_equal(
        deepfeca.shuffling(network, options)[TRAIN](samples, request, 1).array("weights"),
        trained["astray", 1].array("weights"),
    )
