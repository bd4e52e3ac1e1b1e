"""What the start of the released code does, what a taxonomy does, and what a pass leaves alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from foveate.species.classifier import LinkClassifier
from foveate.species.link_data import LinkData, link_arrays
from foveate.species.links import ImageNetwork, LinkModel, Relation, scale_hours, scale_places
from foveate.species.passes import FeatureBatches, ImageBatches, PassOrder, chance_loss, class_offsets, link_loss
from foveate.species.recipe import LinkTraining
from foveate.survey.taxa import Taxa
from foveate.vision.registry import seeded

PLACES = np.array([[45.0, 4.0], [-2.0, 35.0], [20.0, 100.0], [-10.0, -60.0], [60.0, 20.0], [5.0, 110.0]])
HOURS = np.arange(24.0)


@pytest.mark.parametrize(("start", "bounds"), [("official", (100.0, math.inf)), ("sane", (0.0, 1.0))])
def test_first_losses(start: str, bounds: tuple[float, float]) -> None:
    official = start == "official"
    with seeded(0):
        model = LinkModel(
            ImageNetwork(64, 512),
            num_entities=20,
            targets=range(10),
            dim=512,
            places_NF=scale_places(PLACES, "raw" if official else "standardized", reference_N2=PLACES),
            hours_NF=scale_hours(HOURS, "raw" if official else "scaled"),
            start="official" if official else "sane",
        )
        x = torch.randn(16, 64)
    low, high = bounds
    labels = torch.arange(16)
    for relation, candidates in ((Relation.LOCATION, 6), (Relation.TIME, 24)):
        loss = link_loss(model(x, relation), labels % candidates, relation).item()
        assert low < loss < high, relation
    species = link_loss(model(x), labels % 10, Relation.SPECIES).item()
    assert species == pytest.approx(math.log(10), rel=0.02)
    # The official start puts all places on one ray; the sane one does not.
    cosines = nn.functional.normalize(model.tails(Relation.LOCATION), dim=1)
    smallest = (cosines @ cosines.T).abs().min().item()
    assert (smallest > 0.99) == official


def test_places_on_one_parallel_are_not_divided_by_rounding() -> None:
    places = np.column_stack([np.full(3, 0.1), [10.0, 20.0, 30.0]])
    assert places[:, 0].std() > 0, "rounding of the mean"
    values = scale_places(np.array([[0.1, 20.0], [0.2, 20.0]]), "standardized", reference_N2=places)
    np.testing.assert_allclose(values, [[0.0, 0.0], [0.1, 0.0]], atol=1e-7)


def test_chance_is_the_entropy_of_one_in_n() -> None:
    assert chance_loss(24) == pytest.approx(0.173, abs=5e-4)
    assert chance_loss(246) == pytest.approx(0.0265, abs=1e-4)
    assert chance_loss(1) == 0.0


def data_of(count: int = 40, *, contexts: tuple[str, ...] = ("taxonomy", "place", "time")) -> LinkData:
    rng = np.random.default_rng(0)
    labels = [f"kind{number}" for number in rng.integers(4, size=count)]
    ids = ("root", *(f"kind{number}" for number in range(4)))
    taxa = Taxa(ids=ids, names=ids, ranks=("",) * 5, parents=np.array([-1, 0, 0, 0, 0]))
    return link_arrays(
        labels,
        taxa=taxa,
        places=PLACES[rng.integers(6, size=count)],
        hours=rng.integers(24, size=count).astype(float),
        contexts=contexts,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("contexts", "options", "names"),
    [
        ((), {}, "species"),
        (("taxonomy", "place", "time"), {}, "parent location time species"),
        (("place", "time"), {}, "location species time species"),
        (("place", "time"), {"extra_species_pass": False}, "location time species"),
        (("time",), {}, "time species"),
        (("taxonomy",), {"taxonomy_passes": 3}, "parent parent parent species"),
    ],
)
def test_order_of_passes(contexts: tuple[str, ...], options: dict[str, object], names: str) -> None:
    passes = data_of(contexts=contexts).passes(LinkTraining(**options))  # type: ignore[arg-type]
    assert " ".join(links.relation.name.lower() for links in passes) == names


def order_of(data: LinkData, training: LinkTraining) -> PassOrder:
    return PassOrder(
        data.passes(training), batch_size=training.batch_size, seed=training.seed, schedule=training.schedule
    )


def test_every_link_comes_once_an_epoch_in_either_schedule() -> None:
    data, seen = data_of(), {}
    for schedule in ("official", "interleaved"):
        order = order_of(data, LinkTraining(schedule=schedule, batch_size=8))  # type: ignore[arg-type]
        batches = [order.batch(step) for step in range(order.steps_per_epoch)]
        for relation in Relation:
            numbers = np.concatenate([part for links, part in batches if links.relation is relation])
            assert sorted(numbers) == list(range(len(data.links(relation).heads_N)))
        seen[schedule] = [links.relation for links, _ in batches]
    assert sorted(seen["official"]) == sorted(seen["interleaved"])
    assert seen["official"] != seen["interleaved"]
    # Evenly spread: the first half of an epoch has half of the species' batches.
    first = seen["interleaved"][: len(seen["interleaved"]) // 2].count(Relation.SPECIES)
    assert abs(first - seen["interleaved"].count(Relation.SPECIES) / 2) <= 1


def test_balanced_sampling_draws_every_class_equally_often() -> None:
    data = data_of(60)
    order = order_of(data, LinkTraining(balance="sampling", batch_size=7))
    counts = np.zeros(4, np.int64)
    for step in range(order.steps_per_epoch):
        links, numbers = order.batch(step)
        if links.relation is Relation.SPECIES:
            counts += np.bincount(links.tails_N[numbers], minlength=4)
    assert counts.sum() == 60
    assert np.ptp(counts) <= 1


@pytest.mark.parametrize(("contexts", "options"), [(("place", "time"), {}), (("taxonomy",), {"taxonomy_passes": 2})])
def test_draws_tell_apart_passes_of_one_relation(contexts: tuple[str, ...], options: dict[str, object]) -> None:
    order = order_of(data_of(contexts=contexts), LinkTraining(batch_size=8, **options))  # type: ignore[arg-type]
    images = ImageBatches(order, lambda row: torch.zeros(3, 2, 2), [str(row) for row in range(40)])
    counts = np.zeros(len(order.passes), np.int64)
    for step in range(order.steps_per_epoch):
        draws = images.draws(step)
        links, numbers = order.batch(step)
        assert all(order.passes[index] is links for index in draws[:, 0])
        np.testing.assert_array_equal(draws[:, 1], numbers)
        counts += np.bincount(draws[:, 0], minlength=len(counts))
    assert counts.tolist() == [len(links.heads_N) for links in order.passes]


def test_a_batch_is_a_function_of_its_step() -> None:
    data = data_of()
    order, again = order_of(data, LinkTraining()), order_of(data, LinkTraining())
    features = torch.randn(40, 3)
    later = {step: order.batch(step)[1] for step in (9, 2, 30)}
    for step, numbers in later.items():
        np.testing.assert_array_equal(again.batch(step)[1], numbers)
    batches = list(FeatureBatches(again, features).batches(2, 4))
    assert len(batches) == 2


def test_offsets_of_classes_are_log_frequencies() -> None:
    offsets = class_offsets(np.array([0, 0, 0, 1]), 3, tau=2.0)
    np.testing.assert_allclose(offsets, 2 * np.log([3 / 5, 1 / 5, 1 / 5]), rtol=1e-6)


def test_logit_adjustment_favors_rare_classes() -> None:
    rng = np.random.default_rng(0)
    y = np.where(np.arange(100) < 90, "often", "rare")
    X = rng.normal(size=(100, 4)) + (y == "rare")[:, None]
    options = {"dim": 16, "epochs": 5, "learning_rate": 1e-2, "image_learning_rate": 1e-2, "random_state": 0}
    plain, adjusted = (LinkClassifier(balance=balance, **options).fit(X, y) for balance in ("none", "logit_adjustment"))
    assert (adjusted.predict(X) == "rare").sum() > (plain.predict(X) == "rare").sum()


def test_a_class_that_is_an_ancestor_is_one_entity() -> None:
    ids = ("root", "genus", "species")
    taxa = Taxa(ids=ids, names=ids, ranks=("", "genus", "species"), parents=np.array([-1, 0, 1]))
    data = link_arrays(["species", "genus", "blank"], taxa=taxa)
    assert data.classes.labels == ("blank", "genus", "species")
    # By first appearance, as in the table of a graph: parents before classes.
    assert data.entity_taxa.tolist() == [1, 0, 2, -1]
    assert data.targets_K.tolist() == [3, 0, 2]
    assert data.entity_taxa[data.edges_M2].tolist() == [[1, 0], [2, 1]]


@pytest.mark.slow
def test_siblings_come_closer_with_the_right_taxonomy_than_with_a_shuffled_one() -> None:
    families, per_family = 6, 4
    kinds = [f"kind {number}" for number in range(families * per_family)]
    ids = ("root", *(f"family {number}" for number in range(families)), *kinds)

    def forest(order: np.ndarray) -> Taxa:
        parents = [-1, *[0] * families, *(1 + order // per_family).tolist()]
        return Taxa(ids=ids, names=ids, ranks=("",) * len(ids), parents=np.array(parents))

    siblings = np.arange(len(kinds)) // per_family
    for seed in range(3):
        rng = np.random.default_rng(seed)
        y = np.array(kinds)[rng.integers(len(kinds), size=400)]
        X = rng.normal(size=(400, 16))
        similarity = {}
        for name, order in (("right", np.arange(len(kinds))), ("shuffled", rng.permutation(len(kinds)))):
            classifier = LinkClassifier(taxonomy_passes=10, dim=64, epochs=8, random_state=seed)
            classifier.fit(X, y, taxa=forest(order))
            rows = classifier.class_entities_[[classifier.classes_.tolist().index(kind) for kind in kinds]]
            vectors = torch.nn.functional.normalize(torch.from_numpy(classifier.entity_vectors_[rows]), dim=1)
            cosines = (vectors @ vectors.T).numpy()
            pairs = (siblings[:, None] == siblings) & ~np.eye(len(kinds), dtype=bool)
            similarity[name] = cosines[pairs].mean()
        assert similarity["right"] > similarity["shuffled"] + 0.05, seed
