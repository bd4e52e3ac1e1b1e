"""The backend of scenes: JSON as asked, faults at their rates, and no answer for real images."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from foveate.caption.captioner import CaptionRequest, CaptionResponse, find_backend
from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate_labs.captions.backends.scene_oracle import SceneOracle, SceneOracleSettings
from foveate_labs.worlds.scenes import build_scenes
from naming import raises_naming


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    path = tmp_path_factory.mktemp("oracle") / "scenes"
    build_scenes(path, train=60, seed=3, size=96)
    return Collection.open(path)


def ask(
    oracle: SceneOracle, key: str, kind: str = "dsc", *, prompt_id: str = "dsc-1", alt: str = ""
) -> CaptionResponse:
    request = CaptionRequest(key, kind, prompt_id, "", b"", "image/jpeg", alt, 200, 0.2, 0)
    return asyncio.run(oracle.caption(request))


def test_responses_follow_the_contract(collection: Collection) -> None:
    oracle = SceneOracle(SceneOracleSettings(), collection)
    assert oracle.model == "scene-oracle"
    answer = json.loads(ask(oracle, collection.keys[0]).text)
    assert list(answer) == ["caption"]
    assert "used_alt_facts" in json.loads(ask(oracle, collection.keys[0], "afc", alt="Port Ellery").text)
    assert ask(oracle, collection.keys[0]) == ask(oracle, collection.keys[0])


@pytest.mark.parametrize("fault", ["refusals", "broken", "too_long"])
def test_faults_come_at_their_rates(collection: Collection, fault: str) -> None:
    oracle = SceneOracle(SceneOracleSettings(**{fault: 0.5}), collection)
    assert oracle.model == f"scene-oracle-{fault}-0.5"
    num_long = 0
    for key in collection.keys:
        raw = ask(oracle, key).text
        if fault == "broken":
            try:
                json.loads(raw)
            except json.JSONDecodeError:
                num_long += 1
        elif fault == "refusals":
            num_long += json.loads(raw).get("refused", False)
        else:
            num_long += len(json.loads(raw)["caption"].split()) > 100
    assert 0.25 < num_long / len(collection) < 0.75
    again = [ask(oracle, key, prompt_id="shorten-1").text != ask(oracle, key).text for key in collection.keys]
    assert any(again)  # another prompt draws its faults anew


def test_real_images_are_refused(tiny_collection: Path, collection: Collection) -> None:
    with raises_naming(UserError, tiny_collection, "scene_oracle"):
        SceneOracle(SceneOracleSettings(), Collection.open(tiny_collection))


def test_a_real_image_among_scenes_is_refused(tmp_path: Path) -> None:
    from foveate.records.record import Caption
    from foveate.records.writer import CollectionWriter
    from tiny import draw, image_bytes

    build_scenes(tmp_path / "mixed", train=2, seed=3, size=96)
    with CollectionWriter(tmp_path / "mixed", source="test") as writer:
        writer.add("real", image_bytes(draw([], size=(32, 32), seed=0)), captions=(Caption("a disc"),))
    oracle = SceneOracle(SceneOracleSettings(), Collection.open(tmp_path / "mixed"))
    assert ask(oracle, "real") == CaptionResponse(error="no_scene", final=True)


def test_it_is_a_backend_marked_as_only_for_scenes() -> None:
    assert find_backend("scene_oracle").only_scenes
