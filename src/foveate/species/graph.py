"""Build the graph of a survey: images linked to species, parents, places and hours.

A folder of a graph holds `triples.csv`, `taxa.csv`, `matches.csv` (how each label was matched) and `graph.json`, which
names the survey. Entities and classes are numbered only from the triples, so that no cache can contradict them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.files import read_json, write_json_atomically, write_text_atomically
from foveate.core.tables import read_rows
from foveate.records import tables
from foveate.records.collection import Collection
from foveate.species.taxonomy import (
    Classes,
    Match,
    Matching,
    PruneMode,
    hang_labels,
    open_taxa,
    prune_edges,
    read_names,
)
from foveate.species.triples import (
    LOCATION,
    PARENT,
    SPECIES,
    TIME,
    Triples,
    format_place,
    make_table,
    normalize_id,
    parse_hours,
    parse_places,
    read_triples,
    write_triples,
)
from foveate.survey.survey import LabelSource, Survey
from foveate.survey.taxa import Taxa

TRIPLES, TAXA, MATCHES, GRAPH = "triples.csv", "taxa.csv", "matches.csv", "graph.json"
_UNFINISHED = "graph.unfinished"  # while a graph is written: a stopped build may begin again in its own folder
_FORMAT = 1
_MAX_NAMED = 5
Rows = NDArray[np.int64]


class GraphArrays(NamedTuple):
    """A graph in the order of a collection's rows.

    Attributes:
        labels_N: class of each image, -1 for none. splits_N: "" for an image outside the graph.
        places_N2: degrees, NaN where unknown. hours_N: 0 to 23, NaN where unknown.
    """

    labels_N: Rows
    splits_N: NDArray[np.object_]
    places_N2: NDArray[np.float64]
    hours_N: NDArray[np.float64]


# Compared by identity: arrays have no single truth value.
@dataclass(frozen=True, eq=False)
class SpeciesGraph:
    """Triples of a survey with the taxa of their entities.

    Args:
        survey: hash of what the survey contributes, see `hash_survey`.
        source, min_probability: whose labels, see `Survey.labels`.
        left_out: reason -> images without a triple of that kind.
        matching: of the survey's labels to taxa.

    >>> from foveate.survey import load_builtin_taxa
    >>> graph = SpeciesGraph.from_labels(["Lynx lynx", "Vulpes vulpes", "blank"], load_builtin_taxa())
    >>> graph.classes.labels
    ('Lynx lynx', 'Vulpes vulpes', 'blank')
    >>> [graph.taxa.names[taxon] for taxon in graph.entity_taxa[graph.edges_M2[-1]]]
    ['Vulpes vulpes', 'Vulpes']
    """

    triples: Triples
    taxa: Taxa
    survey: str
    source: LabelSource = "human"
    min_probability: float = 0.0
    left_out: Mapping[str, int] = field(default_factory=dict)
    matching: Matching = Matching(())

    @classmethod
    def from_collection(
        cls,
        collection: Collection | str | Path,
        taxa: Taxa | None = None,
        *,
        source: LabelSource = "human",
        min_probability: float = 0.0,
        train: Sequence[str] = ("train",),
        official: bool = False,
        prune: PruneMode = "full",
    ) -> SpeciesGraph:
        """Build the graph of a collection's survey.

        Images without a place or hour have no such triple: nothing is imputed. Labels of one taxon are one class.

        Args:
            taxa: those of the survey, or the shipped ones, by default.
            source, min_probability: whose observations are labels, see `Survey.labels`.
            train: splits whose places and hours are candidates.
            official: candidates of all splits, places compared as text.
            prune: which edges of the taxonomy stay, see `taxonomy.prune_edges`.

        Raises:
            UserError: the collection has no survey, no labels, or no split.
        """
        survey = Survey.open(collection)
        taxa = open_taxa(survey.collection) if taxa is None else taxa
        labels_N, splits_N = survey.labels(source, min_probability=min_probability), survey.collection.splits
        # An image without a split is neither trained on nor tested; `left_out` counts it.
        usable_N = (labels_N != "") & (splits_N != "")
        name = survey.collection.name
        if not (labels_N != "").any():
            raise UserError(f"{name}: no image has a label by a {source} observation; import or review some first")
        if not usable_N.any():
            raise UserError(f"{name}: no labeled image is in a split; collect it again with --split train=0.8,test=0.2")
        taxa, matching = hang_labels(labels_N[usable_N].tolist(), taxa, names=read_names(survey.collection))
        # Labels of the same taxon, such as a name and its synonym, share an entity and so become one class.
        entity_of = {match.label: _name_entity(match, taxa) for match in matching.matches}
        table = make_table(
            [
                *_parent_rows(matching, taxa, prune),
                *_image_rows(survey, labels_N, splits_N, np.flatnonzero(usable_N), entity_of),
            ]
        )
        left_out = Counter(survey.label_counts(source, min_probability=min_probability))
        left_out += Counter(survey.count_missing())
        # Count only labeled images here: one without a label is counted above.
        left_out["no split"] = int(((labels_N != "") & (splits_N == "")).sum())
        return cls(
            triples=Triples.index(table, train=train, official=official),
            taxa=taxa,
            survey=hash_survey(survey, source, min_probability),
            source=source,
            min_probability=min_probability,
            # Unary plus drops reasons that apply to no image.
            left_out=dict(+left_out),
            matching=matching,
        )

    @classmethod
    def from_labels(cls, labels: Sequence[str], taxa: Taxa) -> SpeciesGraph:
        """Build the graph of distinct labels and their ancestors, without an image.

        Raises:
            UserError: two labels are one taxon.
        """
        taxa, matching = hang_labels(labels, taxa)
        entities = [_name_entity(match, taxa) for match in matching.matches]
        # Two columns of one taxon would compete for the same images, and their targets would be one row of the table.
        uses = Counter(normalize_id(entity) for entity in entities)
        if len(uses) < len(entities):
            entity = next(name for name, count in uses.items() if count > 1)
            same = [label for label, name in zip(labels, entities, strict=True) if normalize_id(name) == entity]
            raise UserError(f"labels {', '.join(map(repr, same))} are one taxon ({entity}); merge them")
        heads = [("", "image", SPECIES, entity, "id", "train") for entity in entities]
        return cls(Triples.index(make_table([*_parent_rows(matching, taxa, "full"), *heads])), taxa, survey="")

    @cached_property
    def entity_taxa(self) -> Rows:
        """Taxon of each entity, -1 for a label without one."""
        # Ids are compared as COSMO's code writes them, "12.0" as "12": spreadsheets and pandas add the decimals.
        index = {normalize_id(taxon_id): i for i, taxon_id in enumerate(self.taxa.ids)}
        return np.array([index.get(entity, -1) for entity in self.triples.entities], dtype=np.int64)

    @cached_property
    def classes(self) -> Classes:
        """The classes: named scientifically, by id where two taxa share a name, by label where there is no taxon."""
        taxa_K = self.entity_taxa[self.triples.targets_K]
        entities = [self.triples.entities[entity] for entity in self.triples.targets_K.tolist()]
        names = [self.taxa.names[i] if i >= 0 else entity for i, entity in zip(taxa_K.tolist(), entities, strict=True)]
        uses = Counter(names)
        labels = (name if uses[name] == 1 else entity for name, entity in zip(names, entities, strict=True))
        return Classes(tuple(labels), taxa_K)

    @cached_property
    def edges_M2(self) -> Rows:
        """Child and parent of each edge of the taxonomy, as entities."""
        index = {entity: i for i, entity in enumerate(self.triples.entities)}
        parents = self.triples.links(PARENT)
        return np.array([*zip(map(index.get, parents.heads), parents.labels, strict=True)], np.int64).reshape(-1, 2)

    def untrained_classes(self, train: Sequence[str] = ("train",)) -> list[str]:
        """Return the labels of classes that have no image in the splits of the training."""
        trained = {column for split in train for column in self.triples.links(SPECIES, split).labels.tolist()}
        return [label for column, label in enumerate(self.classes.labels) if column not in trained]

    def arrays(self, keys: Sequence[str]) -> GraphArrays:
        """Return the graph in the order of image keys.

        Raises:
            UserError: an image of the graph has none of the keys.
        """
        labels_N, hours_N = np.full(len(keys), -1, dtype=np.int64), np.full(len(keys), np.nan)
        splits_N, places_N2 = np.full(len(keys), "", dtype=object), np.full((len(keys), 2), np.nan)
        known = pa.array(keys, pa.string())
        for relation in (SPECIES, LOCATION, TIME):
            table = self.triples.table.take(pa.array(self.triples.rows_of(relation)))
            rows = tables.positions(table["h"], among=known)
            if (rows < 0).any():
                # A graph that silently lost images would train on fewer links than its counts say.
                missing = table["h"].filter(pa.array(rows < 0)).unique().to_pylist()
                named = ", ".join(map(repr, missing[:_MAX_NAMED]))
                raise UserError(f"{TRIPLES}: {len(missing)} images are not in the collection (got {named})")
            if relation == SPECIES:
                labels_N[rows], splits_N[rows] = self.triples.links(SPECIES).labels, table["split"].to_pylist()
            elif relation == LOCATION:
                places_N2[rows] = parse_places(table["t"])
            else:
                hours_N[rows] = parse_hours(table["t"])
        return GraphArrays(labels_N, splits_N, places_N2, hours_N)

    def describe(self) -> dict[str, int]:
        """Return counts of triples, classes, entities and candidates."""
        relations = Counter(self.triples.table["r"].to_pylist())
        names = {"species": SPECIES, "parent": PARENT, "location": LOCATION, "time": TIME}
        counts = {f"{name} triples": relations[str(number)] for name, number in names.items()}
        return counts | {
            "classes": len(self.triples.targets_K),
            "entities": len(self.triples.entities),
            "candidate places": len(self.triples.places_P2),
            "candidate hours": len(self.triples.hours_H),
        }

    def check(self, collection: Collection | str | Path) -> None:
        """Raise UserError if a collection's survey is not the one that the graph was built from."""
        survey = Survey.open(collection)
        if hash_survey(survey, self.source, self.min_probability) != self.survey:
            raise UserError(
                f"graph: built from another survey than {survey.collection.name!r}, or its images, labels, splits, "
                "places or clocks changed since; run `foveate species build` again"
            )

    def save(self, folder: str | Path, *, collection: str | Path | None = None) -> None:
        """Write the graph into a new or empty folder, or in place of a graph, finished or not.

        Args:
            collection: path that `open_collection` opens again.

        Raises:
            UserError: the folder holds something else.
        """
        folder = Path(folder)
        is_graph_folder = (folder / GRAPH).exists() or (folder / _UNFINISHED).exists()
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not is_graph_folder):
            raise UserError(f"{folder}: exists and holds no graph; choose an empty folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _UNFINISHED).touch()
        # Last: a folder with graph.json is whole.
        (folder / GRAPH).unlink(missing_ok=True)
        write_triples(folder / TRIPLES, self.triples.table)
        _write_rows(folder / TAXA, self.taxa.to_rows(), ("id", "name", "rank", "parent", "common", "synonyms"))
        _write_rows(
            folder / MATCHES,
            (
                {
                    "label": match.label,
                    "status": match.status,
                    "id": self.taxa.ids[match.taxon] if match.taxon >= 0 else "",
                    "name": self.taxa.names[match.taxon] if match.taxon >= 0 else "",
                    "note": match.note,
                }
                for match in self.matching.matches
            ),
            ("label", "status", "id", "name", "note"),
        )
        content: dict[str, Any] = {"format": _FORMAT, "survey": self.survey, "left_out": dict(self.left_out)}
        content |= {"source": self.source, "min_probability": self.min_probability}
        # Relative, so that survey and graph can be moved to another disk together.
        where = None if collection is None else Path(os.path.relpath(Path(collection).resolve(), folder.resolve()))
        content |= {"collection": where and where.as_posix(), "counts": self.describe()}
        write_json_atomically(folder / GRAPH, content)
        (folder / _UNFINISHED).unlink(missing_ok=True)

    @classmethod
    def open(cls, folder: str | Path, *, train: Sequence[str] = ("train",), official: bool = False) -> SpeciesGraph:
        """Open a folder of a graph; see `from_collection` for `train` and `official`.

        Raises:
            UserError: the folder holds no graph, or a file of it is damaged.
        """
        folder = Path(folder)
        content = _read_description(folder)
        taxa = Taxa.from_rows(read_rows(folder / TAXA).to_dicts())
        matches = tuple(
            Match(row["label"], taxa.index(row["id"]) if row["id"] else -1, row["status"], row["note"])  # type: ignore[arg-type]
            for row in read_rows(folder / MATCHES).to_dicts()
        )
        return cls(
            triples=Triples.index(read_triples(folder / TRIPLES), train=train, official=official),
            taxa=taxa,
            survey=content["survey"],
            source=content["source"],
            min_probability=content.get("min_probability", 0.0),
            left_out=content["left_out"],
            matching=Matching(matches),
        )


def is_graph(folder: str | Path) -> bool:
    """Whether a folder holds a graph."""
    return (Path(folder) / GRAPH).is_file() and (Path(folder) / TRIPLES).is_file()


def open_collection(folder: str | Path) -> Collection:
    """Open the collection that a folder's graph was built from."""
    # Relative to the graph (see `save`), because both may have been moved together.
    where = _read_description(Path(folder)).get("collection")
    if not where:
        raise UserError(f"{Path(folder) / GRAPH}: names no collection; build the graph again")
    return Collection.open(Path(folder) / where)


def build_graph(
    collection: str | Path,
    folder: str | Path,
    *,
    taxonomy: str | Path | None = None,
    source: LabelSource = "human",
    min_probability: float = 0.0,
) -> SpeciesGraph:
    """Build the graph of a collection's survey and write it; the same call again replaces it.

    Args:
        taxonomy: see `taxonomy.open_taxa`; that of the survey, or the shipped one, by default.
        source, min_probability: whose observations are labels, see `Survey.labels`.
    """
    with Collection.open(collection) as opened:
        taxa = open_taxa(opened, taxonomy)
        graph = SpeciesGraph.from_collection(opened, taxa, source=source, min_probability=min_probability)
    graph.save(folder, collection=collection)
    return graph


def hash_survey(survey: Survey, source: LabelSource = "human", min_probability: float = 0.0) -> str:
    """Return a hash of all that a graph uses of a survey: keys, labels, splits, places and clocks."""
    digest = hashlib.sha256()
    labels_N = survey.labels(source, min_probability=min_probability)
    texts = zip(survey.keys, labels_N.tolist(), survey.collection.splits.tolist(), strict=True)
    for row in texts:
        # Separators keep "ab", "c" and "a", "bc" from having the same hash.
        digest.update("\x1f".join(row).encode() + b"\x1e")
    # Every NaN has one bit pattern here, whatever computed it.
    for values in (survey.places_N2, survey.clock_N):
        digest.update(np.where(np.isnan(values), np.nan, values).astype("<f8").tobytes())
    return digest.hexdigest()


def _name_entity(match: Match, taxa: Taxa) -> str:
    return normalize_id(taxa.ids[match.taxon]) if match.taxon >= 0 else match.label


def _parent_rows(matching: Matching, taxa: Taxa, prune: PruneMode) -> list[tuple[object, ...]]:
    ids = [normalize_id(taxon_id) for taxon_id in taxa.ids]
    parents = [ids[parent] if parent >= 0 else None for parent in taxa.parents.tolist()]
    labels = [ids[match.taxon] for match in matching.matches if match.taxon >= 0]
    edges = prune_edges(zip(ids, parents, strict=True), labels, prune)
    # As in the released code, every edge belongs to the split "train".
    return [(child, "id", PARENT, parent, "id", "train") for child, parent in edges]


def _image_rows(
    survey: Survey,
    labels_N: NDArray[np.object_],
    splits_N: NDArray[np.object_],
    rows: Rows,
    entity_of: Mapping[str, str],
) -> Iterable[tuple[object, ...]]:
    keys, clock_N, places_N2 = survey.keys, survey.clock_N, survey.places_N2
    for row in rows.tolist():
        yield keys[row], "image", SPECIES, entity_of[labels_N[row]], "id", splits_N[row]
    for row in rows[~np.isnan(clock_N[rows])].tolist():
        # The time on the camera's own clock; `datetime64` has no time zone that could shift it.
        time = str(np.datetime64(int(np.floor(clock_N[row])), "s")).replace("T", " ")
        yield keys[row], "image", TIME, time, "time", splits_N[row]
    for row in rows[~np.isnan(places_N2[rows, 0])].tolist():
        yield keys[row], "image", LOCATION, format_place(*places_N2[row].tolist()), "location", splits_N[row]


def _read_description(folder: Path) -> dict[str, Any]:
    if not is_graph(folder):
        raise UserError(f"{folder}: no graph ({GRAPH} or {TRIPLES} is missing); make one with `foveate species build`")
    content = read_json(folder / GRAPH)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        got = content.get("format") if isinstance(content, dict) else content
        raise UserError(f"{folder / GRAPH}: unknown format (got {got!r}); expected {_FORMAT}")
    return content


def _write_rows(path: Path, rows: Iterable[Mapping[str, str]], columns: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomically(path, text.getvalue())
