"""Verdicts from the truth of scenes: each kind of statement right, wrong and open."""

from __future__ import annotations

import pytest

from foveate.metrics.captions import CONTRADICTED, SUPPORTED, UNVERIFIABLE
from foveate.records.boxes import Box
from foveate_labs.captions.ground_truths.scenes import judge_assertion
from foveate_labs.captions.scene_truth import SceneTruth, Thing

# A red apple at the upper left, two dogs at the right, a wrench inside nothing, on bricks with the word "open".
TRUTH = SceneTruth(
    things=(
        Thing("red apple", Box(0.05, 0.05, 0.25, 0.25), 1.0),
        Thing("dog", Box(0.60, 0.10, 0.90, 0.40), 1.0),
        Thing("dog", Box(0.60, 0.60, 0.95, 0.95), 0.9),
        Thing("key", Box(0.65, 0.15, 0.70, 0.20), 1.0),
        Thing("smiling face with smiling eyes", Box(0.05, 0.60, 0.45, 0.95), 1.0),
    ),
    hidden=frozenset({"umbrella"}),
    written=("open",),
    ground="a brick wall",
    ground_kind="photo",
    shows=frozenset({"brick", "wall"}),
)


@pytest.mark.parametrize(
    ("assertion", "verdict"),
    [
        ("A red apple on a brick wall", SUPPORTED),
        ("There is an apple", SUPPORTED),  # all of the name's words are in a thing's name, with the same head
        ("There is a penguin", CONTRADICTED),
        ("There is an umbrella", UNVERIFIABLE),  # mostly hidden
        ("There are green apples", UNVERIFIABLE),  # perhaps a variant
        ("There is a brick", UNVERIFIABLE),  # the ground shows bricks
        ("There are two dogs", SUPPORTED),
        ("There are 2 dogs", SUPPORTED),
        ("There are two pictures of a dog", SUPPORTED),
        ("There are three dogs", CONTRADICTED),
        ("There is one dog", CONTRADICTED),
        ("There are two red apples", CONTRADICTED),
        ("The red apple is to the left of the key", SUPPORTED),
        ("The red apple is to the right of the key", CONTRADICTED),
        ("The key is above the smiling face with smiling eyes", SUPPORTED),
        ("The key is below the smiling face with smiling eyes", CONTRADICTED),
        ("The key is inside the outline of the dog", SUPPORTED),
        ("The red apple is inside the outline of the dog", CONTRADICTED),
        ("The red apple overlaps the dog", CONTRADICTED),
        ("The red apple is next to the key", UNVERIFIABLE),  # nothing says what is near
        ("The penguin is next to the key", CONTRADICTED),
        ("The red apple is in the upper left part of the picture", SUPPORTED),
        ("The red apple is in the lower right corner", CONTRADICTED),
        ("The red apple is in the middle of the picture", CONTRADICTED),
        ("On the right is a dog", SUPPORTED),
        ("On the left is a dog", CONTRADICTED),
        ("To the right of the red apple is a key", SUPPORTED),
        ("To the left of the red apple is a key", CONTRADICTED),
        ("The smiling face with smiling eyes is the largest thing", SUPPORTED),
        ("The key is the largest thing", CONTRADICTED),
        ("The background shows a brick wall", SUPPORTED),
        ("The background shows plaid cloth", CONTRADICTED),
        ("The background is a photograph", SUPPORTED),
        ("The background is drawn", CONTRADICTED),
        ('The word "open" is written in the picture', SUPPORTED),
        ('The word "closed" is written in the picture', CONTRADICTED),
        ("There is no writing in the picture", CONTRADICTED),
        ("There is no penguin", SUPPORTED),
        ("There is no dog", CONTRADICTED),
        ("The light is soft", UNVERIFIABLE),
        ("There are smiling eyes", UNVERIFIABLE),  # a name of its own, and part of another's
        ("Something smiling", SUPPORTED),  # a word of a name, by itself
        ("A smiling face", SUPPORTED),
        ("", UNVERIFIABLE),
    ],
)
def test_verdict(assertion: str, verdict: str) -> None:
    assert judge_assertion(assertion, TRUTH) == verdict
