"""Taxa: names with homonyms and synonyms, lineages, rows, and trees that are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.survey.taxa import RANKS, Taxa, find_cycle, load_builtin_taxa, normalize_name
from naming import raises_naming

ROWS = [
    {"id": "1", "name": "Life", "rank": "", "parent": None},
    {"id": "2", "name": "Metazoa", "rank": "kingdom", "parent": "1"},
    {"id": "3", "name": "Viridiplantae", "rank": "kingdom", "parent": "1"},
    {"id": "4", "name": "Felidae", "rank": "Family", "parent": "2"},
    {"id": "5", "name": "Puma", "rank": "genus", "parent": "4"},
    {"id": "6", "name": "Puma concolor", "rank": "species", "parent": "5", "synonyms": "Felis concolor"},
    {"id": "7", "name": "Oenanthe", "rank": "genus", "parent": "2"},
    {"id": "8", "name": "Oenanthe", "rank": "genus", "parent": "3"},
    {"id": "9", "name": "Puma concolor coryi", "rank": "subspecies", "parent": "6", "common": "Florida panther"},
]
TAXA = Taxa.from_rows(ROWS)


def test_names_are_matched_with_rank_and_kingdom() -> None:
    assert TAXA.find(" puma  CONCOLOR.") == TAXA.find("Felis concolor") == TAXA.index("6") == 5
    assert TAXA.find("Puma", rank="species") == TAXA.find("Lynx") == -1
    assert TAXA.find("Oenanthe") == -1
    assert TAXA.matches("Oenanthe") == [6, 7]
    assert TAXA.find("Oenanthe", kingdom="Animalia") == 6
    assert TAXA.find("Oenanthe", "genus", "plantae") == 7
    assert normalize_name(" Ara  macao (Linn.) ") == "ara macao linn"
    assert "6" in TAXA
    assert "60" not in TAXA


def test_lineages_end_in_the_root() -> None:
    assert TAXA.lineage(8) == [8, 5, 4, 3, 1, 0]
    assert TAXA.at_rank(8, "family") == 3
    assert TAXA.at_rank(8, "subspecies") == 8
    assert TAXA.at_rank(8, "order") == TAXA.at_rank(0, "kingdom") == -1


def test_rows_are_read_back() -> None:
    again = Taxa.from_rows(TAXA.to_rows())
    assert again.to_rows() == TAXA.to_rows()
    np.testing.assert_array_equal(again.parents, TAXA.parents)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"2": {"parent": "6"}}, ["2 (Metazoa)", "6 (Puma concolor)"]),
        ({"4": {"parent": "4"}}, ["4 (Felidae)"]),
        ({"9": {"parent": "66"}}, ["row 9", "66"]),
        ({"9": {"id": "8"}}, ["8"]),
        ({"9": {"id": ""}}, ["''"]),
    ],
)
def test_what_is_no_tree_is_refused(changes: dict[str, dict[str, str]], names: list[str]) -> None:
    with raises_naming(UserError, *names):
        Taxa.from_rows([row | changes.get(str(row["id"]), {}) for row in ROWS])


def test_an_unknown_id_names_the_nearest() -> None:
    taxa = Taxa(("ursus", "lynx"), ("Ursus", "Lynx"), ("genus", "genus"), np.array([-1, -1]))
    with raises_naming(UserError, "ursos", "'ursus'"):
        taxa.index("ursos")


@given(st.lists(st.integers(-1, 7), min_size=8, max_size=8))
def test_a_cycle_is_reported_exactly_where_following_parents_never_ends(parents: list[int]) -> None:
    def ends(i: int) -> bool:
        for _ in range(9):
            i = parents[i] if i >= 0 else i
        return i < 0

    cycle = find_cycle(np.array(parents))
    assert bool(cycle) == (not all(ends(i) for i in range(8)))
    assert all(parents[a] == b for a, b in zip(cycle, [*cycle[1:], *cycle[:1]], strict=True))


def test_the_shipped_table_is_a_tree_with_ranks_in_order() -> None:
    taxa = load_builtin_taxa()
    assert 200 < len(taxa) <= 300
    assert (taxa.parents < 0).sum() == 1
    for i in range(len(taxa)):
        ranks = [RANKS.index(taxa.ranks[j]) for j in taxa.lineage(i)]
        assert ranks == sorted(set(ranks), reverse=True)
        assert taxa.find(taxa.names[i]) == i, f"{taxa.names[i]} is a homonym or synonym"
    puma = taxa.lineage(taxa.index("9696"))
    assert [taxa.names[i] for i in puma] == [
        *("Puma concolor", "Puma", "Felidae", "Carnivora", "Mammalia", "Chordata", "Metazoa")
    ]


# Labels of the real frames that tests read, and of the Camtrap DP example.
@pytest.mark.parametrize(
    "name",
    """Ardea cinerea|Bos taurus|Canis familiaris|Corvus brachyrhynchos|Didelphis virginiana|Gallus gallus domesticus|
    Leopardus pardalis|Loxodonta africana|Mephitis mephitis|Sciurus niger|Urocyon cinereoargenteus|Ursus americanus|
    Anas platyrhynchos|Anas strepera|Martes foina|Mustela putorius|Rattus norvegicus|Vulpes vulpes|Ardea|Aves""".split(
        "|"
    ),
)
def test_the_shipped_table_has_the_animals_of_real_frames(name: str) -> None:
    assert load_builtin_taxa().find(name, kingdom="Animalia") >= 0
