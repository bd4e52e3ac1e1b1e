"""The tour's section "Ask it": scenes with their questions, the slides of the first screen, and a training's curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from foveate.records.conversations import REGION
from foveate.report.charts import Series, line_chart, plot
from foveate.report.images import Overlay
from foveate_labs.studies.results import AskedQuestion, AskedScene, AskedTally, LearningCurve, NamedRegion, TourAsk

NUM_SLIDES, NUM_QUESTIONS = 3, 2
CURVE = "Nearest name is right"


@dataclass(frozen=True, slots=True)
class QuestionCard:
    """A question with the positions of its boxes among those of its image."""

    question: AskedQuestion
    text: str
    boxes: str


@dataclass(frozen=True, slots=True)
class SceneCard:
    """An image, the boxes of all its questions, the questions, and regions that answer a click."""

    image: str
    overlays: list[Overlay]
    questions: list[QuestionCard]
    regions: list[NamedRegion]


def _card(scene: AskedScene, questions: list[AskedQuestion]) -> SceneCard:
    overlays: list[Overlay] = []
    cards = []
    for question in questions:
        start = len(overlays)
        styles = ((question.region, "region"), (question.true_box, "truth"), (question.box, "default"))
        overlays += [Overlay(box, style) for box, style in styles if box is not None]
        text = question.question.replace(REGION, "[box]")
        cards.append(QuestionCard(question, text, " ".join(map(str, range(start, len(overlays))))))
    # Small regions last, so that they lie on top and can be selected.
    regions = sorted(scene.regions, key=lambda region: -_area(region.box))
    return SceneCard(scene.image, overlays, cards, regions)


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def slides(scenes: list[AskedScene]) -> list[SceneCard]:
    """Return the first scenes with their first questions that have a box, right or wrong."""
    with_boxes = [(scene, [q for q in scene.questions if q.region or q.box][:NUM_QUESTIONS]) for scene in scenes]
    return [_card(scene, questions) for scene, questions in with_boxes[:NUM_SLIDES] if questions]


def curve(training: LearningCurve) -> Markup:
    """Draw the share of right nearest names by step, with its control."""
    series = [
        Series(name, [(point[0], point[index]) for point in training.points], style)
        for name, index, style in (("its image", 1, 1), ("another image", 2, 2))
    ]
    chart = line_chart(series, title=CURVE, from_zero=True)
    return plot(CURVE, chart) if chart else Markup("")


def tally_text(tally: AskedTally) -> tuple[str, str]:
    """Return "N of M" and the rest of the sentence."""
    names = "with names that it never saw" if tally.unseen_names else "with names that it was trained on"
    right = tally.right
    controls = f"{right.get('no image', 0)} without the image, {right.get('another image', 0)} with another image"
    return f"{right.get('image', 0)} of {tally.n}", f"questions {names} answered right; {controls}"


def asked_section(ask: TourAsk) -> dict[str, Any]:
    """Build the section of the tour's page."""
    return {
        "r": ask,
        "scenes": [_card(scene, scene.questions) for scene in ask.scenes],
        "tallies": [tally_text(tally) for tally in ask.tallies if tally.n],
        "chart": curve(ask.training) if ask.training else None,
    }
