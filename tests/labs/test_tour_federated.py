"""The tour's federated part on a few colored images: who holds what, what is counted, what is said."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.core.errors import UserError
from foveate.core.results import parse_result
from foveate.core.runs import RunFolder
from foveate.federated.results import ClusterResult
from foveate.metrics.intervals import Interval
from foveate.records.collection import Collection
from foveate.records.record import Caption
from foveate.records.writer import CollectionWriter
from foveate_labs.tour import federated as tested
from foveate_labs.tour.sections import TourFederated
from naming import raises_naming

COLORS = {"food": (220, 60, 40), "plant": (40, 170, 60), "sky": (60, 90, 220), "tool": (120, 120, 120)}
EACH = 24


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A collection of images in four categories and two styles, and features in which categories lie apart."""
    root = tmp_path_factory.mktemp("tour-federated")
    random = np.random.default_rng(0)
    styles, features = [], []
    with CollectionWriter(root / "emoji", license="CC0-1.0", source="test") as writer:
        for place, (category, color) in enumerate(COLORS.items()):
            for number in range(EACH):
                for style in ("noto", "twemoji"):
                    buffer = io.BytesIO()
                    Image.new("RGB", (32, 32), color).save(buffer, "PNG")
                    labels = {"source": "emoji", "style": style, "category": category}
                    title = Caption(f"{category} {number}", "title", "test")
                    key = f"{style}-{category}-{number}"
                    writer.add(key, buffer.getvalue(), captions=[title], labels=labels, group=key, split="train")
                    styles.append(style)
                    features.append(np.eye(4)[place] * 5 + 0.5 * random.normal(size=4))
    np.savez(root / "features.npz", features=np.array(features), style=np.array(styles), row=np.arange(len(styles)))
    return root / "emoji", root / "features.npz"


def test_from_features_to_the_section(emoji: tuple[Path, Path], tmp_path: Path) -> None:
    collection, features = Collection.open(emoji[0]), emoji[1]
    run = RunFolder.create(tmp_path / "run")
    found = tested.tour_federated(collection, run, features=features, seed=0, rounds=3)
    checked = parse_result(TourFederated, json.loads(json.dumps(found, allow_nan=False)))
    assert checked.images == len(COLORS) * EACH, "one style alone"
    assert sum(client.images for client in checked.clients) == checked.images
    assert len(checked.clients) == 8
    assert {kind for client in checked.clients for kind in client.kinds} == set(COLORS)
    assert all(len(client.kinds) == 1 for client in checked.clients)
    assert [one.title for one in checked.maps] == ["FedNE", "Federated averaging"]
    assert len(checked.maps[0].positions) == len(checked.labels) == len(checked.owners) == len(checked.groups) == 96
    by_title = {one.title: one.nmi for one in checked.groupings}
    assert by_title["all clients, centroids only"] == pytest.approx(1)
    assert by_title["all clients, centroids only"] >= by_title["the largest client alone"] + 0.2
    for one in checked.maps:
        assert one.bytes_up == sum(client.maps[one.title] for client in checked.clients)
    # A first answer: at most K centroids, counts, spreads, flags and a number; then sums, counts; then points, inertia.
    assert 0 < max(client.groups for client in checked.clients) <= 4 * (8 * 4 + 8 + 8 + 1) + 8 + 4 * 8 * (4 + 1) + 16
    # Both are whole runs of the verbs, with their own results beside the tour's.
    grouped = parse_result(ClusterResult, json.loads((run.path / "federated-seed0/groups/result.json").read_text()))
    assert [method.method for method in grouped.methods][1:] == ["central, not federated"]
    assert grouped.bytes_up == sum(client.groups for client in checked.clients)
    assert (run.path / "federated-seed0/fedne/positions.parquet").is_file()
    assert sorted(one.size for one in checked.examples) == [EACH] * 4
    for group in checked.examples:
        assert group.share == 1
        assert {one.kind for one in group.images} == {group.kind}
        assert all((run.path / one.image).is_file() for one in group.images)


def test_called_again_it_reads_what_it_found(
    emoji: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, run = Collection.open(emoji[0]), RunFolder.create(tmp_path / "run")
    found = tested.tour_federated(collection, run, features=emoji[1], seed=1, rounds=2)
    monkeypatch.setattr(tested, "run_clustering", None)
    monkeypatch.setattr(tested, "run_embedding", None)
    assert tested.tour_federated(collection, run, features=emoji[1], seed=1, rounds=2) == found
    with raises_naming(UserError, run.path, "--out"):
        tested.tour_federated(collection, run, features=emoji[1], seed=1, rounds=3)


def groupings(clients: float, central: float) -> list[dict[str, Any]]:
    return [{"title": "", "nmi": nmi, "purity": nmi} for nmi in (clients, central, 0.1)]


def maps(fedne: float, fedavg: float) -> list[dict[str, float]]:
    return [{"knn": fedne}, {"knn": fedavg}]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.02, 0.1, "no difference is shown (+4.0 points, 95% interval −2.0 to +10.0)"),
        (0.01, 0.07, "FedNE’s map tells kinds better apart"),
        (-0.07, -0.01, "averaging’s map tells kinds better apart"),
    ],
)
def test_the_sentence_says_what_an_interval_shows(low: float, high: float, words: str) -> None:
    said = tested.sentence(groupings(0.3, 0.31), maps(0.44, 0.4), Interval(0.04, low, high, 100, 0.95))
    assert words in said
    assert "no worse than k-means of all images" in said
    assert "which is little" in said


def test_the_sentence_says_where_groups_are_worse() -> None:
    said = tested.sentence(groupings(0.6, 0.7), maps(0.4, 0.4), Interval(0.0, -0.1, 0.1, 100, 0.95))
    assert "kinds worse than k-means" in said
    assert "which is little" not in said
