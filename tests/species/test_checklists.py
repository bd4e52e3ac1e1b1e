"""Checklists of GBIF and NCBI as taxonomies, species that hang below their genus, and what to write for the rest."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from made_images import jpeg

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.species.checklists import is_checklist, read_checklist
from foveate.species.graph import SpeciesGraph
from foveate.species.taxonomy import hang_labels, match_labels, open_taxa
from foveate.survey.taxa import Taxa, load_builtin_taxa
from naming import raises_naming

BORNEO = (
    *("Macaca nemestrina", "Muntiacus atherodes", "Hystrix brachyura", "Sus barbatus"),
    *("Helarctos malayanus", "Tragulus kanchil"),
)
COLUMNS = (
    "taxonID\tparentNameUsageID\tacceptedNameUsageID\tscientificName\ttaxonRank\ttaxonomicStatus\tvernacularName\n"
)
DARWIN_CORE = COLUMNS + (
    "8\t7\t\tHelarctos malayanus (Raffles, 1821)\tspecies\taccepted\tsun bear\n"
    "9\t\t8\tUrsus malayanus Raffles, 1821\tspecies\tsynonym\t\n"
    "7\t6\t\tHelarctos Horsfield, 1825\tgenus\taccepted\t\n"
    "6\t51\t\tUrsidae Fischer, 1817\tfamily\taccepted\t\n"
    "51\t5\t\tCaniformia Kretzoi, 1943\tsuborder\taccepted\t\n"
    "5\t4\t\tCarnivora Bowdich, 1821\torder\taccepted\t\n"
    "4\t3\t\tMammalia\tclass\taccepted\t\n"
    "3\t1\t\tChordata\tphylum\taccepted\t\n"
    "1\t\t\tAnimalia\tkingdom\taccepted\t\n"
    "20\t2\t\tHelarctos plantarum Author\tspecies\tdoubtful\t\n"
    "2\t\t\tPlantae\tkingdom\taccepted\t\n"
    "30\t4\t\tUnneeded\torder\taccepted\t\n"
    # GBIF quotes no cell, and names may have quotes.
    '31\t4\t\t"Ursus minor\tspecies\tdoubtful\t\n'
)
NODES = (
    "1 1 no rank,131567 1 no rank,33208 131567 kingdom,7711 33208 phylum,40674 7711 class,33554 40674 order,"
    "379584 33554 suborder,9632 379584 family,9633 9632 genus,9634 9633 species"
)
NAMES = (
    ("1", "root", "scientific name"),
    ("131567", "cellular organisms", "scientific name"),
    ("33208", "Metazoa", "scientific name"),
    ("7711", "Chordata", "scientific name"),
    ("40674", "Mammalia", "scientific name"),
    ("33554", "Carnivora", "scientific name"),
    ("379584", "Caniformia", "scientific name"),
    ("9632", "Ursidae", "scientific name"),
    ("9633", "Helarctos", "scientific name"),
    ("9634", "Helarctos malayanus", "scientific name"),
    ("9634", "Ursus malayanus Raffles, 1821", "synonym"),
    ("9634", "Malayan sun bear", "genbank common name"),
)


def write_ncbi(folder: Path) -> Path:
    rows = [
        row.rsplit(" ", 1) if " no rank" not in row else [row.removesuffix(" no rank"), "no rank"]
        for row in NODES.split(",")
    ]
    (folder / "nodes.dmp").write_text("".join("\t|\t".join([*ids.split(), rank]) + "\t|\n" for ids, rank in rows))
    lines = ("\t|\t".join((taxon, name, "", kind)) + "\t|\n" for taxon, name, kind in NAMES)
    (folder / "names.dmp").write_text("".join(lines))
    return folder


def lineage(taxa: Taxa, name: str) -> list[str]:
    return [taxa.names[i] for i in taxa.lineage(taxa.find(name, kingdom="Animalia"))]


def test_a_species_hangs_below_its_genus_and_the_rest_says_what_to_write() -> None:
    taxa, matching = hang_labels([*BORNEO, "Macaca sp.", "macaque", "blank"], load_builtin_taxa())
    by_label = {match.label: match for match in matching.matches}
    assert [by_label[label].status for label in BORNEO] == ["genus"] * 4 + ["unmatched"] * 2
    assert lineage(taxa, "Macaca nemestrina")[:3] == ["Macaca nemestrina", "Macaca", "Cercopithecidae"]
    assert taxa.names[by_label["Macaca sp."].taxon] == "Macaca"
    for part in ("Helarctos malayanus,", "taxon,parent", "--taxonomy"):
        assert part in by_label["Helarctos malayanus"].note
    assert by_label["macaque"].status == "unmatched"
    assert by_label["macaque"] in matching.doubtful
    # Nothing is hung twice, and a model of these taxa finds them by their names.
    assert [match.status for match in match_labels(BORNEO[:4], taxa).matches] == ["id"] * 4
    assert hang_labels(["Lynx lynx", "blank"], load_builtin_taxa())[0] is load_builtin_taxa()


def test_a_genus_of_the_shipped_table_hangs_below_the_list_of_a_survey() -> None:
    survey = Taxa.from_rows(
        [
            {"id": "k", "name": "Animalia", "rank": "kingdom"},
            {"id": "b", "name": "Aves", "rank": "class", "parent": "k"},
        ]
    )
    taxa, matching = hang_labels(["Macaca nemestrina", "Red fox"], survey)
    assert [match.status for match in matching.matches] == ["genus", "unmatched"]
    assert lineage(taxa, "Macaca nemestrina")[-1] == "Animalia"
    assert taxa.ids[:2] == survey.ids
    assert (taxa.parents < 0).sum() == 1


def test_a_tree_with_a_root_of_its_own_stays_as_it_is() -> None:
    beast = {"id": "beast", "name": "beast"}
    own = Taxa.from_rows([beast, {"id": "f", "name": "Felis", "rank": "genus", "parent": "beast"}])
    taxa, matching = hang_labels(["Macaca nemestrina", "Felis chaus"], own)
    assert [match.status for match in matching.matches] == ["unmatched", "genus"]
    assert taxa.names == ("beast", "Felis", "Felis chaus")


def test_a_few_rows_are_added_to_the_shipped_table(tmp_path: Path) -> None:
    path = tmp_path / "more.csv"
    path.write_text("taxon,parent\nHelarctos malayanus,Helarctos\nHelarctos,Ursidae\nTragulus kanchil,Artiodactyla\n")
    taxa = open_taxa(path=path)
    assert len(taxa) == len(load_builtin_taxa()) + 3
    assert lineage(taxa, "Helarctos malayanus")[:4] == ["Helarctos malayanus", "Helarctos", "Ursidae", "Carnivora"]
    graph = SpeciesGraph.from_labels([*BORNEO, "Lynx lynx"], taxa)
    assert (graph.classes.taxa_K >= 0).all()


@pytest.mark.parametrize("form", ["gbif.tsv", "gbif.csv", "ncbi", "nodes.dmp"])
def test_checklists_are_taxonomies_with_synonyms(form: str, tmp_path: Path) -> None:
    path = tmp_path / form
    if form.startswith("gbif"):
        # A table with commas needs quotes, and doubles those of a cell.
        rows = [[cell.replace('"', '""') for cell in line.split("\t")] for line in DARWIN_CORE.splitlines()]
        text = "".join('"' + '","'.join(cells) + '"\n' for cells in rows)
        path.write_text(text if form.endswith("csv") else DARWIN_CORE)
    else:
        path = write_ncbi(tmp_path) / ("" if form == "ncbi" else form)
    assert is_checklist(path)
    taxa = open_taxa(path=path)
    kingdom = "Metazoa" if "gbif" not in form else "Animalia"
    expected = ["Helarctos malayanus", "Helarctos", "Ursidae", "Carnivora", "Mammalia", "Chordata", kingdom]
    assert lineage(taxa, "Ursus malayanus") == expected
    (synonym, common) = match_labels(["Ursus malayanus", taxa.common[taxa.find("Helarctos malayanus")]], taxa).matches
    assert (synonym.status, synonym.note) == ("synonym", "of Helarctos malayanus")
    assert common.status == "common name"
    # Only what is asked for, with its genus and ancestors.
    few = read_checklist(path, {"Ursus malayanus"})
    assert set(few.names) == {*expected, *(["Caniformia"] if "Caniformia" in few.names else [])}
    with raises_naming(UserError, path, "Bradypus torquatus"):
        read_checklist(path, {"Bradypus torquatus"})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (DARWIN_CORE + "8\t7\t\tHelarctos malayanus\tspecies\taccepted\t\n", ["'8'", "twice"]),
        (DARWIN_CORE + "40\t\t99\tUrsus niger\tspecies\tsynonym\t\n", ["acceptedNameUsageID", "'99'"]),
        (DARWIN_CORE + "\t\t\tUrsus niger\tspecies\taccepted\t\n", ["line 15", "taxonID"]),
        (COLUMNS.replace("parentNameUsageID", "parent") + "1\t\t\tA\tspecies\t\t\n", ["parentNameUsageID"]),
    ],
)
def test_a_broken_checklist_is_one_sentence(text: str, names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "taxon.tsv"
    path.write_text(text)
    with raises_naming(UserError, path, *names):
        open_taxa(path=path)


def test_half_a_taxdump_names_the_other_file(tmp_path: Path) -> None:
    (write_ncbi(tmp_path) / "names.dmp").unlink()
    with raises_naming(UserError, tmp_path / "names.dmp", "nodes.dmp"):
        open_taxa(path=tmp_path)
    (tmp_path / "names.dmp").write_text("1\t|\n")
    with raises_naming(UserError, tmp_path / "names.dmp", "line 1", "4"):
        open_taxa(path=tmp_path)


def test_the_command_places_all_species_of_borneo(tmp_path: Path) -> None:
    def run(*arguments: object) -> dict[str, Any]:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            cli.main([*map(str, arguments), "--json"], standalone_mode=False)
        return json.loads(output.getvalue())

    names = enumerate(BORNEO, start=1)
    traps: dict[str, list[dict[str, Any]]] = {
        "categories": [{"id": number, "name": name.lower()} for number, name in names],
        "images": [{"id": f"i{n}", "file_name": f"{n}.JPG", "location": f"camera {n}"} for n in range(1, 7)],
        "annotations": [{"id": f"a{n}", "image_id": f"i{n}", "category_id": n} for n in range(1, 7)],
    }
    for image in traps["images"]:
        (tmp_path / image["file_name"]).write_bytes(jpeg(int(image["id"][1:])))
    (tmp_path / "traps.json").write_text(json.dumps(traps))
    survey, graph = tmp_path / "survey", tmp_path / "graph"
    run("collect", tmp_path / "traps.json", "--out", survey)
    build = ("species", "build", survey, "--out", graph)
    assert run(*build)["matches"] == {"genus": 4, "unmatched": 2}
    assert "Helarctos malayanus,FAMILY" in (graph / "matches.csv").read_text()
    (tmp_path / "more.csv").write_text("taxon,parent\nHelarctos malayanus,Ursidae\nTragulus kanchil,Artiodactyla\n")
    assert run(*build, "--taxonomy", tmp_path / "more.csv")["matches"] == {"genus": 4, "id": 2}
    (tmp_path / "gbif.tsv").write_text(DARWIN_CORE)
    assert run(*build, "--taxonomy", tmp_path / "gbif.tsv")["matches"] == {"genus": 4, "name": 1, "unmatched": 1}
