"""Formats rendered from scenes (specification of captions, 7.3): they differ as they should, and errors are found."""

from __future__ import annotations

import numpy as np
import pytest
from made_scenes import rng, scenes

from foveate.caption.audit_metrics import collect_entities
from foveate.caption.splitter import count, split
from foveate.metrics.captions import UNVERIFIABLE, assertion_metrics, overlap
from foveate_labs.captions.ground_truths.scenes import judge_assertions
from foveate_labs.captions.scene_captions import KINDS, render

SCENES = 240


def rendered(kind: str, *, hallucinations: float = 0.0, alt: str | None = None) -> list[str]:
    return [
        render(kind, truth, alt=text if alt is None else alt, rng=rng(index), hallucinations=hallucinations).text
        for index, (truth, text) in enumerate(scenes(SCENES))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_statement_is_one_assertion_and_holds(kind: str) -> None:
    made = [render(kind, truth, alt="", rng=rng(i)) for i, (truth, _) in enumerate(scenes(SCENES))]
    counts = [count(one.text) == one.num_claims for one in made]
    assert np.mean(counts) >= 0.98  # names such as "face with two eyes and three hearts" may be split
    verdicts = [judge_assertions(split(one.text), truth) for one, (truth, _) in zip(made, scenes(SCENES), strict=True)]
    found = assertion_metrics(verdicts)
    assert found["contradicted_rate"] == 0
    assert found["accuracy_micro"] >= 0.995


def test_formats_grow() -> None:
    captions = {kind: rendered(kind) for kind in ("ssc", "dsc", "dsc_plus")}
    words = [np.mean([len(text.split()) for text in texts]) for texts in captions.values()]
    ana = [np.mean([count(text) for text in texts]) for texts in captions.values()]
    for rising in (words, ana):
        assert rising[1] >= 1.5 * rising[0]
        assert rising[2] >= 1.5 * rising[1]


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_injected_errors_lower_accuracy_by_their_rate(rate: float) -> None:
    verdicts = [
        judge_assertions(split(text), truth)
        for text, (truth, _) in zip(rendered("dsc_plus", hallucinations=rate), scenes(SCENES), strict=True)
    ]
    found = assertion_metrics(verdicts)
    assert found["n_assertions"] >= 2000
    assert found["accuracy_micro"] == pytest.approx(1 - rate, abs=0.03)


def test_shuffled_captions_hold_less_at_the_same_richness() -> None:
    texts = rendered("dsc")
    shuffled = texts[1:] + texts[:1]

    def measured(said: list[str]) -> dict:
        return assertion_metrics(
            [judge_assertions(split(t), truth) for t, (truth, _) in zip(said, scenes(SCENES), strict=True)]
        )

    own, other = measured(texts), measured(shuffled)
    assert own["ana"] == other["ana"]
    assert other["accuracy_micro"] < own["accuracy_micro"] - 0.4


def test_afc_covers_names_of_the_alt_text() -> None:
    alts = [
        f"{next(iter(truth.things)).phrase} from Port Ellery {index}" for index, (truth, _) in enumerate(scenes(60))
    ]

    def coverage(kind: str) -> float | None:
        texts = [render(kind, truth, alt=alts[i], rng=rng(i)).text for i, (truth, _) in enumerate(scenes(60))]
        words = collect_entities([text.lower().replace(".", "").split() for text in texts])
        return overlap(words, collect_entities([alt.split() for alt in alts]))["alt_coverage"]

    afc, dsc = coverage("afc"), coverage("dsc")
    assert afc is not None
    assert dsc is not None
    assert afc >= dsc + 0.2


def test_afc_leaves_out_file_names_and_what_the_scene_contradicts() -> None:
    truth = scenes(1)[0][0]
    for alt in ("img_0979.jpg", "hash, unsorted", "untitled", "a penguin riding a kangaroo"):
        assert render("afc", truth, alt=alt, rng=rng(0)).alt_facts == ()
    assert render("afc", truth, alt="hash, by Anna B.", rng=rng(0)).text.endswith("The picture is by Anna B.")


def test_verdicts_of_alt_facts_are_open() -> None:
    truth = scenes(1)[0][0]
    text = render("afc", truth, alt="Port Ellery", rng=rng(0)).text
    assert judge_assertions(split(text), truth)[-1] == UNVERIFIABLE
