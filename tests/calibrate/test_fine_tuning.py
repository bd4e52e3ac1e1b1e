"""Fine-tuning with safe rates, pseudo runs on a model, and, slow, the effect on the glyph world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from foveate.calibrate.diagnosis import Outputs, diagnose
from foveate.calibrate.estimator import Calibrator
from foveate.calibrate.fine_tuning import fine_tune, head_weights, make_pseudo_runs, parameter_rules, predict_classifier
from foveate.calibrate.settings import FineTuneSettings
from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate.metrics.calibration import average_logit_gap, group_accuracies
from foveate.metrics.class_groups import ClassGroups
from foveate.metrics.nearest_mean import head_changes
from foveate.metrics.tradeoff import ausuc
from foveate.training.classification import ClassificationTask, LabeledImages, array_images
from foveate.training.optimizer import parameter_table
from foveate.training.settings import TrainingSettings
from foveate.vision.classifier import Classifier
from foveate_labs.studies.calibration_worlds import glyph_network
from foveate_labs.worlds.builtin import CLASSES, load_glyphs
from naming import raises_naming

CHECKPOINT = Path(__file__).parents[1] / "goldens" / "calibration" / "glyph_pretrained.safetensors"
NAMES = [str(number) for number in range(6)]


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU())
        self.head = nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def toy(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(Toy(), head_name="head", names=NAMES).eval()


def toy_samples(count: int = 96, *, spoiled: tuple[int, ...] = ()) -> LabeledImages:
    random = np.random.default_rng(0)
    labels = np.arange(count) % 6
    centers = 2 * random.standard_normal((6, 8))
    values = centers[labels] + random.standard_normal((count, 8))
    values[np.isin(labels, spoiled)] = 1e6
    return array_images(values, labels)


QUICK = FineTuneSettings(epochs=3, batch_size=16, learning_rate=0.05, workers=0)


def test_the_head_is_fast_the_rest_slow_and_all_decay() -> None:
    table = parameter_table(
        ClassificationTask(toy()),
        rules=parameter_rules(toy(), QUICK),
        settings=TrainingSettings(steps=1, batch_size=1, learning_rate=1.0),
    )
    rates = {row.name: row.learning_rate_scale for row in table}
    assert rates["model.network.head.bias"] == 1
    assert rates["model.network.body.0.weight"] == 0.1
    assert {row.weight_decay for row in table} == {QUICK.weight_decay}
    frozen = QUICK.model_copy(update={"backbone_rate": 0.0})
    rules = parameter_rules(toy(), frozen)
    assert [rule.frozen for rule in rules] == [False, True]


def test_the_copy_learns_and_the_original_stays(tmp_path: Path) -> None:
    before, samples = toy(), toy_samples()
    untouched = {name: value.clone() for name, value in before.state_dict().items()}
    after = fine_tune(before, samples, QUICK, tmp_path / "run")
    for name, value in before.state_dict().items():
        assert torch.equal(value, untouched[name])
    first, last = (predict_classifier(model, samples) for model in (before, after))
    assert (last.logits.argmax(1) == last.labels).mean() > (first.logits.argmax(1) == first.labels).mean() + 0.3
    assert not np.array_equal(head_weights(before), head_weights(after))
    again = fine_tune(before, samples, QUICK, tmp_path / "again")
    for name, value in after.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    with pytest.raises(UserError, match="another recipe"):
        fine_tune(before, samples, QUICK.model_copy(update={"learning_rate": 0.1}), tmp_path / "run")
    with pytest.raises(UserError, match="at least one sample"):
        fine_tune(before, samples, QUICK, tmp_path / "none", rows=np.zeros(0, dtype=np.int64))


def test_patience_needs_validation_images_and_ends_early(tmp_path: Path) -> None:
    samples = toy_samples()
    patient = FineTuneSettings(
        steps=20, batch_size=16, learning_rate=1e-12, workers=0, evaluate_every=2, monitor="loss", patience=2
    )
    with raises_naming(UserError, "evaluate_every", "validation"):
        fine_tune(toy(), samples, patient, tmp_path / "none")
    rows = samples.labeled_rows()
    fine_tune(toy(), samples, patient, tmp_path / "run", rows=rows[:72], validation=rows[72:])
    evaluations = [row for row in RunFolder(tmp_path / "run").read_metrics() if "eval_loss" in row]
    # Rounding may let the loss fall once more; far from the twenty steps in any case.
    assert 3 <= len(evaluations) <= 5


def test_fine_tuning_is_varied_as_declared(tmp_path: Path) -> None:
    samples, weights = toy_samples(), {}
    for name, more in (("plain", {}), ("mixed", {"mixup": 0.4}), ("smooth", {"label_smoothing": 0.2}),
                       ("balanced", {"balanced": True}), ("again", {"mixup": 0.4})):  # fmt: skip
        tuned = fine_tune(toy(), samples, QUICK.model_copy(update=more), tmp_path / name)
        weights[name] = head_weights(tuned)
    np.testing.assert_array_equal(weights["mixed"], weights["again"])
    for name in ("mixed", "smooth", "balanced"):
        assert not np.array_equal(weights[name], weights["plain"]), name


def test_a_frozen_backbone_stays(tmp_path: Path) -> None:
    before = toy()
    after = fine_tune(before, toy_samples(), QUICK.model_copy(update={"backbone_rate": 0.0}), tmp_path)
    assert torch.equal(before.network.body[0].weight, after.network.body[0].weight)
    assert not torch.equal(before.head.weight, after.head.weight)


def test_a_frozen_backbone_keeps_its_features(tmp_path: Path) -> None:
    """Batch norms update no statistics and nothing is dropped, also after an evaluation in between."""
    before, samples = toy(), toy_samples()
    before.network.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5))
    before.eval()
    settings = QUICK.model_copy(update={"backbone_rate": 0.0, "evaluate_every": 4})
    after = fine_tune(before, samples, settings, tmp_path / "run", validation=samples.labeled_rows()[:12])
    assert torch.equal(before.network.body[1].running_mean, after.network.body[1].running_mean)
    first, last = (predict_classifier(model, samples).features for model in (before, after))
    np.testing.assert_array_equal(first, last)
    assert not torch.equal(before.head.weight, after.head.weight)
    tuned = fine_tune(before, samples, QUICK, tmp_path / "tuned")
    assert not torch.equal(before.network.body[1].running_mean, tuned.network.body[1].running_mean)


def test_pseudo_runs_see_nothing_of_absent_classes(tmp_path: Path) -> None:
    seen = np.array([0, 2, 3, 5])
    before, samples = toy(), toy_samples()
    runs = make_pseudo_runs(before, samples, seen, QUICK, tmp_path / "one", count=2)
    # Samples of absent classes become garbage: nothing changes.
    spoiled = toy_samples(spoiled=(1, 4))
    others = make_pseudo_runs(before, spoiled, seen, QUICK, tmp_path / "two", count=2)
    for run, other in zip(runs, others, strict=True):
        np.testing.assert_array_equal(run.logits, other.logits)
        assert sorted([*run.seen, *run.absent]) == seen.tolist()
        assert set(run.labels.tolist()) <= set(seen.tolist())
        source = predict_classifier(before, samples, np.flatnonzero(np.isin(samples.labels_N, seen))).logits
        np.testing.assert_array_equal(run.source_logits, source)
    assert not np.array_equal(runs[0].seen, runs[1].seen)
    # Finished runs are read again.
    place = tmp_path / "one" / "pseudo-0.npz"
    stamp = place.stat().st_mtime_ns
    make_pseudo_runs(toy(1), samples, seen, QUICK, tmp_path / "one", count=2)
    assert place.stat().st_mtime_ns == stamp
    with raises_naming(UserError, tmp_path / "one" / "pseudo-0.npz"):
        make_pseudo_runs(before, samples, seen, QUICK, tmp_path / "one", count=2, seed=5)
    with raises_naming(UserError, "5", "1"):
        make_pseudo_runs(
            before, array_images(np.zeros((4, 8)), np.array([0, 2, 3, 1])), seen, QUICK, tmp_path / "three"
        )


class GlyphWorld:
    """The stored pre-trained network and its target images: 60 a class to tune on, 60 others to test on."""

    def __init__(self) -> None:
        network = glyph_network()
        network.load_state_dict(load_file(CHECKPOINT))
        self.before = Classifier(network, head_name="head", names=CLASSES).eval()
        drawn = {name: load_glyphs("target", name, per_class=60) for name in ("train", "test")}
        self.train, self.test = (array_images(one.images, one.labels) for one in drawn.values())

    def groups(self, seed: int) -> ClassGroups:
        return ClassGroups.of(np.sort(np.random.default_rng(seed).permutation(36)[:18]), classes=36)

    def tuned(self, settings: FineTuneSettings, place: Path) -> Classifier:
        rows = np.flatnonzero(np.isin(self.train.labels_N, self.groups(settings.seed).seen))
        return fine_tune(self.before, self.train, settings, place, rows=rows)


def check_effect(world: GlyphWorld, seed: int, place: Path, *, pseudo_runs: int) -> float:
    """Asserts the specification's thresholds on one split; gives by how much U/U rose."""
    before, train, test, groups = world.before, world.train, world.test, world.groups(seed)
    rows = np.flatnonzero(np.isin(train.labels_N, groups.seen))
    settings = FineTuneSettings(learning_rate=0.01, seed=seed, workers=0)
    after = world.tuned(settings, place / "tuned")
    tuned, tested = predict_classifier(after, train), predict_classifier(after, test)
    source, shown = predict_classifier(before, train), predict_classifier(before, test)
    fitted = tuned.logits[rows], tuned.labels[rows], groups.seen
    runs = make_pseudo_runs(before, train, groups.seen, settings, place / "pcv", count=pseudo_runs)
    gammas = {
        "ALG": Calibrator().fit(*fitted).gamma_,
        "PCV": Calibrator("pcv").fit(*fitted, pseudo_runs=runs).gamma_,
    }
    found = diagnose(
        Outputs(tested.logits, tested.features, (tuned.features, tuned.labels)), tested.labels, groups,
        before=Outputs(shown.logits, shown.features, (source.features, source.labels)), gammas=gammas,
    )  # fmt: skip
    row = {one.key: one for one in found.rows}
    was, now = row["before"], row["after"]
    assert was.accuracies["U/Y"] - now.accuracies["U/Y"] >= 20
    assert now.ausuc - was.ausuc >= 0.06
    assert now.ncm["U/U"] - was.ncm["U/U"] > 0
    gain = {key: row[key].accuracies["Y/Y"] - now.accuracies["Y/Y"] for key in ("alg", "pcv", "star")}
    assert gain["alg"] > 1
    assert gain["pcv"] > 3
    assert gain["star"] > 6
    assert gain["star"] >= max(gain.values())
    on_test = np.isin(tested.labels, groups.seen)
    assert abs(gammas["ALG"] - average_logit_gap(tested.logits[on_test], tested.labels[on_test], groups)) < 0.5
    head = head_changes(head_weights(before), head_weights(after), groups)
    assert head["S"].norm_after > head["S"].norm_before
    assert head["U"].norm_after <= head["U"].norm_before
    assert head["U"].update_cosine > head["S"].update_cosine + 0.1
    assert found.verdict == "level"
    return now.accuracies["U/U"] - was.accuracies["U/U"]


@pytest.mark.slow
def test_the_effect_on_one_split_of_the_glyph_world(tmp_path: Path) -> None:
    """With one pseudo run instead of three, to take seconds; a split that the slow test has not."""
    check_effect(GlyphWorld(), 23, tmp_path, pseudo_runs=1)


@pytest.mark.slow
def test_the_effect_on_the_glyph_world(tmp_path: Path) -> None:
    """The specification's thresholds, three splits; U/U on their mean; and the hot rate as a counter-example."""
    world = GlyphWorld()
    changes = [check_effect(world, seed, tmp_path / f"{seed}", pseudo_runs=3) for seed in (20, 21, 22)]
    assert np.mean(changes) >= -1
    hot = FineTuneSettings(learning_rate=0.02, backbone_rate=1.0, seed=20, workers=0)
    burnt = predict_classifier(world.tuned(hot, tmp_path / "hot"), world.test)
    before = Outputs(predict_classifier(world.before, world.test).logits)
    found = diagnose(Outputs(burnt.logits), burnt.labels, world.groups(20), before=before)
    assert found.verdict == "damaged"
    assert "No gamma repairs that" in found.sentence


@pytest.mark.slow
def test_rates_decide_whether_features_stay_whole(tmp_path: Path) -> None:
    """The curve under four recipes on one split: only the hot uniform rate falls below the pre-trained model."""
    world, area, inner = GlyphWorld(), {}, {}
    groups = world.groups(0)
    recipes = {
        "slow backbone": {"learning_rate": 0.01, "backbone_rate": 0.1},
        "low": {"learning_rate": 0.003, "backbone_rate": 1.0},
        "adam": {"learning_rate": 1e-4, "backbone_rate": 1.0, "optimizer": "adamw"},
        "hot": {"learning_rate": 0.02, "backbone_rate": 1.0},
    }
    models = {"before": world.before}
    models |= {key: world.tuned(FineTuneSettings(workers=0, **one), tmp_path / key) for key, one in recipes.items()}
    for key, model in models.items():
        found = predict_classifier(model, world.test)
        area[key] = ausuc(found.logits, found.labels, groups)
        inner[key] = group_accuracies(found.logits, found.labels, groups)["U/U"]
    for key in ("slow backbone", "low", "adam"):
        assert area[key] >= area["before"] + 0.06, (key, area)
        assert inner[key] >= inner["before"] - 5, (key, inner)
    assert area["hot"] < area["before"], area
    assert inner["hot"] < inner["before"] - 10, inner
