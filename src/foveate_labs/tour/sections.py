"""Sections of the tour's page: its questions, and its federated part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveate.core.results import ResultModel
from foveate.records.conversations import REGION
from foveate.report import numbers
from foveate.report.charts import legend, plot, ranked, scatter
from foveate.report.images import Overlay
from foveate.report.numbers import size_words
from foveate_labs.studies.results import AskedQuestion, AskedScene, AskedTally, NamedRegion, TourAsk

# The tour's section "Ask it": images with their questions.


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


def tally_text(tally: AskedTally) -> tuple[str, str]:
    """Return "N of M" and the rest of the sentence."""
    names = "with names that it never saw" if tally.unseen_names else "with names that it was trained on"
    right = tally.right
    controls = f"{right.get('no image', 0)} without the image, {right.get('another image', 0)} with another image"
    return f"{right.get('image', 0)} of {tally.n}", f"questions about scenes {names} answered right; {controls}"


def asked_section(ask: TourAsk) -> dict[str, Any]:
    """Build what the page shows of one model."""
    return {
        "r": ask,
        "photographs": [_card(scene, scene.questions) for scene in ask.photographs],
        "photograph_tallies": [
            (f"{tally.right} of {tally.n}", f"questions about photographs answered right: {tally.kind}")
            for tally in ask.photograph_tallies
        ],
        "scenes": [_card(scene, scene.questions) for scene in ask.scenes],
        "tallies": [tally_text(tally) for tally in ask.tallies if tally.n],
    }


# The tour's federated part: two maps, groups with images, what left each client.


MEASURES = (
    ("knn", "Neighbors’ vote", "held-out images whose kind 7 neighbors on the map vote for"),
    ("trustworthiness", "Trust", "neighbors on the map are neighbors in the features; 1 is best"),
    ("continuity", "Continuity", "neighbors in the features are neighbors on the map; 1 is best"),
    ("foreign", "Foreign", "share of neighbors on the map from another client"),
    ("foreign_in_space", "Foreign in the features", "the same in the features: what a faithful map would show"),
)


class FederatedGrouping(ResultModel):
    title: str
    nmi: float
    purity: float


class FederatedMap(ResultModel):
    title: str
    quality: dict[str, float]
    bytes_up: int
    bytes_down: int
    positions: list[list[float]]
    notes: dict[str, int] = {}


class FederatedClient(ResultModel):
    name: str
    images: int
    kinds: list[str]
    groups: int
    maps: dict[str, int]


class FederatedImage(ResultModel):
    image: str
    kind: str = ""


class FederatedGroup(ResultModel):
    group: int
    size: int
    clients: int
    kind: str
    share: float
    images: list[FederatedImage] = []


class TourFederated(ResultModel):
    images: int
    features: int
    clusters: int
    method: str
    rounds: int
    held_out: int
    sentence: str
    groupings: list[FederatedGrouping]
    maps: list[FederatedMap]
    owners: list[int]
    labels: list[str]
    groups: list[int]
    clients: list[FederatedClient]
    examples: list[FederatedGroup] = []


def federated_section(r: TourFederated) -> dict[str, Any]:
    """Build the values of the template: rows of maps, tables, and totals."""
    names = [client.name for client in r.clients]
    colored = (
        ("By kind", r.labels, False),
        ("By client", [names[owner] for owner in r.owners], False),
        ("By group", [str(group) for group in r.groups], True),
    )
    rows = []
    for title, values, named in colored:
        # One set of colors per row of maps: a kind must not change its color from map to map.
        styles = ranked(values)
        drawn = [
            plot(
                drawn_map.title,
                scatter(drawn_map.positions, values, styles, title=f"{drawn_map.title}, {title.lower()}", named=named),
            )
            for drawn_map in r.maps
        ]
        rows.append({"title": title, "maps": drawn, "legend": legend(styles)})
    # A measure that no map has would be a column of dashes.
    measures = [measure for measure in MEASURES if any(measure[0] in drawn.quality for drawn in r.maps)]
    lines = [
        {
            "title": drawn_map.title,
            "cells": [f"{drawn_map.quality[key]:.3f}" if key in drawn_map.quality else "–" for key, _, _ in measures],
            "sent": size_words(drawn_map.bytes_up),
            "received": size_words(drawn_map.bytes_down),
        }
        for drawn_map in r.maps
    ]
    clients = [
        {
            "name": client.name,
            "images": numbers.count(client.images),
            "kinds": ", ".join(client.kinds),
            "groups": size_words(client.groups),
            "maps": [size_words(size) for size in client.maps.values()],
        }
        for client in r.clients
    ]
    return {
        "r": r,
        "rows": rows,
        "heads": [(title, what) for _, title, what in measures],
        "lines": lines,
        "clients": clients,
        "titles": [drawn_map.title for drawn_map in r.maps],
        "notes": [
            f"{drawn_map.title}: {note} ({count} times)"
            for drawn_map in r.maps
            for note, count in drawn_map.notes.items()
        ],
        "kinds": max(len(client.kinds) for client in r.clients),
        "sent": size_words(sum(client.groups for client in r.clients)),
    }
