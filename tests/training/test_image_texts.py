"""Which text an epoch draws: kinds lent to alt, captions of several models, and the ablations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.record import Caption
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter
from foveate.training.image_texts import ImageTexts, TextRule
from foveate.training.mixture import MixtureSampler
from naming import raises_naming
from tiny import draw, image_bytes

IMAGES = 40


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Half of the images have an alt-text, all a title; three quarters a short caption, some of two models."""
    path = tmp_path_factory.mktemp("texts") / "made"
    with CollectionWriter(path, source="test") as writer:
        for n in range(IMAGES):
            texts = [Caption(f"title {n}", "title"), Caption(f"word{n}", "dsc")]
            texts += [Caption(f"alt {n}", "alt")] * (n % 2 == 0)
            writer.add(f"p{n:02d}", image_bytes(draw([], size=(16, 16), seed=n)), captions=texts, split="train")
    for model, created, keep in (("old", "2026-01-01T00:00:00+00:00", 4), ("new", "2026-02-01T00:00:00+00:00", 8)):
        with CollectionWriter(path, source="test") as writer:
            rows: list[dict[str, Any]] = [
                {"key": f"p{n:02d}", "kind": "ssc", "text": f"{model} says {n}. And more.", "request": f"{model}{n}"}
                for n in range(IMAGES)
                if n % keep != keep - 1
            ]
            writer.annotate("captions", rows, Provenance("captioner", model, "", created))
    return Collection.open(path)


def texts(
    collection: Collection, weights: dict[str, float], *, prefer: tuple[str, ...] = (), **rule: Any
) -> ImageTexts:
    sampler = MixtureSampler(weights, sources=list(weights), missing=rule.pop("missing", "renormalize"))
    return ImageTexts(collection, TextRule(sampler, **rule), prefer=prefer)


def test_a_title_is_lent_to_alt(collection: Collection) -> None:
    image_texts = texts(collection, {"alt": 1.0})
    assert image_texts.read_row(0) == {"alt": ("alt 0",)}
    assert image_texts.read_row(1) == {"alt": ("title 1",)}
    titles = texts(collection, {"alt": 1.0, "title": 1.0})
    assert titles.read_row(1) == {"title": ("title 1",)}


def test_the_newest_model_counts_and_a_preferred_one_before_it(collection: Collection) -> None:
    assert texts(collection, {"ssc": 1.0}).read_row(0) == {"ssc": ("new says 0. And more.",)}
    assert texts(collection, {"ssc": 1.0}, prefer=("old",)).read_row(0) == {"ssc": ("old says 0. And more.",)}
    assert texts(collection, {"ssc": 1.0}).read_row(3) == {"ssc": ("new says 3. And more.",)}
    assert texts(collection, {"ssc": 1.0}).read_row(7) == {}
    with raises_naming(UserError, "old"):
        texts(collection, {"ssc": 1.0}, prefer=("olde",))


def test_only_rows_with_a_text_to_draw(collection: Collection) -> None:
    rows = np.arange(IMAGES)
    wanted = [n for n in range(IMAGES) if n % 8 != 7]
    assert texts(collection, {"ssc": 1.0}).rows_with_text(rows).tolist() == wanted
    # The alt-text of concat stands before a caption; alone it is no text of this mixture.
    assert texts(collection, {"ssc": 1.0}, combine="concat").rows_with_text(rows).tolist() == wanted
    assert len(texts(collection, {"alt": 1.0}).rows_with_text(rows)) == IMAGES


def test_combined_texts(collection: Collection) -> None:
    concat = texts(collection, {"ssc": 1.0}, combine="concat").draw(0, seed=0, epoch=0)
    assert concat == ("alt+ssc", "alt 0. new says 0. And more.")
    part = texts(collection, {"ssc": 1.0}, combine="part")
    assert {drawn.text for v in range(40) if (drawn := part.draw(0, seed=0, epoch=v))} == {"new says 0.", "And more."}
    assert texts(collection, {"alt": 1.0}, combine="fuse").draw(0, seed=0, epoch=0) == ("alt", "alt 0")
    # A text of one word falls back to the original.
    uniform = texts(collection, {"dsc": 1.0}, combine="uniform").draw(2, seed=0, epoch=0)
    assert uniform == ("alt", "alt 2")
    every = texts(collection, {"title": 0.01, "ssc": 9.0}, combine="uniform")
    drawn = [image_texts.kind for epoch in range(400) if (image_texts := every.draw(0, seed=0, epoch=epoch))]
    assert abs(drawn.count("title") / 400 - 0.5) < 4 * 0.025


@pytest.mark.parametrize("combine", ["none", "concat", "fuse", "part", "uniform"])
def test_possible_texts_hold_all_that_is_drawn(collection: Collection, combine: Any) -> None:
    image_texts = texts(collection, {"alt": 1.0, "ssc": 1.0}, combine=combine)
    rows = image_texts.rows_with_text(np.arange(IMAGES))
    possible = set(image_texts.list_possible(rows).to_pylist())
    drawn = {
        one.text for row in rows.tolist() for epoch in range(20) if (one := image_texts.draw(row, seed=0, epoch=epoch))
    }
    assert drawn <= possible


def test_weight_given_to_alt(collection: Collection) -> None:
    image_texts = texts(collection, {"ssc": 1.0, "alt": 0.0}, missing="alt")
    assert image_texts.draw(7, seed=0, epoch=0) == ("alt", "title 7")
    assert image_texts.draw(0, seed=0, epoch=0) == ("ssc", "new says 0. And more.")


def test_expected_and_drawn_shares_agree(collection: Collection) -> None:
    image_texts = texts(collection, {"alt": 1.0, "ssc": 3.0})
    rows = image_texts.rows_with_text(np.arange(IMAGES)).tolist()
    expected = image_texts.compute_expected_shares(rows)
    assert expected["ssc"] == pytest.approx(0.75 * 35 / 40)
    drawn = sum((image_texts.count_drawn(rows, seed=0, epoch=epoch)["ssc"] for epoch in range(50)), 0) / (
        50 * len(rows)
    )
    assert abs(drawn - expected["ssc"]) < 4 * (0.75 * 0.25 / (50 * 35)) ** 0.5
