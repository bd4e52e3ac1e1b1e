"""The study `cosmo`: worlds keep their parts apart, and every part runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.experiment_grid import Cell
from foveate.report import render
from foveate_labs.studies import cosmo, cosmo_encoder, cosmo_measures
from foveate_labs.studies.cosmo_worlds import EXACT, TrapWorld, list_frames, open_world
from foveate_labs.studies.published import write_published
from foveate_labs.studies.runner import run_study
from foveate_labs.worlds.traps.kinds import KINDS

# Few cameras: each has a landscape of its own, which takes longest.
FEW_CAMERAS = cosmo.SETTINGS[cosmo.TRAPS].model_copy(update={"train_cameras": 4, "test_cameras": 2})
TINY = cosmo.CosmoScale(train=60, held_out=20, test=24, dim=8, passes=3, seeds=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TrapWorld:
    folder = tmp_path_factory.mktemp("world")
    return open_world(folder, FEW_CAMERAS, 0, views=[EXACT], train=60, held_out=20, test=24)


def test_parts_of_a_world_share_no_event_and_tests_no_camera(world: TrapWorld) -> None:
    train, held_out = (set(map(tuple, part.places_N2.tolist())) for part in (world.train, world.held_out))
    test = set(map(tuple, world.test.places_N2.tolist()))
    assert not test & (train | held_out)
    assert held_out & train
    frames = list_frames(world.world, "train", 80)
    last = frames[59].event.id
    assert len(world.held_out) <= 20 - sum(frame.event.id == last for frame in frames[60:])
    assert not world.train.unseen_N.any()
    assert world.test.unseen_N.any()
    shuffled = [world.shuffled_taxa.parents[world.shuffled_taxa.index(kind.taxon_id)] for kind in KINDS]
    right = [world.taxa.parents[world.taxa.index(kind.taxon_id)] for kind in KINDS]
    assert np.mean(np.array(shuffled) == right) < 0.3


def test_a_world_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: TrapWorld) -> None:
    from foveate_labs.studies import cosmo_worlds

    sizes = {"train": 4, "held_out": 2, "test": 2}
    first = open_world(tmp_path, FEW_CAMERAS, 0, views=[EXACT], **sizes)
    monkeypatch.setattr(cosmo_worlds, "_encode", lambda *arguments: pytest.fail("encoded again"))
    second = open_world(tmp_path, FEW_CAMERAS, 0, views=[EXACT], **sizes)
    np.testing.assert_array_equal(first.train.features_VNF, second.train.features_VNF)
    # bfloat16 sums depend on the batch: near, not equal.
    np.testing.assert_allclose(first.train.features_VNF, world.train.features_VNF[:, : len(first.train)], atol=0.05)


def test_lists_and_decisions_count_what_is_right(world: TrapWorld) -> None:
    right_NK = np.eye(len(KINDS))[world.test.kinds_N]
    assert cosmo_measures._decide_by_lists(world, world.test, right_NK)["accuracy"] > 0.8
    assert cosmo_measures._decide_by_lists(world, world.test, right_NK[::-1])["accuracy"] < 0.8
    order_P = cosmo_measures._derange(9, np.random.default_rng(0))
    assert sorted(order_P.tolist()) == list(range(9))
    assert (order_P != np.arange(9)).all()
    ranks = {f"camera {n}": 0.2 for n in range(8)}
    scored = cosmo_measures._score_hints(ranks, dict.fromkeys(ranks, 0.9), "1h", 0)
    assert scored == {"hints/auc_1h": 1, "hints/precision_1h": 1}


def test_hints_are_measured_at_cameras_with_enough_images(world: TrapWorld) -> None:
    values = cosmo_measures.measure_hints(world, dim=8, passes=3, seed=0)
    assert {"hints/auc_1h", "hints/precision_1h"} <= set(values)
    assert all(0 <= value <= 1 for value in values.values())


def test_contexts_train_the_encoder_of_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cosmo_encoder.SETTINGS, cosmo.TRAPS, FEW_CAMERAS)
    scale = cosmo_encoder.EncoderScale(train=8, held_out=4, test=24, dim=8, passes=3, seeds=1)
    study = cosmo_encoder.CosmoEncoderStudy(tmp_path, scale)
    frozen, trained = (study.measure(Cell(0, cosmo.TRAPS, name)) for name in (cosmo_encoder.FROZEN, "all"))
    assert {"accuracy", "held_out"} <= frozen.keys() & trained.keys()
    assert {"place_loss", "time_loss"} <= trained.keys() - frozen.keys()
    world = open_world(
        tmp_path / "worlds" / "traps-0", FEW_CAMERAS, 0, views=[EXACT], train=8, held_out=4, test=24,
        train_last_stages=True,
    )  # fmt: skip
    # Maps of 10 x 10 positions at stride 16, and the vectors of both of the encoder's maps.
    assert world.train.features_VNF.shape[2] == 10 * 10 * 112
    assert cosmo_encoder.freeze(world).train.features_VNF.shape[2] == 112 + 320


@pytest.mark.slow
def test_all_parts_run_and_make_a_page(tmp_path: Path) -> None:
    command = ["foveate", "study", "cosmo"]
    result: dict[str, Any] = run_study("cosmo", tmp_path / "study", scale=TINY, command=command)
    entries = {(entry["condition"], entry["row"]) for entry in result["table"]}
    assert entries == {
        (condition, row.key)
        for condition, variants in cosmo.VARIANTS.items()
        for row in cosmo.ROWS
        if row.trained_as in variants and not (condition == cosmo.BARE and not row.key.startswith("whole"))
    }
    assert "The prior of place raises accuracy" in render(tmp_path / "study").read_text(encoding="utf-8")
    write_published(result, tmp_path / "data")


def test_the_encoder_is_trained_or_frozen_in_the_same_world(tmp_path: Path) -> None:
    """Untrained, the last stages give the vectors of the frozen network; training changes what is decided."""
    world = open_world(tmp_path, FEW_CAMERAS, 0, views=[EXACT], train=16, held_out=4, test=4, train_last_stages=True)
    assert world.encoder is not None
    frozen = cosmo_encoder.freeze(world)
    assert frozen.encoder is None
    maps_NF = torch.from_numpy(world.train.features_VNF[0])
    with torch.no_grad():
        expected_NF = world.encoder.image_vectors(maps_NF)
    np.testing.assert_allclose(frozen.train.features_VNF[0], expected_NF.numpy(), rtol=1e-4, atol=1e-5)
    arms = ("none", "place")
    sizes = {"dim": 8, "passes": 1, "seed": 0}
    for name in arms:
        values = cosmo_measures.measure_arm(world, cosmo_measures.ARMS[name], **sizes)
        assert 0 <= values["accuracy"] <= 1
        assert ("place_loss" in values) == (name == "place")
    assert cosmo_encoder.CosmoEncoderStudy.variants == ("frozen", *cosmo_encoder.TRAINED)
