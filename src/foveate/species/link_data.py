"""Images, labels, places, hours and parents as arrays: what of a graph is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError, choose
from foveate.records.collection import Collection
from foveate.species.graph import SpeciesGraph
from foveate.species.links import Relation
from foveate.species.passes import LinkRows
from foveate.species.recipe import CONTEXTS, Context, LinkTraining, SpeciesData
from foveate.species.taxonomy import Classes
from foveate.species.triples import PLACE_DIGITS
from foveate.survey.taxa import Taxa

Rows = NDArray[np.int64]


# Compared by identity: arrays have no single truth value.
@dataclass(frozen=True, eq=False)
class LinkData:
    """Links of N images and of the taxonomy.

    Attributes:
        classes, taxa: meaning of the K columns of an answer.
        labels_N: class of each image, -1 for none.
        is_train_N: images that links are trained of.
        is_validation_N: images that select the best epoch.
        places_N2: degrees, NaN where unknown. hours_N: 0 to 23, NaN where unknown.
        entity_taxa: taxon of each entity, -1 for a label without one.
        targets_K: entity of each class.
        edges_M2: child and parent, as entities.
        all_candidates: places and hours of all splits compete, not of the training images alone (official).
        contexts: that are switched on.
    """

    classes: Classes
    taxa: Taxa
    labels_N: Rows
    is_train_N: NDArray[np.bool_]
    is_validation_N: NDArray[np.bool_]
    places_N2: NDArray[np.float64]
    hours_N: NDArray[np.float64]
    entity_taxa: Rows
    targets_K: Rows
    edges_M2: Rows
    all_candidates: bool = False
    contexts: tuple[Context, ...] = field(default=CONTEXTS)

    def __post_init__(self) -> None:
        wrong_N = ~np.isnan(self.hours_N) & ~((self.hours_N >= 0) & (self.hours_N < 24))
        if wrong_N.any():
            raise UserError(f"hours: out of range (got {self.hours_N[wrong_N][0]:g}); expected 0 to 23, NaN for none")
        # Comparisons with NaN are false, so images without a place pass.
        latitude_N, longitude_N = self.places_N2.T
        wrong_N = (np.abs(latitude_N) > 90) | (np.abs(longitude_N) > 180)
        if wrong_N.any():
            # The row, not the coordinates: errors end in logs.
            raise UserError(
                f"places: image {int(np.flatnonzero(wrong_N)[0])} is out of range; expected latitude in [-90, 90] and "
                "longitude in [-180, 180], NaN for none"
            )

    @cached_property
    def train_rows(self) -> Rows:
        """Labeled training images, ascending."""
        return np.flatnonzero(self.is_train_N & (self.labels_N >= 0))

    @cached_property
    def validation_rows(self) -> Rows:
        """Labeled validation images, ascending."""
        return np.flatnonzero(self.is_validation_N & (self.labels_N >= 0))

    def count_images(self) -> Rows:
        """Return the number of training images of each class."""
        return np.bincount(self.labels_N[self.train_rows], minlength=len(self.classes))

    def describe(self) -> dict[str, str]:
        """Return hashes of everything that numbers mean: classes, taxonomy, labels, places and hours."""
        parts = {
            "classes": [*self.classes.labels, *(str(taxon) for taxon in self.classes.taxa_K)],
            "taxonomy": [f"{row}" for row in self.taxa.to_rows()],
            # Includes the splits: an image that moved to validation also changes what is trained.
            "labels": [array.tobytes().hex() for array in (self.labels_N, self.is_train_N, self.is_validation_N)],
            "places": [self.places_N2.tobytes().hex()],
            "hours": [self.hours_N.tobytes().hex()],
            "contexts": list(self.contexts),
        }
        return {
            name: hashlib.blake2b("\0".join(texts).encode(), digest_size=8).hexdigest() for name, texts in parts.items()
        }

    def _candidate_rows(self) -> Rows:
        return np.arange(len(self.labels_N)) if self.all_candidates else self.train_rows

    @cached_property
    def _places(self) -> tuple[NDArray[np.float64], Rows]:
        # COSMO's code compares places as text, where 10. and 10.0 are two candidates with one vector.
        return _first_appearances(np.round(self.places_N2, PLACE_DIGITS), self._candidate_rows())

    @cached_property
    def _hours(self) -> tuple[NDArray[np.float64], Rows]:
        # Whole hours compete, as in COSMO: 24 candidates at most, however exact the clocks are.
        values, hour_N = _first_appearances(np.floor(self.hours_N)[:, None], self._candidate_rows())
        return values[:, 0], hour_N

    @property
    def candidate_places_P2(self) -> NDArray[np.float64]:
        """Distinct places that compete, in order of first appearance."""
        return self._places[0]

    @property
    def candidate_hours_H(self) -> NDArray[np.float64]:
        """Distinct hours that compete, in order of first appearance."""
        return self._hours[0]

    @property
    def place_N(self) -> Rows:
        """Candidate place of each image, -1 where it has none."""
        return self._places[1]

    @property
    def hour_N(self) -> Rows:
        """Candidate hour of each image, -1 where it has none."""
        return self._hours[1]

    def links_of_places(self) -> Rows:
        """Return one training image of each distinct place: what places are standardized by."""
        rows = self.links(Relation.LOCATION).heads_N
        # One row a place: a camera with ten thousand images would else decide mean and spread.
        return rows[np.unique(self.place_N[rows], return_index=True)[1]]

    def links(self, relation: Relation, *, balanced: bool = False, name: str = "") -> LinkRows:
        """Return the training links of a relation; of images only those with a label."""
        if relation is Relation.PARENT:
            return LinkRows(relation, self.edges_M2[:, 0], self.edges_M2[:, 1], name=name)
        tails_N = {Relation.SPECIES: self.labels_N, Relation.LOCATION: self.place_N, Relation.TIME: self.hour_N}[
            relation
        ]
        # Nothing is imputed: an image without a place or a trusted clock has no such link.
        rows = self.train_rows[tails_N[self.train_rows] >= 0]
        return LinkRows(relation, rows, tails_N[rows], balanced, name)

    @cached_property
    def present_contexts(self) -> tuple[Context, ...]:
        """Contexts that are switched on and have links."""
        relations = {"taxonomy": Relation.PARENT, "place": Relation.LOCATION, "time": Relation.TIME}
        return tuple(name for name in CONTEXTS if name in self.contexts and len(self.links(relations[name]).heads_N))

    def passes(self, training: LinkTraining) -> list[LinkRows]:
        """Return the passes of an epoch, in order.

        Source: the released code of COSMO, main.py: parents, places, a second species pass where there are place and
        time but no taxonomy, hours, species.
        """
        contexts, species = self.present_contexts, Relation.SPECIES
        balanced = training.balance == "sampling"
        passes = []
        if "taxonomy" in contexts:
            passes += [self.links(Relation.PARENT, name=str(number)) for number in range(training.taxonomy_passes)]
        if "place" in contexts:
            passes.append(self.links(Relation.LOCATION))
            if "time" in contexts and "taxonomy" not in contexts and training.extra_species_pass:
                # Without it, species would get one pass in three.
                passes.append(self.links(species, balanced=balanced, name="extra"))
        if "time" in contexts:
            passes.append(self.links(Relation.TIME))
        return [*passes, self.links(species, balanced=balanced)]


def _first_appearances(values_NC: NDArray[np.float64], rows: Rows) -> tuple[NDArray[np.float64], Rows]:
    """Return the distinct values of `rows` in order of first appearance, and the index of every row's value."""
    # NaN is not equal to itself: each unknown value would become a candidate of its own.
    known = rows[~np.isnan(values_NC[rows]).any(axis=1)]
    # -0.0 and 0.0 are one place.
    values_NC = values_NC + 0.0
    _, first = np.unique(values_NC[known], axis=0, return_index=True)
    # `np.unique` sorts by value; candidates are numbered in the order in which images name them.
    distinct = values_NC[known[np.sort(first)]]
    indices = {tuple(value): index for index, value in enumerate(distinct.tolist())}
    return distinct, np.array([indices.get(tuple(value), -1) for value in values_NC.tolist()], dtype=np.int64)


def link_arrays(
    labels: Sequence[str],
    *,
    order: Sequence[str] | None = None,
    taxa: Taxa | None = None,
    places: NDArray[np.float64] | None = None,
    hours: NDArray[np.float64] | None = None,
    contexts: Sequence[Context] = CONTEXTS,
    validation: NDArray[np.bool_] | None = None,
    all_candidates: bool = False,
) -> LinkData:
    """Return the links of labeled images in arrays; an empty label is none.

    Args:
        order: all labels in the order of the classes; sorted by default.
        validation: [N] images that select the best epoch and are not trained on.

    Raises:
        UserError: two labels are one taxon.
    """
    taxa = taxa or Taxa(ids=(), names=(), ranks=(), parents=np.zeros(0, np.int64))
    count = len(labels)
    names = sorted(set(labels) - {""}) if order is None else order
    graph = SpeciesGraph.from_labels(names, taxa)
    targets_K = graph.triples.targets_K
    classes = Classes(tuple(names), graph.entity_taxa[targets_K])
    # Labels index the classes and edges index the entities; `targets_K` maps one to the other.
    columns = {label: column for column, label in enumerate(classes.labels)}
    is_validation_N = np.zeros(count, np.bool_) if validation is None else np.asarray(validation, np.bool_)
    return LinkData(
        classes=classes,
        taxa=taxa,
        labels_N=np.array([columns.get(label, -1) for label in labels], dtype=np.int64),
        is_train_N=~is_validation_N,
        is_validation_N=is_validation_N,
        places_N2=np.full((count, 2), np.nan) if places is None else np.asarray(places, np.float64),
        hours_N=np.full(count, np.nan) if hours is None else np.asarray(hours, np.float64),
        entity_taxa=graph.entity_taxa,
        targets_K=targets_K,
        edges_M2=graph.edges_M2,
        all_candidates=all_candidates,
        contexts=tuple(contexts),
    )


def link_graph(
    graph: SpeciesGraph,
    collection: Collection,
    *,
    train: Sequence[str] = ("train",),
    validation: str = "validation",
    contexts: Sequence[Context] = CONTEXTS,
    all_candidates: bool = False,
) -> LinkData:
    """Return the links of a graph, by row of the collection that it was built from.

    Raises:
        UserError: the collection changed since, an unknown split, a validation split that is trained on, or training
            images with fewer than two labels.
    """
    graph.check(collection)
    known = sorted(set(collection.splits.tolist()) - {""})
    for name in train:
        choose(name, known, f"split of {collection.name}")
    # A collection need not have the split of the default: the last epoch is taken then.
    if validation not in ("", SpeciesData().validation):
        choose(validation, known, f"data.validation, a split of {collection.name},")
    # An epoch must not be selected by images that it was trained on.
    if validation in train:
        raise UserError(
            f"data.validation: '{validation}' is trained on as well; expected another split, or '' for none"
        )
    arrays = graph.arrays(collection.keys)
    data = LinkData(
        classes=graph.classes,
        taxa=graph.taxa,
        labels_N=arrays.labels_N,
        is_train_N=np.isin(arrays.splits_N, list(train)),
        is_validation_N=arrays.splits_N == validation,
        places_N2=arrays.places_N2,
        hours_N=arrays.hours_N,
        entity_taxa=graph.entity_taxa,
        targets_K=graph.triples.targets_K,
        edges_M2=graph.edges_M2,
        all_candidates=all_candidates,
        contexts=tuple(contexts),
    )
    check_classes(data, f"images of the split {' or '.join(train)} in {collection.name}")
    return data


def check_classes(data: LinkData, images: str) -> None:
    """Raise UserError unless two classes have a training image.

    Args:
        images: what the training images are, for the error.
    """
    present = np.flatnonzero(data.count_images()).tolist()
    if len(present) < 2:
        labels = ", ".join(repr(data.classes.labels[column]) for column in present) or "none"
        raise UserError(f"labels of {images}: expected two classes (got {labels}); review some images first")
