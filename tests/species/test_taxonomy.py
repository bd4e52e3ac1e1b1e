"""Taxonomies: read from tables, labels and surveys, pruned as the released scripts do, matched to labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foveate.core.errors import UserError
from foveate.species.taxonomy import complete_taxa, match_labels, open_taxa, prune_edges, read_taxa, taxa_from_labels
from foveate.survey.taxa import Taxa, load_builtin_taxa
from naming import raises_naming

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "cosmo"
TREE = "taxon,parent\nAnimalia,\nFelidae,Animalia\nPuma,Felidae\nPuma concolor,Puma\nLynx,Felidae\n"
LABELS = (
    "1f68;;;;;;animal",
    "t044;mammalia;carnivora;canidae;vulpes;vulpes;red fox",
    "t021;mammalia;carnivora;canidae;;;dog family",
    "f185;;;;;;blank",
    "f2ef;no cv result;no cv result;no cv result;no cv result;no cv result;no cv result",
)


def write(folder: Path, text: str | bytes, name: str = "taxa.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lineage(taxa: Taxa, name: str) -> list[str]:
    return [taxa.names[i] for i in taxa.lineage(taxa.names.index(name))]


@pytest.mark.parametrize("case", json.loads((GOLDENS / "taxonomy.json").read_text()), ids=lambda case: case["name"])
def test_pruning_is_that_of_both_scripts(case: dict[str, Any]) -> None:
    edges = [
        (str(child), None if parent is None else str(parent)) for child, parent in case["input_edges_child_parent"]
    ]
    labels = [str(label) for label in case["label_ids"]]
    for mode in ("iwildcam", "inat"):
        expected = [(str(child), str(parent)) for child, parent in case[f"pruned_edges_{mode}_script"]]
        assert prune_edges(edges, labels, mode) == expected
    assert prune_edges(edges, labels) == prune_edges(edges, labels, "iwildcam")
    with raises_naming(UserError, "inaturalist", "iwildcam"):
        prune_edges(edges, labels, "inaturalist")  # type: ignore[arg-type]


def test_a_table_of_taxon_and_parent_is_enough(tmp_path: Path) -> None:
    taxa = read_taxa(write(tmp_path, TREE))
    assert lineage(taxa, "Puma concolor") == ["Puma concolor", "Puma", "Felidae", "Animalia"]
    assert taxa.ranks == ("kingdom", "family", "genus", "species", "genus")
    # A byte-order mark, semicolons, blanks and repeated rows, as spreadsheets write them.
    text = "\ufeff" + TREE.replace(",", ";").replace("Puma;", " Puma ;") + "Lynx;Felidae\n"
    for encoding in ("utf-8", "utf-16", "cp1252"):
        assert read_taxa(write(tmp_path, text.removeprefix("\ufeff").encode(encoding))).to_rows() == taxa.to_rows()
    assert read_taxa(write(tmp_path, text)).to_rows() == taxa.to_rows()


def test_further_columns_are_read(tmp_path: Path) -> None:
    text = "parent,id,name,rank,common,synonyms\nNA,1,Felidae,family,felid,\n"
    text += "1,2,Puma concolor,species,puma,Felis concolor\n"
    taxa = read_taxa(write(tmp_path, text))
    assert taxa.find("Felis concolor") == taxa.index("2") == 1
    assert (taxa.common[1], taxa.ranks[0]) == ("puma", "family")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (TREE + "Felidae,Puma\n", ["line 7", "Felidae", "line 3", "Animalia", "Puma"]),
        (TREE.replace("Felidae,Animalia", "Felidae,Puma"), ["Felidae", "line 3", "Puma", "line 4"]),
        (TREE + "Plantae,\n", ["Animalia", "line 2", "Plantae", "line 7"]),
        (TREE + "Lynx lynx,Lyn\nPan,Homidae\n", ["2 parents", "'Lyn' in line 7", "'Homidae' in line 8", "'Lynx'"]),
        (TREE + ",Felidae\n", ["line 7"]),
        (TREE + "Lynx,Felidae,x\n", ["line 7", "3 cells"]),
        ("taxon,parents\nA,\n", ["parent", "'parents'"]),
        ("name,parent\nA,\n", ["taxon"]),
        (TREE.encode("utf-16")[:-1], ["UTF-16"]),
        (TREE.encode() + "Fé".encode() + b"\xffis,Felidae\n", ["UTF-8"]),
        ("", ["empty"]),
    ],
)
def test_a_table_that_is_no_tree_names_its_rows(tmp_path: Path, text: str | bytes, names: list[str]) -> None:
    with raises_naming(UserError, "taxa.csv", *names):
        read_taxa(write(tmp_path, text))


def test_labels_of_speciesnet_have_one_root() -> None:
    taxa = taxa_from_labels(LABELS)
    assert lineage(taxa, "Vulpes vulpes") == ["Vulpes vulpes", "Vulpes", "Canidae", "Carnivora", "Mammalia", "Animalia"]
    assert [taxa.ids[taxa.find(name)] for name in ("Vulpes vulpes", "Canidae", "Animalia")] == ["t044", "t021", "1f68"]
    assert len(taxa) == 6
    # The rank that a first label leaves out is taken from a later one.
    assert lineage(taxa_from_labels(["a;mammalia;;felidae;;;", "b;mammalia;carnivora;felidae;;;x"]), "Felidae") == [
        *("Felidae", "Carnivora", "Mammalia", "Animalia")
    ]


def test_wrong_labels_are_named(tmp_path: Path) -> None:
    with raises_naming(UserError, "label 2", "3"):
        taxa_from_labels([LABELS[0], "a;b;c"])
    with raises_naming(UserError, "label 2", "Vulpes", "Felidae", "Canidae"):
        taxa_from_labels([LABELS[1], "x;mammalia;carnivora;felidae;vulpes;;y"])
    assert open_taxa(path=write(tmp_path, "\n".join(LABELS), "labels.txt")).index("t044") == 5
    with raises_naming(UserError, "labels.txt"):
        open_taxa(path=write(tmp_path, "", "labels.txt"))


def test_a_list_of_species_gets_their_ancestors() -> None:
    # As in a package's list: species, a genus, a class, a synonym, and what the shipped table does not have.
    names = {"Ardea cinerea": "species", "Ardea": "genus", "Aves": "class", "Anas strepera": "species"}
    names |= {"Fictus novus": "species", "Fictus": "genus", "Vulpes lagopus": "species", "Puma concolor coryi": ""}
    listed = Taxa.from_rows({"id": f"x{n}", "name": name, "rank": rank} for n, (name, rank) in enumerate(names.items()))
    taxa = complete_taxa(listed)
    assert taxa.ids[: len(listed)] == listed.ids
    assert (taxa.parents < 0).sum() == 1
    assert lineage(taxa, "Ardea cinerea")[:3] == ["Ardea cinerea", "Ardea", "Ardeidae"]
    assert taxa.lineage(0)[1] == 1
    assert lineage(taxa, "Anas strepera")[1] == "Mareca"
    assert lineage(taxa, "Fictus novus") == ["Fictus novus", "Fictus", "Metazoa"]
    assert lineage(taxa, "Vulpes lagopus")[1:3] == ["Vulpes", "Canidae"]
    assert lineage(taxa, "Puma concolor coryi")[1] == "Puma concolor"
    tree = load_builtin_taxa()
    assert complete_taxa(tree) is tree


def test_labels_are_matched_by_id_then_by_name() -> None:
    rows = [*load_builtin_taxa().to_rows()]
    rows += [
        {"id": "p", "name": "Plantae", "rank": "kingdom"},
        {"id": "q", "name": "Puma", "rank": "genus", "parent": "p"},
    ]
    rows += [{"id": "r", "name": "Bison", "rank": "genus", "parent": "9903"}]
    rows += [{"id": "s", "name": "Quercus", "rank": "genus", "parent": "p"}]
    taxa = Taxa.from_rows(rows)
    labels = [
        "blank",
        "9696",
        "Puma",
        "puma",
        "red fox",
        "Canis familiaris",
        "Bison",
        "Quercus",
        "Felis concolour",
        "9696",
    ]
    matching = match_labels(labels, taxa)
    by_label = {match.label: match for match in matching.matches}
    assert {label: match.status for label, match in by_label.items()} == {
        "blank": "no animal",
        "9696": "id",
        "Puma": "name",
        "puma": "common name",
        "red fox": "common name",
        "Canis familiaris": "synonym",
        "Bison": "homonym",
        "Quercus": "unmatched",
        "Felis concolour": "unmatched",
    }
    # A plant's genus does not capture the animal's.
    assert by_label["Puma"].taxon == taxa.index("146712")
    assert "Canis lupus familiaris" in str(by_label["Canis familiaris"])
    assert "r" in by_label["Bison"].note
    assert "kingdom" in by_label["Quercus"].note
    assert "Felis concolor" in by_label["Felis concolour"].note
    assert {match.label for match in matching.doubtful} == set(labels) - {"blank", "9696", "Puma"}
