"""What a calibration is made from: groups as written, files that fit one another, and the table in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from foveate.calibrate.diagnosis import Outputs
from foveate.calibrate.evidence import from_logits
from foveate.calibrate.run import Calibration, Evidence, calibrate, parse_groups
from foveate.calibrate.settings import ModelData
from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate.metrics.calibration import average_logit_gap
from foveate.metrics.class_groups import ClassGroups
from foveate.report.render import tell
from foveate.training.logit_files import write_logits
from naming import raises_naming

NAMES = ["ant", "bee", "cat", "dog"]


def made(seed: int, labels: np.ndarray) -> np.ndarray:
    logits = 2.0 * np.eye(4)[labels] + np.random.default_rng(seed).standard_normal((len(labels), 4))
    logits[:, 2:] -= 3
    return logits


def test_groups_as_people_write_them() -> None:
    groups = parse_groups(["bee", "0"], [], NAMES)
    assert (groups.seen.tolist(), groups.absent.tolist()) == ([0, 1], [2, 3])
    assert parse_groups(["0-1"], ["dog"], NAMES).rest.tolist() == [2]
    with pytest.raises(UserError, match="needs at least one absent class"):
        parse_groups(["0-3"], [], NAMES)


def test_a_file_with_seen_classes_only_is_the_fine_tuning_data(tmp_path: Path) -> None:
    labels = np.array([0, 1, 1, 0])
    path = write_logits(tmp_path / "a.npz", logits=made(0, labels), labels=labels, class_names=NAMES)
    found = from_logits(path, seen=["0-1"])
    assert found.test is None
    assert found.training is not None
    both = np.array([0, 1, 2, 3] * 20)
    test = write_logits(tmp_path / "b.npz", logits=made(1, both), labels=both, class_names=NAMES)
    found = from_logits(test, seen=["0-1"], training=path)
    assert found.test is not None
    assert found.training is not None
    assert len(found.training[1]) == 4
    assert from_logits(test, seen=["0-1"]).training is None


def test_the_result_and_its_table(tmp_path: Path) -> None:
    both = np.array([0, 1, 2, 3] * 50)
    training = np.array([0, 1] * 20)
    evidence = Evidence(
        NAMES,
        ClassGroups.of([0, 1], classes=4),
        (made(0, training), training),
        test=Outputs(made(1, both)),
        labels=both,
    )
    run = RunFolder.create(tmp_path / "run")
    found = calibrate(evidence, run, method="alg")
    assert isinstance(found, Calibration)
    assert found.gamma == pytest.approx(3, abs=0.8)
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == found.result.to_json()
    lines = tell(run.path)
    heads = next(number for number, line in enumerate(lines) if line.startswith("Model "))
    assert lines[heads].split() == ["Model", "gamma", "Y/Y", "S/Y", "U/Y", "S/S", "U/U", "AUSUC"]
    rows = lines[heads + 1 : heads + 1 + len(found.result.rows)]
    assert [line.split("  ")[0] for line in rows] == ["fine-tuned", "+ ALG", "+ gamma* (peeks)"]
    official = calibrate(
        Evidence(NAMES, evidence.groups, test=evidence.test, labels=both), run, method="alg", variant="official"
    )
    assert official.gamma == pytest.approx(found.gamma, abs=1.0)
    with raises_naming(UserError, "--pseudo"):
        calibrate(evidence, run, method="pcv")


def test_official_takes_the_test_data_though_there_are_training_logits(tmp_path: Path) -> None:
    both, training = np.array([0, 1, 2, 3] * 50), np.array([0, 1] * 20)
    groups, test = ClassGroups.of([0, 1], classes=4), made(1, both)
    evidence = Evidence(NAMES, groups, (made(0, training), training), test=Outputs(test), labels=both)
    run = RunFolder.create(tmp_path / "run")
    plain = calibrate(evidence, run, method="alg").gamma
    found = calibrate(evidence, run, method="alg", variant="official")
    official = found.gamma
    (note,) = found.result.notes
    assert "official" in note
    assert plain == average_logit_gap(made(0, training), training, groups)
    assert official == average_logit_gap(test, both, groups, variant="official") != plain
    with raises_naming(UserError, "official"):
        calibrate(Evidence(NAMES, groups, evidence.training), run, method="alg", variant="official")


def test_splits_have_names_by_default() -> None:
    assert ModelData(collection=Path("x"), field="species").train_split == "train"
