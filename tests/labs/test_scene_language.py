"""Captions of scenes: exact ones say no lie, noisy ones come in the documented kinds and rates."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from foveate_labs.worlds.scenes import draw_scene
from foveate_labs.worlds.scenes import scene as alt_text
from foveate_labs.worlds.scenes.language import Relation, Thing, add_article, exact_caption, format_count, join_phrases


@pytest.mark.parametrize(
    ("phrase", "said"),
    [
        ("owl", "an owl"),
        ("teapot", "a teapot"),
        ("eyeglasses", "eyeglasses"),
        ("unicorn face", "a unicorn face"),
        ("x-ray", "an x-ray"),
        ("bread", "bread"),
        ("slice of pizza", "a slice of pizza"),
        ("father christmas", "father christmas"),
        ("glass", "a glass"),
    ],
)
def test_articles(phrase: str, said: str) -> None:
    assert add_article(phrase) == said


def test_counts_and_lists() -> None:
    assert format_count("cat", 1) == "a cat"
    assert format_count("cat", 2) == "two pictures of a cat"
    assert join_phrases(["a"]) == "a"
    assert join_phrases(["a", "b", "c"]) == "a, b and c"


def test_exact_caption_states_relation_counts_ground_and_text() -> None:
    things = [Thing("owl", 900.0), Thing("teapot", 400.0)]
    counts = {"owl": 1, "teapot": 1, "cat": 2}
    caption = exact_caption(counts, [Relation(0, "left of", 1)], things, "grass", "sale")
    assert caption == 'An owl to the left of a teapot, two pictures of a cat and the word "sale" on grass'


def test_exact_captions_name_every_visible_thing() -> None:
    for index in range(40):
        scene = draw_scene(seed=2, split="test", index=index, size=128)
        caption = next(c.text for c in scene.captions if c.kind == "exact").lower()
        for phrase in scene.counts:
            assert phrase in caption


def test_noise_comes_in_the_documented_rates() -> None:
    assert sum(alt_text.RATES.values()) == pytest.approx(1)
    rng = np.random.default_rng(0)
    things = [Thing("wine glass", 900.0), Thing("cat", 400.0), Thing("red apple", 300.0)]
    found = Counter(alt_text.draw_alt_text(rng, things, "grass").kind for _ in range(4000))
    for kind, rate in alt_text.RATES.items():
        assert found[kind] / 4000 == pytest.approx(rate, abs=0.025)


def test_noise_looks_like_real_titles() -> None:
    rng = np.random.default_rng(1)
    things = [Thing("wine glass", 900.0), Thing("cat", 400.0)]
    texts: dict[str, set[str]] = {kind: set() for kind in alt_text.RATES}
    for _ in range(3000):
        drawn = alt_text.draw_alt_text(rng, things, "grass")
        texts[drawn.kind].add(drawn.text)
    assert "Clipart by Anna B. - wine glass" in texts["credit"]
    assert any(text.endswith(".png") for text in texts["file name"])
    assert {"bicchiere", "gatto"} & texts["other language"]
    assert all("," in text for text in texts["keywords"])
    assert not any("wine" in text or "cat" in text for text in texts["batch"])


def test_alt_text_is_a_pure_function_of_its_generator() -> None:
    things = [Thing("cat", 1.0)]
    drawn = [alt_text.draw_alt_text(np.random.default_rng(7), things, "grass") for _ in range(2)]
    assert drawn[0] == drawn[1]
