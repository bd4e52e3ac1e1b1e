"""The graph of a survey: its triples, what is left out, folders, and surveys that it was not built from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from foveate.cli.verbs.species import command
from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.writer import CollectionWriter
from foveate.species.graph import SpeciesGraph, build_graph, is_graph, open_collection
from foveate.species.triples import LOCATION, PARENT, SPECIES, TIME
from foveate.survey.store import survey_rows, write_survey
from foveate.survey.taxa import load_builtin_taxa
from foveate.survey.types import Deployment, Medium, Observation
from naming import raises_naming

DEPLOYMENTS = [
    Deployment("a", "creek", 51.5, 4.0, clock_shift=3600),
    Deployment("b", "hill", -0.0, 36.25, timestamp_issues=True),
    Deployment("c", "", None, None),
]
# Labels of foxes are ids, which only some taxonomies have.
IDS = {"Vulpes vulpes": "9627"}
# Key: deployment, time, split, labels.
IMAGES = {
    "1": ("a", "2024-05-01 23:30:00", "train", ["animal:Vulpes vulpes"]),
    "2": ("a", "2024-05-02 10:00:00", "train", ["animal:Felis concolor"]),
    "3": ("b", "2024-05-02 10:00:00", "train", ["blank"]),
    "4": ("c", "2024-05-02 03:00:00", "test", ["animal:Puma concolor"]),
    "5": ("c", "", "test", ["animal:Fictus novus"]),
    "6": ("a", "2024-05-02 10:00:00", "train", ["animal:Vulpes vulpes", "animal:Puma concolor"]),
    "7": ("a", "2024-05-02 10:00:00", "train", []),
    "8": ("a", "2024-05-02 10:00:00", "", ["blank"]),
}


def jpeg(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (30 * number, 90, 120)).save(stream, "JPEG")
    return stream.getvalue()


def build(folder: Path, images: dict[str, tuple[str, str, str, list[str]]]) -> Path:
    with CollectionWriter(folder, source="test") as writer:
        for number, (key, (deployment, time, split, labels)) in enumerate(images.items()):
            observations = [
                Observation(
                    *(f"{key}-{n}", deployment, key),
                    kind=kind,  # type: ignore[arg-type]
                    taxon=taxon,
                    taxon_id=IDS.get(taxon, ""),
                    method="human",
                )
                for n, (kind, _, taxon) in enumerate(text.partition(":") for text in labels)
            ]
            rows = survey_rows(Medium(key, deployment, time=time), observations)
            writer.add(key, jpeg(number), split=split, extra=rows)
        write_survey(writer, deployments=DEPLOYMENTS)
    return folder


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("graph") / "survey", IMAGES)


@pytest.fixture(scope="module")
def folder(survey: Path) -> Path:
    build_graph(survey, survey.parent / "graph")
    return survey.parent / "graph"


def rows_of(graph: SpeciesGraph, relation: int) -> list[tuple[str, str, str]]:
    rows = graph.triples.table.to_pylist()
    return [(row["h"], row["t"], row["split"]) for row in rows if row["r"] == str(relation)]


def test_images_are_linked_to_what_is_known_of_them(survey: Path) -> None:
    graph = SpeciesGraph.from_collection(survey)
    assert rows_of(graph, SPECIES) == [
        ("1", "9627", "train"),
        ("2", "9696", "train"),
        ("3", "blank", "train"),
        ("4", "9696", "test"),
        ("5", "Fictus novus", "test"),
    ]
    # Shifted by an hour into the next day. The clock of b is not trusted; no place for c.
    times = [("1", "2024-05-02 00:30:00"), ("2", "2024-05-02 11:00:00"), ("4", "2024-05-02 03:00:00")]
    assert [row[:2] for row in rows_of(graph, TIME)] == times
    assert [row[:2] for row in rows_of(graph, LOCATION)] == [
        *(("1", "[51.5 4.0]"), ("2", "[51.5 4.0]"), ("3", "[-0.0 36.25]"))
    ]
    taxa = load_builtin_taxa()
    walks = {i for name in ("9627", "9696") for i in taxa.lineage(taxa.index(name))}
    assert [row[:2] for row in rows_of(graph, PARENT)] == [
        (taxa.ids[i], taxa.ids[taxa.parents[i]]) for i in sorted(walks) if taxa.parents[i] >= 0
    ]
    without_root = SpeciesGraph.from_collection(survey, prune="inat")
    assert rows_of(without_root, PARENT) == [row for row in rows_of(graph, PARENT) if row[1] != "33208"]
    assert graph.classes.labels == ("Vulpes vulpes", "Puma concolor", "blank", "Fictus novus")
    assert graph.classes.taxa_K.tolist() == [taxa.index("9627"), taxa.index("9696"), -1, -1]
    assert graph.left_out == {
        "several kinds in one image": 1,
        "unlabeled": 1,
        "no time": 1,
        "timestamp issues": 1,
        "no coordinates": 2,
        "no split": 1,
    }
    assert [match.label for match in graph.matching.doubtful] == ["Felis concolor", "Fictus novus"]


def test_candidates_are_those_of_training_images_unless_official(survey: Path) -> None:
    graph, official = (SpeciesGraph.from_collection(survey, official=flag) for flag in (False, True))
    assert (graph.triples.hours_H.tolist(), official.triples.hours_H.tolist()) == ([0.0, 11.0], [0.0, 11.0, 3.0])
    assert graph.triples.places_P2.tolist() == [[51.5, 4.0], [0.0, 36.25]]


def test_a_graph_is_read_back_in_the_order_of_the_collection(survey: Path, folder: Path) -> None:
    graph, opened = SpeciesGraph.from_collection(survey), SpeciesGraph.open(folder)
    assert is_graph(folder)
    assert opened.triples.table.equals(graph.triples.table)
    assert opened.taxa.to_rows() == graph.taxa.to_rows()
    assert opened.matching.matches == graph.matching.matches
    assert opened.left_out == graph.left_out
    with open_collection(folder) as collection:
        opened.check(collection)
        arrays = opened.arrays(collection.keys)
    assert arrays.labels_N.tolist() == [0, 1, 2, 1, 3, -1, -1, -1]
    assert arrays.splits_N.tolist() == ["train"] * 3 + ["test"] * 2 + [""] * 3
    np.testing.assert_array_equal(arrays.hours_N, [0, 11, np.nan, 3, *[np.nan] * 4])
    np.testing.assert_array_equal(arrays.places_N2[:4], [[51.5, 4], [51.5, 4], [0, 36.25], [np.nan, np.nan]])
    assert opened.entity_taxa[opened.triples.targets_K].tolist() == opened.classes.taxa_K.tolist()
    taxa = opened.taxa
    for child, parent in opened.entity_taxa[opened.edges_M2].tolist():
        assert taxa.parents[child] == parent
    with raises_naming(UserError, "'5'", "triples.csv"):
        opened.arrays(["1", "2", "3", "4"])
    # No coordinates outside the triples.
    for name in ("graph.json", "matches.csv", "taxa.csv"):
        assert "51.5" not in (folder / name).read_text()


def change(key: str, **fields: object) -> dict[str, tuple[str, str, str, list[str]]]:
    names = ("deployment", "time", "split", "labels")
    return IMAGES | {key: tuple(fields.get(name, value) for name, value in zip(names, IMAGES[key], strict=True))}


@pytest.mark.parametrize(
    "images",
    [
        change("1", labels=["blank"]),
        change("4", split="train"),
        change("2", time="2024-05-02 09:00:00"),
        change("3", deployment="c"),
        {key: row for key, row in IMAGES.items() if key != "7"},
    ],
    ids=["label", "split", "clock", "place", "image"],
)
def test_a_graph_of_another_survey_is_refused(
    tmp_path: Path, folder: Path, images: dict[str, tuple[str, str, str, list[str]]]
) -> None:
    other = build(tmp_path / "other", images)
    with raises_naming(UserError, "other", "species build"):
        SpeciesGraph.open(folder).check(other)


def test_a_user_s_taxonomy_is_used_and_edited_triples_are_read(tmp_path: Path, survey: Path) -> None:
    taxonomy = tmp_path / "taxa.csv"
    taxonomy.write_text("taxon,parent\nbeast,\nVulpes vulpes,beast\nPuma concolor,beast\n")
    graph = build_graph(survey, tmp_path / "graph", taxonomy=taxonomy)
    assert rows_of(graph, PARENT) == [("Vulpes vulpes", "beast", "train"), ("Puma concolor", "beast", "train")]
    assert {match.label: match.status for match in graph.matching.doubtful}["Felis concolor"] == "unmatched"
    path = tmp_path / "graph" / "triples.csv"
    rows = list(csv.reader(path.open(newline="")))
    rows[1][3] = "monster"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert rows_of(SpeciesGraph.open(tmp_path / "graph"), PARENT)[0][1] == "monster"
    # A second build replaces it.
    build_graph(survey, tmp_path / "graph")
    assert len(rows_of(SpeciesGraph.open(tmp_path / "graph"), PARENT)) > 2


def blank(split: str, labels: Iterable[str]) -> dict[str, tuple[str, str, str, list[str]]]:
    return {"1": ("a", "2024-05-01 23:30:00", split, list(labels))}


def test_what_cannot_be_a_graph_is_named(tmp_path: Path, survey: Path) -> None:
    with raises_naming(UserError, "survey", "machine"):
        SpeciesGraph.from_collection(survey, source="machine")
    with raises_naming(UserError, "none", "--split"):
        SpeciesGraph.from_collection(build(tmp_path / "none", blank("", ["blank"])))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with raises_naming(UserError, "full", "--out"):
        build_graph(survey, tmp_path / "full")
    with raises_naming(UserError, "full", "graph.json"):
        SpeciesGraph.open(tmp_path / "full")
    build_graph(survey, tmp_path / "old")
    (tmp_path / "old" / "graph.json").write_text('{"format": 99}')
    with raises_naming(UserError, "graph.json", "99"):
        SpeciesGraph.open(tmp_path / "old")


def test_a_stopped_build_begins_again_in_its_folder(
    tmp_path: Path, survey: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("foveate.species.graph._write_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            build_graph(survey, tmp_path / "graph")
    assert (tmp_path / "graph" / "triples.csv").is_file()
    assert not is_graph(tmp_path / "graph")
    build_graph(survey, tmp_path / "graph")
    assert sorted(path.name for path in (tmp_path / "graph").iterdir()) == [
        "graph.json",
        "matches.csv",
        "taxa.csv",
        "triples.csv",
    ]
    # The same file in a folder that no build began is somebody's own.
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "triples.csv").write_text("h,r,t\n")
    with raises_naming(UserError, "own", "--out"):
        build_graph(survey, tmp_path / "own")


def test_a_collection_is_not_needed_to_read_triples(folder: Path, survey: Path) -> None:
    with Collection.open(survey) as collection:
        assert open_collection(folder).name == collection.name


def test_the_verb_lists_what_to_look_at(tmp_path: Path, survey: Path) -> None:
    called = ["build", str(survey), "--out", str(tmp_path / "graph")]
    output = CliRunner().invoke(command, called, catch_exceptions=False).output
    assert "Felis concolor" in output
    assert "several kinds in one image: 1" in output
    assert "51.5" not in output
    result = json.loads(CliRunner().invoke(command, [*called, "--json"], catch_exceptions=False).output)
    assert result["matches"] == {"id": 1, "name": 1, "no animal": 1, "synonym": 1, "unmatched": 1}
    assert Path(result["paths"]["triples"]).is_file()
