"""`LinkClassifier`: scikit-learn's conventions, what contexts change, and the invariants of the method."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.utils.estimator_checks import parametrize_with_checks

from foveate.core.errors import UserError
from foveate.species import classifier
from foveate.species.classifier import LinkClassifier
from foveate.species.links import Relation, fold_species
from foveate.species.recipe import GraphSettings, LinkTraining
from foveate.survey.taxa import Taxa
from foveate.training.loop import TrainingOutcome
from foveate.vision.registry import build_image_encoder
from naming import raises_naming


@pytest.mark.slow  # a minute of small trainings
@parametrize_with_checks(
    [LinkClassifier(dim=32, epochs=30, image_learning_rate=1e-2, learning_rate=1e-2, random_state=0)]
)
def test_conventions_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


FOREST = Taxa(
    ids=("1", "2", "3", "10", "11", "12", "13"),
    names=("Mammalia", "Cervidae", "Felidae", "Cervus elaphus", "Capreolus capreolus", "Lynx lynx", "Felis silvestris"),
    ranks=("class", "family", "family", "species", "species", "species", "species"),
    parents=np.array([-1, 0, 0, 1, 1, 2, 2]),
)
KINDS = (*FOREST.names[3:], "blank")


def world(seed: int = 0, *, count: int = 120) -> dict[str, NDArray[Any]]:
    """Features of five kinds around centers, at four cameras by day and night; every fifth image has no place."""
    rng = np.random.default_rng(seed)
    kind_N = rng.integers(len(KINDS), size=count)
    places_N2 = np.array([[0.0, 10.0], [1, 11], [-2, 12], [3, 9]])[rng.integers(4, size=count)]
    places_N2[::5] = np.nan
    hours_N = np.where(kind_N % 2, 22.0, 6.0) + rng.integers(2, size=count)
    hours_N[::7] = np.nan
    X = np.eye(len(KINDS))[kind_N] * 3 + rng.normal(size=(count, len(KINDS)))
    return {"X": X, "y": np.array(KINDS)[kind_N], "places": places_N2, "hours": hours_N}


def small(**options: Any) -> LinkClassifier:
    return LinkClassifier(**{"dim": 24, "epochs": 4, "learning_rate": 1e-2, "image_learning_rate": 1e-2} | options)


@pytest.fixture(scope="module")
def fitted() -> LinkClassifier:
    return small(random_state=3).fit(**world(), taxa=FOREST)


def test_learns_and_predicts_links(fitted: LinkClassifier) -> None:
    data = world(1)
    assert fitted.score(data["X"], data["y"]) > 0.8
    assert fitted.contexts_ == ("taxonomy", "place", "time")
    assert fitted.predict_links(data["X"], "place").shape == (120, len(fitted.places_)) == (120, 4)
    assert fitted.predict_links(data["X"], "time").shape == (120, 4)
    assert sorted(fitted.hours_) == [6, 7, 22, 23]
    assert fitted.predict_proba(data["X"]).shape == (120, 5)
    np.testing.assert_allclose(fitted.predict_proba(data["X"]).sum(1), 1, rtol=1e-5)
    with raises_naming(UserError, "relation", "places", "place"):
        fitted.predict_links(data["X"], "places")


@pytest.mark.parametrize("score", ["distmult", "complex"])
def test_folded_head_is_the_score(score: str) -> None:
    data = world()
    classifier = small(score=score, random_state=0, epochs=1).fit(**data, taxa=FOREST)
    folded = data["X"] @ classifier.coef_.T + classifier.intercept_
    np.testing.assert_allclose(folded, classifier.decision_function(data["X"]), rtol=1e-4, atol=1e-5)
    matrix = fold_species(classifier.model_)
    assert matrix.shape == (5, 24)


def test_conve_trains_and_has_no_folded_head() -> None:
    data = world()
    classifier = small(score="conve", dim=60, random_state=0, epochs=1).fit(**data)
    assert classifier.coef_ is None
    assert classifier.predict(data["X"]).shape == (120,)
    with raises_naming(UserError, "dim", "50"):
        small(score="conve", dim=50).fit(**data)


def test_same_seed_same_model_and_the_global_generators_do_not_matter() -> None:
    vectors = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(vectors))
        classifier = small(random_state=seed, epochs=1).fit(**world(count=40), taxa=FOREST)
        vectors.append(classifier.entity_vectors_)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert not np.array_equal(vectors[0], vectors[2])


def test_parent_scores_are_symmetric_with_distmult_alone(fitted: LinkClassifier) -> None:
    entities = torch.arange(len(fitted.entities_))
    scores = fitted.model_(entities, Relation.PARENT)
    torch.testing.assert_close(scores, scores.T)
    asymmetric = small(score="complex", random_state=0, epochs=1).fit(**world(count=40), taxa=FOREST)
    scores = asymmetric.model_(entities, Relation.PARENT)
    assert (scores - scores.T).abs().max() > 1e-3


def test_order_of_candidates_is_the_order_of_scores(fitted: LinkClassifier) -> None:
    model, x = fitted.model_, torch.randn(3, 5)
    before = model(x, Relation.LOCATION)
    order = torch.tensor([2, 0, 3, 1])
    model.places_NF = model.places_NF[order]
    permuted = model(x, Relation.LOCATION)
    species = model(x)
    model.places_NF = model.places_NF[torch.argsort(order)]
    torch.testing.assert_close(permuted, before[:, order])
    # Species scores never look at places.
    torch.testing.assert_close(model(x), species)


def test_an_image_without_a_place_changes_no_other_link() -> None:
    from foveate.species.link_data import link_arrays

    data = world()
    labels = data["y"].tolist()
    whole = link_arrays(labels, places=data["places"], hours=data["hours"], taxa=FOREST)
    places = data["places"].copy()
    places[3] = np.nan
    without = link_arrays(labels, places=places, hours=data["hours"], taxa=FOREST)
    for relation in (Relation.SPECIES, Relation.TIME, Relation.PARENT):
        np.testing.assert_array_equal(whole.links(relation).heads_N, without.links(relation).heads_N)
    others = whole.links(Relation.LOCATION).heads_N != 3
    np.testing.assert_array_equal(
        whole.links(Relation.LOCATION).heads_N[others], without.links(Relation.LOCATION).heads_N
    )


def test_places_of_other_splits_are_no_candidates() -> None:
    data = world()
    is_test = np.zeros(120, np.bool_)
    is_test[(data["places"][:, 0] == 3) | np.isnan(data["places"][:, 0])] = True
    classifier = small(random_state=0, epochs=2).fit(**data, taxa=FOREST, validation=is_test)
    assert 3 not in classifier.places_[:, 0]
    assert classifier.model_.places_NF.shape == (3, 2)


@pytest.mark.parametrize(
    ("field", "value", "names"),
    [
        ("score", "dismult", ("score", "dismult", "distmult")),
        ("contexts", ("location",), ("contexts",)),
        ("balance", "smart", ("balance", "smart")),
        ("epochs", 0, ("epochs", 0)),
    ],
)
def test_wrong_parameters_are_named(field: str, value: Any, names: tuple[Any, ...]) -> None:
    with raises_naming(UserError, *names):
        small(**{field: value}).fit(**world())


@pytest.mark.parametrize(
    ("field", "row", "value"), [("hours", 4, 24.0), ("places", 6, (95.0, 0.0)), ("places", 6, (0.0, 181.0))]
)
def test_impossible_places_and_hours_are_refused(field: str, row: int, value: Any) -> None:
    data = world()
    data[field][row] = value
    with raises_naming(UserError, field, "expected") as caught:
        small().fit(**data)
    # Coordinates in errors would end in logs.
    assert field == "hours" or str(value[0]) not in str(caught.value)


def test_widths_that_would_vanish_are_refused() -> None:
    data = world()
    with raises_naming(UserError, "dim", 2):
        small(dim=2, place_input="sphere").fit(**data)


def test_an_encoder_is_trained_in_a_copy() -> None:
    encoder = build_image_encoder({"kind": "lite0", "image_size": 32, "train_last_stages": True, "width": 4})
    before = copy.deepcopy(dict(encoder.unnamed_weights()))
    X, y = np.random.default_rng(0).normal(size=(24, *encoder.feature_shape)), np.array(KINDS[:2] * 12)
    X[::2, ::2] += 3.0
    fitted = small(encoder=encoder, epochs=20, image_learning_rate=3e-4, random_state=0).fit(X, y)
    assert (fitted.predict(X) == y).mean() > 0.9
    assert fitted.coef_ is None
    after = fitted.model_.image.encoder.unnamed_weights()
    assert all(torch.equal(before[name], value) for name, value in encoder.unnamed_weights().items())
    assert any(not torch.equal(before[name], value) for name, value in after.items())


def test_a_training_that_a_signal_stops_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: Any) -> TrainingOutcome:
        return TrainingOutcome("stopped", 1, 0.0, model=arguments[0].model, ema=None)

    monkeypatch.setattr(classifier, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        small().fit(**world(), taxa=FOREST)


def test_defaults_are_those_of_the_recipe() -> None:
    """They are written out for editors and type checkers, which see nothing of a signature that is made at runtime."""
    fields = {**GraphSettings.model_fields, **LinkTraining.model_fields}
    # In memory a width of 128 trains in seconds; `random_state` is scikit-learn's name for the seed.
    own = {"dim": 128, "image_learning_rate": 1e-3, "encoder": None, "random_state": None}
    for name, parameter in inspect.signature(LinkClassifier).parameters.items():
        assert parameter.default == (own[name] if name in own else fields[name].default), name
