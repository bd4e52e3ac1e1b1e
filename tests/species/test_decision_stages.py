"""Decision stages: what each may change, their order and trace, species lists, and bad input."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decision_cases import NON_ANIMALS, draw_probabilities, grow_taxa, make_classes
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.species import decisions as decisions_module
from foveate.species.decisions import Decisions, Stages, decide, prepare_stages
from foveate.species.rows import BestDetections
from foveate.species.speciesnet_rules import (
    ANIMAL,
    BLANK,
    HUMAN,
    UNKNOWN,
    VEHICLE,
    SpeciesNetRules,
    read_taxonomy,
)
from foveate.species.stages.pooling import pool_events
from foveate.species.stages.prior import scale_temperature, weigh_by_prior
from foveate.species.stages.rollup import group_by_rank
from foveate.species.stages.species_list import match_classes, read_list, restrict_classes
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa
from naming import raises_naming

METHODS = ("mean_logprob", "mean_prob", "max_prob", "vote")
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def tree() -> tuple[Classes, Taxa]:
    taxa = grow_taxa(9, np.random.default_rng(1))
    return make_classes(taxa), taxa


@pytest.fixture(scope="module")
def cats() -> tuple[Classes, Taxa]:
    rows = [
        ("1", "Animalia", "kingdom", "", ""),
        ("2", "Mammalia", "class", "1", "mammal"),
        ("3", "Felidae", "family", "2", "cat family"),
        ("4", "Leopardus", "genus", "3", ""),
        ("5", "Leopardus pardalis", "species", "4", "ocelot"),
        ("6", "Leopardus wiedii", "species", "4", "margay"),
        ("7", "Puma concolor", "species", "3", "puma"),
        ("8", "Aves", "class", "1", "bird"),
        ("9", "Crax rubra", "species", "8", "great curassow"),
    ]
    taxa = Taxa.from_rows(dict(zip(("id", "name", "rank", "parent", "common"), row, strict=True)) for row in rows)
    return make_classes(taxa), taxa


def run(p: Any, classes: Classes, taxa: Taxa, stages: dict[str, Any], **conditions: Any) -> Decisions:
    return decide(p, classes, taxa, prepare_stages(Stages.model_validate(stages), classes, taxa), **conditions)


def sources(decisions: Decisions) -> list[list[dict[str, Any]]]:
    return [json.loads(text) for text in decisions.to_columns()["source"].to_pylist()]


@settings(max_examples=10, deadline=None)
@given(seed=seeds, method=st.sampled_from(METHODS), blank_mode=st.sampled_from(["max_animal", "as_class"]))
def test_pooling_ignores_the_order_of_frames(seed: int, method: Any, blank_mode: Any) -> None:
    rng = np.random.default_rng(seed)
    p, weights = draw_probabilities(5, 6, rng), rng.uniform(0, 2, 5)
    order = rng.permutation(5)
    start, options = np.zeros(1, dtype=np.int64), {"method": method, "blank": 2, "blank_mode": blank_mode}
    pooled = pool_events(p, start, weights, **options)
    np.testing.assert_allclose(pool_events(p[order], start, weights[order], **options), pooled, atol=1e-12)
    np.testing.assert_allclose(pooled.sum(), 1)
    single = pool_events(p[:1], start, weights[:1], **options)
    if method != "vote":
        # One image is what it was, up to the floor of 1e-6 a class.
        np.testing.assert_allclose(single, p[:1], atol=1e-5)


def test_weights_of_0_give_blank_frames_no_share() -> None:
    p, start = np.array([[0.01, 0.0, 0.99], [0.05, 0.9, 0.05]]), np.zeros(1, dtype=np.int64)
    for method in METHODS:
        options: dict[str, Any] = {"method": method, "blank": 2, "blank_mode": "max_animal"}
        equal = pool_events(p, start, np.ones(2), **options)
        np.testing.assert_allclose(pool_events(p, start, np.zeros(2), **options), equal)
        if method == "mean_prob":
            np.testing.assert_allclose(equal, [[0.059, 0.891, 0.05]], atol=1e-3)


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_a_list_moves_only_unlisted_animals(tree: tuple[Classes, Taxa], tmp_path_factory: Any, seed: int) -> None:
    classes, taxa = tree
    rng = np.random.default_rng(seed)
    names = [classes.labels[k] for k in rng.choice(int(classes.animals_K.sum()), 4, replace=False)]
    path = tmp_path_factory.mktemp("list") / "list.txt"
    path.write_text("\n".join(names))
    p = draw_probabilities(4, len(classes), rng, sharpness=1)
    stages = {"species_list": {"file": path}, "pooling": {"method": "none"}, "rollup": {"enabled": False}}
    after = run(p, classes, taxa, stages, num_alternatives=len(classes))
    listed = np.isin(classes.labels, [*names, *NON_ANIMALS])
    result = np.empty_like(p)
    np.put_along_axis(result, after.alternatives_RA, after.alternative_scores_RA, axis=1)
    assert (result[:, ~listed] == 0).all()
    # Among listed classes the proportions stay.
    np.testing.assert_allclose(result[:, listed], p[:, listed] / p[:, listed].sum(axis=1, keepdims=True))


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_rollup_sums(tree: tuple[Classes, Taxa], seed: int) -> None:
    classes, taxa = tree
    p = draw_probabilities(3, len(classes), np.random.default_rng(seed), sharpness=1)
    by_taxon: dict[int, np.ndarray] = {}
    for group in group_by_rank(classes, taxa, ("species", "genus", "family", "order", "class")):
        sums = group.sum(p)
        without = p[:, group.groups_K < 0].sum(axis=1)
        np.testing.assert_allclose(sums.sum(axis=1) + without, 1)
        by_taxon |= dict(zip(group.answers_M.tolist(), sums.T, strict=True))
    for taxon, sums in by_taxon.items():
        parent = int(taxa.parents[taxon])
        if parent >= 0:
            assert (by_taxon[parent] >= sums - 1e-12).all(), "probability fell toward the root"


@pytest.mark.parametrize(
    ("ranks", "name"),
    [(("family",), "Felidae"), (("family", "genus"), "Leopardus"), (("subspecies",), "unknown")],
)
def test_rollup_answers_with_requested_ranks_only(
    cats: tuple[Classes, Taxa], ranks: tuple[str, ...], name: str
) -> None:
    p = [[0.9, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0]]
    decisions = run(p, *cats, {"rollup": {"ranks": ranks}, "pooling": {"method": "none"}})
    assert decisions.names().to_pylist() == [name]
    assert decisions.scores_R[0] == pytest.approx(0.9 if name == "unknown" else 1.0)


def test_prior_of_ones_and_temperature_of_one_change_nothing() -> None:
    p = draw_probabilities(5, 7, np.random.default_rng(0))
    animals = np.array([True] * 5 + [False] * 2)
    np.testing.assert_allclose(weigh_by_prior(p, np.ones_like(p), animals, strength=2, floor=0.01), p)
    np.testing.assert_allclose(scale_temperature(p, 1.0), p)
    hot = scale_temperature(p, 3.0)
    assert (hot.max(axis=1) < p.max(axis=1)).all()
    np.testing.assert_array_equal(hot.argmax(axis=1), p.argmax(axis=1))


def test_decisions_do_not_depend_on_blocks_or_order(
    tree: tuple[Classes, Taxa], monkeypatch: pytest.MonkeyPatch
) -> None:
    classes, taxa = tree
    rng = np.random.default_rng(4)
    p = draw_probabilities(60, len(classes), rng)
    p[7] = np.nan
    events = rng.integers(-1, 12, 60)
    whole = run(p, classes, taxa, {}, events=events)
    monkeypatch.setattr(decisions_module, "_ROWS_PER_BLOCK", 8)
    parts = run(p, classes, taxa, {}, events=events)
    assert whole.to_columns() == parts.to_columns()
    order = rng.permutation(60)
    shuffled = run(p[order], classes, taxa, {}, events=events[order])
    np.testing.assert_array_equal(shuffled.answers_R[shuffled.decisions_N], whole.answers_R[whole.decisions_N][order])


def test_every_stage_leaves_its_trace(cats: tuple[Classes, Taxa], tmp_path: Path) -> None:
    classes, taxa = cats
    path = tmp_path / "list.txt"
    path.write_text("\ufeff# my species\nLeopardus\nPuma concolor  # seen in 2019\n", encoding="utf-8")
    p = np.array([[0.45, 0.4, 0.0, 0.1, 0.05, 0.0, 0.0], [0.1, 0.1, 0.0, 0.0, 0.8, 0.0, 0.0]])
    assert classes.labels[:4] == ("Leopardus pardalis", "Leopardus wiedii", "Puma concolor", "Crax rubra")
    stages = {"temperature": {"temperature": 1.5}, "species_list": {"file": path}, "prior": {"by_place": True}}
    decisions = run(p, classes, taxa, stages, events=[3, 3])
    columns = decisions.to_columns()
    assert columns["name"].to_pylist() == ["Leopardus"]
    assert columns["rank"].to_pylist() == ["genus"]
    assert columns["taxon"].to_pylist() == ["4"]
    (trace,) = sources(decisions)
    names = ["classifier", "temperature", "prior", "species_list", "pooling", "rollup", "threshold"]
    assert [entry["stage"] for entry in trace] == names
    assert "2 of 2" in trace[4]["did"]
    assert "off" in trace[2]["did"], "a list switches the prior off, which needs no file then"
    alternatives = json.loads(columns["alternatives"].to_pylist()[0])
    assert [name for name, _ in alternatives[:2]] == ["Leopardus pardalis", "Leopardus wiedii"]
    assert decisions.scores_R[0] > alternatives[0][1]


def test_nothing_listed_abstains(cats: tuple[Classes, Taxa], tmp_path: Path) -> None:
    classes, taxa = cats
    path = tmp_path / "list.csv"
    path.write_text("common,latin\nbird,Crax rubra\n")
    p = np.eye(7)[[0, 3, 4]]
    decisions = run(p, classes, taxa, {"species_list": {"file": path}, "pooling": {"method": "none"}})
    assert decisions.names().to_pylist() == ["unknown", "Crax rubra", "blank"]
    assert [trace[1]["did"] for trace in sources(decisions)][0] == "no_listed_class"


def test_restriction_ends_below_the_kingdom(cats: tuple[Classes, Taxa], tmp_path: Path) -> None:
    classes, taxa = cats
    path = tmp_path / "list.csv"
    path.write_text("latin,common\nPuma concolor,puma\n")
    stages = {"species_list": {"file": path, "mode": "restrict"}, "pooling": {"method": "none"}}
    p = np.eye(7)[[0, 3, 4, 2]]
    decisions = run(p, classes, taxa, stages)
    # Walking down from the kingdom would make a bird a puma.
    assert decisions.names().to_pylist() == ["Felidae", "animal", "blank", "Puma concolor"]
    stages["species_list"] |= {"walk_down": True}
    assert run(p, classes, taxa, stages).names().to_pylist() == ["Puma concolor", "animal", "blank", "Puma concolor"]
    assert restrict_classes(["puma"], classes, taxa, walk_down=False, where="list")[2] == taxa.index("7")


def test_smoothing_keeps_images_and_their_scores(cats: tuple[Classes, Taxa]) -> None:
    classes, taxa = cats
    p = np.full((5, 7), 0.02)
    p[[0, 1, 2, 3], 0] = p[4, 3] = 0.88
    stages = {"pooling": {"method": "megadetector"}, "rollup": {"enabled": False}}
    decisions = run(p, classes, taxa, stages, events=[0] * 5)
    assert decisions.names().to_pylist() == ["Leopardus pardalis"] * 5
    np.testing.assert_allclose(decisions.scores_R, 0.88)
    undetected = BestDetections(np.array([0, 0, 0, 0, -1]), np.array([0.9, 0.9, 0.9, 0.9, 0.0]))
    decisions = run(p, classes, taxa, stages, events=[0] * 5, detections=undetected)
    assert decisions.names().to_pylist()[4] == "Crax rubra"


def test_speciesnet_rules_answer_with_our_taxa(cats: tuple[Classes, Taxa], tmp_path: Path) -> None:
    classes, taxa = cats
    p = np.array(
        [[0.5, 0.4, 0, 0, 0.1, 0, 0], [0.9, 0, 0.1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0], [0.3, 0, 0, 0.3, 0.4, 0, 0]]
    )
    detections = BestDetections(np.array([0, 1, -1, 0]), np.array([0.9, 0.8, 0.0, 0.6]))
    stages = {"rules": {"rules": "speciesnet"}, "pooling": {"method": "none"}}
    decisions = run(p, classes, taxa, stages, detections=detections)
    assert decisions.names().to_pylist() == ["Leopardus", "human", "blank", "animal"]
    assert [trace[-1]["did"] for trace in sources(decisions)][:2] == ["classifier+rollup_to_genus", "detector"]
    fence = tmp_path / "fence.json"
    key = "mammalia;;felidae;leopardus;pardalis"
    fence.write_text(json.dumps({key: {"allow": {"MEX": []}}}))
    stages["rules"] |= {"geofence": fence, "country": "KEN"}
    assert run(p[1:2], classes, taxa, stages).names().to_pylist() == ["Felidae"]
    listing = tmp_path / "list.txt"
    listing.write_text("ocelot")
    listed = run(p[1:2], classes, taxa, stages | {"species_list": {"file": listing}})
    assert listed.names().to_pylist() == ["Leopardus pardalis"], "a geofence removed a listed species"


def test_animals_roll_up_to_animal_in_any_order_of_the_list(tmp_path: Path) -> None:
    cat, bird = "t1;mammalia;carnivora;felidae;;;cat family", "t2;aves;;;;;bird"
    human = "t3;mammalia;primates;hominidae;homo;sapiens;person"
    path = tmp_path / "taxonomy.txt"
    for special in permutations((ANIMAL, BLANK, VEHICLE, UNKNOWN)):
        path.write_text("\n".join((cat, human, *special)) + "\n")
        taxonomy = read_taxonomy(path)
        assert taxonomy == {
            "mammalia;carnivora;felidae;;": cat,
            "mammalia;primates;hominidae;homo;sapiens": HUMAN,
            ";;;;": ANIMAL,
        }
        prediction = SpeciesNetRules(taxonomy).combine([cat, bird], [0.5, 0.4], detection="animal", confidence=0.3)
        assert prediction == (ANIMAL, pytest.approx(0.9), "classifier+rollup_to_kingdom")


def test_speciesnet_rules_roll_up_to_animal_without_a_kingdom_of_ours() -> None:
    rows = [("1", "Mammalia", "class"), ("2", "Aves", "class")]
    taxa = Taxa.from_rows({"id": i, "name": name, "rank": rank, "parent": "", "common": ""} for i, name, rank in rows)
    classes = Classes(("mammal", "bird"), np.arange(2))
    decisions = run(np.array([[0.5, 0.5]]), classes, taxa, {"rules": {"rules": "speciesnet"}})
    assert decisions.names().to_pylist() == ["animal"]
    assert sources(decisions)[0][-1]["did"] == "classifier+rollup_to_kingdom"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Leopardus pardallis\nPuma concolor\nFelis", ["Leopardus pardallis", "Leopardus pardalis", "Felis"]),
        ("", ["empty"]),
        ("latin,common\n,puma\n", ["empty"]),
    ],
)
def test_bad_lists(cats: tuple[Classes, Taxa], tmp_path: Path, text: str, names: list[str]) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    with raises_naming(UserError, "list.csv", *names):
        prepare_stages(Stages.model_validate({"species_list": {"file": path}}), *cats)


def test_other_bad_input(cats: tuple[Classes, Taxa], tmp_path: Path) -> None:
    classes, taxa = cats
    binary = tmp_path / "list.bin"
    binary.write_bytes(b"\xff\xfe\x00")
    with raises_naming(UserError, "list.bin", "UTF-8"):
        read_list(binary)
    with raises_naming(UserError, "nowhere.txt"):
        read_list(tmp_path / "nowhere.txt")
    with raises_naming(UserError, "probabilities", "7"):
        run(np.ones((2, 3)), classes, taxa, {})
    with raises_naming(UserError, "logits"):
        run(np.full((1, 7), -1.0), classes, taxa, {})
    with raises_naming(UserError, "hours", "(2,)"):
        run(np.ones((2, 7)), classes, taxa, {}, hours=[1.0])
    with raises_naming(UserError, "--place-prior", "--prior"):
        prepare_stages(Stages.model_validate({"prior": {"by_place": True}}), classes, taxa)
    with raises_naming(UserError, "--geofence"):
        prepare_stages(Stages.model_validate({"rules": {"rules": "speciesnet", "country": "KEN"}}), classes, taxa)
    assert match_classes(["ocelot", "Aves"], classes, taxa, where="x")[:4].tolist() == [True, False, False, True]
    empty = run(np.ones((0, 7)), classes, taxa, {})
    assert len(empty) == 0
    assert empty.to_columns()["source"].to_pylist() == []


def test_a_label_of_a_higher_taxon_admits_its_descendants(cats: tuple[Classes, Taxa]) -> None:
    _, taxa = cats
    classes = Classes(("cats", "ocelot", "curassow"), np.array([taxa.index(i) for i in ("3", "5", "9")]))
    assert match_classes(["cats"], classes, taxa, where="list").tolist() == [True, True, False]
    assert match_classes(["ocelot"], classes, taxa, where="list").tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("stages", "parts"),
    [
        ({"rules": {"country": "KEN"}}, ("country KEN", "--rules")),
        ({"rules": {"rules": "speciesnet", "state": "CA"}}, ("state CA", "--country")),
        ({"species_list": {"walk_down": True}}, ("walk down", "--list")),
        ({"prior": {"strength": 2}}, ("strength 2", "--place-prior")),
        ({"pooling": {"method": "none", "weights": "detection"}}, ("weights detection", "--pooling")),
    ],
)
def test_options_without_effect_are_said(
    cats: tuple[Classes, Taxa], capsys: pytest.CaptureFixture[str], stages: dict[str, Any], parts: tuple[str, str]
) -> None:
    prepare_stages(Stages(), *cats)
    assert not capsys.readouterr().err
    prepare_stages(Stages.model_validate(stages), *cats)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert all(part in lines[0] for part in (*parts, "has no effect"))
