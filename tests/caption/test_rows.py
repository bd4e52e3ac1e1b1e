"""Targets of both stages: what is written, what is dropped, and that nothing is made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveate.caption.lengths import LENGTH_FILTERS, count_clip_tokens
from foveate.caption.response_parser import parse_caption, serialize
from foveate.caption.settings import TargetSettings
from foveate.caption.targets.material import Material, read_material
from foveate.caption.targets.rewriting import Rules, content_words, find_names, fuse, new_words, open_rewriter
from foveate.caption.targets.rows import TargetRows, check_target, write_rows
from foveate.core.errors import UserError
from foveate.records.collection import Collection
from naming import raises_naming

LONG = (
    "A photograph of a gray dog, a red ball and two children on a green lawn. The dog stands on the left side and "
    "looks at the ball. The ball lies in front of the children. A wooden fence runs behind the lawn. It may be autumn, "
    "as some leaves are brown. The light is soft."
)
SHORT = ("a dog on a lawn", "A gray dog looks at a ball.", "two children and a dog", "A dog with a red ball", "dog")


@pytest.fixture(scope="module")
def rows(scene_collection: Path) -> TargetRows:
    collection = Collection.open(scene_collection)
    settings = TargetSettings()
    materials, counts = read_material(collection, collection.rows("train"), settings, seed=0)
    assert counts == {"scenes": 24, "singles": 0, "texts": 0, "none": 0}
    return write_rows(materials, settings, Rules(), seed=0)


def test_every_target_parses_and_passes_its_gate(rows: TargetRows) -> None:
    assert {row.stage for row in rows.rows} == {1, 2}
    assert {row.kind for row in rows.of_stage(2)} == {"ssc", "dsc", "dsc_plus", "afc"}
    for row in rows.rows:
        assert parse_caption(serialize(row.target)).caption == row.target
        assert (
            LENGTH_FILTERS[row.kind].min_tokens
            <= count_clip_tokens(row.target)
            == row.tokens
            <= LENGTH_FILTERS[row.kind].max_tokens
        )
        assert bool(row.alt) == (row.kind == "afc")


def test_the_seed_decides_the_rows(rows: TargetRows, scene_collection: Path) -> None:
    collection, settings = Collection.open(scene_collection), TargetSettings()
    again, _ = read_material(collection, collection.rows("train"), settings, seed=0)
    assert write_rows(again, settings, Rules(), seed=0).rows == rows.rows
    assert write_rows(again, settings, Rules(), seed=1).rows != rows.rows


def test_everything_is_written_or_counted(rows: TargetRows) -> None:
    for kind in ("ssc", "dsc", "dsc_plus"):
        for stage in (1, 2):
            written = sum(row.kind == kind for row in rows.of_stage(stage))
            dropped = sum(n for (s, k, _), n in rows.dropped.items() if (s, k) == (stage, kind))
            assert written + dropped == 24, (kind, stage)


def test_a_third_of_the_alt_texts_is_noise_that_the_target_ignores() -> None:
    materials = [
        Material(
            row=number,
            key=f"k{number}",
            source="test",
            formats={
                "dsc": f"A picture of a {name}. The {name} is in the middle of the picture. The background is plain."
            },
            alt=name,
            alt_clean=True,
        )
        for number, name in enumerate(f"thing{letter}{digit}" for letter in "abcdefghij" for digit in "abcdefghij")
    ]
    settings = TargetSettings(noisy_alt=0.3, invented_names=0.0)
    made = [row for row in write_rows(materials, settings, Rules(), seed=0).rows if row.kind == "afc"]
    noisy = [row for row in made if row.alt not in row.target]
    assert len(made) == 100
    assert 15 <= len(noisy) <= 45
    settings = TargetSettings(noisy_alt=0.0, invented_names=1.0)
    made = [row for row in write_rows(materials, settings, Rules(), seed=0).rows if row.kind == "afc"]
    for row in made:
        _, name = row.alt.split(", ", 1)
        assert row.target.endswith(f"The picture is about {name}.")


def test_what_an_alt_text_names_comes_first_in_its_afc() -> None:
    told = "A picture of a {}. There is a {}. The background is drawn."
    material = Material(
        row=0,
        key="k",
        source="test",
        formats={"dsc": told.format("cat", "dog")},
        describe=lambda fact: told.format(fact, "cat"),
        alt="My Dog",
        alt_clean=True,
        facts=("cat", "dog"),
    )
    settings = TargetSettings(noisy_alt=0.0, invented_names=0.0)
    (made,) = [row for row in write_rows([material], settings, Rules(), seed=0).rows if row.kind == "afc"]
    assert (made.alt, made.target) == ("My Dog", told.format("dog", "cat"))


def test_short_and_descriptive_targets_of_scenes_say_what_can_be_seen(rows: TargetRows) -> None:
    """Never which photograph lies behind: of held-out grounds no one could tell."""
    for row in rows.of_stage(2):
        if row.kind in ("ssc", "dsc"):
            assert "shows" not in row.target
        if row.kind == "dsc":
            assert row.target.endswith(("The background is drawn.", "The background is a photograph."))
    assert any("The background shows" in row.target for row in rows.rows if row.kind == "dsc_plus")


def test_short_captions_are_merged_without_new_words() -> None:
    found = Rules().merge_captions(SHORT, ["STOP", "here"])
    assert set(found) == {"ssc", "dsc", "dsc_plus"}
    for text in found.values():
        assert not new_words(text, [*SHORT, "STOP", "here"])
    assert 'The words "STOP here" are written in the picture.' in found["dsc"]
    assert found["ssc"].rstrip(".").lower() in [text.rstrip(".").lower() for text in SHORT]
    assert Rules().merge_captions([], []) == {}


def test_a_description_is_only_cut() -> None:
    found = Rules().shorten_description(LONG)
    assert count_clip_tokens(found["ssc"]) <= LENGTH_FILTERS["ssc"].max_tokens
    assert found["ssc"].startswith("A gray dog")
    assert found["dsc"] == " ".join(found["dsc_plus"].split()[: len(found["dsc"].split())])
    assert count_clip_tokens(found["dsc"]) <= 60
    assert found["dsc_plus"] == LONG
    assert "may be autumn" in found["dsc_plus"]
    assert Rules().shorten_description("  ") == {}


def test_made_up_words_and_bad_lengths_are_refused() -> None:
    assert check_target("ssc", "A gray dog on a lawn.", ["a gray dog on a lawn"]) == ("A gray dog on a lawn.", "")
    assert check_target("ssc", "A dog and a unicorn.", ["a dog"]) == ("", "new word")
    assert check_target("ssc", "A dog and a unicorn.", None) == ("A dog and a unicorn.", "")
    assert check_target("dsc_plus", "A dog.", ["dog"]) == ("", "gate: too_short")


def test_names_of_an_alt_text_are_kept_exactly() -> None:
    assert find_names("the old market of Brennau, 1967", ["An old market."]) == ("Brennau", "1967")
    assert find_names("Red Apple On A Plate", ["An apple."]) == ()
    assert find_names("a market", ["A market."]) == ()
    text = fuse("A picture of a dog. There is a ball. The sky is grey.", ["Port Ellery"], alt="grey sky", max_tokens=75)
    assert text == "A picture of a dog. The sky is grey. There is a ball. The picture is about Port Ellery."
    short = fuse("A picture of a dog. There is a ball. The sky is grey.", ["Port Ellery"], alt="", max_tokens=20)
    assert short == "A picture of a dog. There is a ball. The picture is about Port Ellery."


def test_own_caption_kinds_make_both_stages(tiny_collection: Path) -> None:
    collection = Collection.open(tiny_collection)
    settings = TargetSettings(short_kinds=("alt", "title"), description_kinds=("title",), ocr="none")
    materials, counts = read_material(collection, collection.rows("train"), settings, seed=0)
    assert counts == {"scenes": 0, "singles": 0, "texts": 16, "none": 2}
    rows = write_rows(materials, settings, Rules(), seed=0)
    assert {row.source for row in rows.rows} == {"texts"}
    assert {row.rewrite for row in rows.rows} == {"rules-1"}
    assert {row.stage for row in rows.rows} == {1, 2}
    for row in rows.rows:
        captions = collection.read_captions(row.row)
        assert content_words(row.target) <= set().union(*(content_words(caption.text) for caption in captions))


def test_without_named_kinds_real_images_have_no_material(tiny_collection: Path) -> None:
    collection = Collection.open(tiny_collection)
    materials, counts = read_material(collection, np.arange(4), TargetSettings(), seed=0)
    assert materials == []
    assert counts["none"] == 4


def test_unknown_sources_and_rewriters_name_the_nearest() -> None:
    with raises_naming(UserError, "rules"):
        open_rewriter(TargetSettings(rewriter="rule"))
