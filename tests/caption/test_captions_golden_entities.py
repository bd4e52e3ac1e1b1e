"""The captions golden `entity_stats.json`: phrases of stored tags, entities, sets, and what they share with alt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.caption.audit_metrics import collect_entities
from foveate.caption.vesl.phrases import extract_paper_phrases
from foveate.metrics.captions import overlap

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "goldens" / "captions" / "entity_stats.json").read_text())
KEYS = tuple(GOLDEN["keys"])
FORMATS = ("alt", "ssc", "dsc", "dsc_plus", "afc")


def found(kind: str, key: str) -> set[str]:
    return collect_entities((record[kind]["phrases"] for record in GOLDEN["per_caption"].values()), key)


@pytest.mark.parametrize("kind", FORMATS)
def test_phrases_of_stored_tags(kind: str) -> None:
    for name, record in GOLDEN["per_caption"].items():
        stored = record[kind]
        assert (
            extract_paper_phrases(stored["kept_tokens"], stored["tags"], max_phrases=10_000).phrases
            == stored["phrases"]
        ), name


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", FORMATS)
def test_unique_entities(kind: str, key: str) -> None:
    assert sorted(found(kind, key)) == GOLDEN["keys"][key]["unique"][kind]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", FORMATS[1:])
def test_overlap_with_alt(kind: str, key: str) -> None:
    shared = overlap(found(kind, key), found("alt", key))
    for name, value in GOLDEN["keys"][key]["versus_alt"][kind].items():
        assert shared[name] == pytest.approx(value, abs=1e-12), name
