"""Collections of scenes with questions: whole, repeatable, and continued where they end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from foveate.core.errors import UserError
from foveate.core.files import LOCK_FILES
from foveate.records.collection import Collection
from foveate.records.conversations import Conversation, Conversations, add_conversations, check_conversation
from foveate.records.writer import CollectionWriter
from foveate_labs.worlds.scenes.question_collection import build_questions, draw_asked_scene
from foveate_labs.worlds.scenes.scene_collection import LICENSE
from naming import raises_naming

SIZE = 96


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "questions"
    build_questions(path, train=4, test=4, size=SIZE)
    return path


def read(path: Path) -> list[Conversation]:
    with Collection.open(path) as collection:
        return list(Conversations(collection))


def test_every_image_has_questions_and_a_quarter_are_counting_scenes(built: Path) -> None:
    conversations = read(built)
    with Collection.open(built) as collection:
        keys = collection.keys
        assert [len(collection.rows(split)) for split in ("train", "test")] == [4, 4]
    assert {key for conversation in conversations for key in conversation.images} == set(keys)
    assert sum(key.startswith("counting-") for key in keys) == 2
    assert len({conversation.id for conversation in conversations}) == len(conversations)
    for conversation in conversations:
        check_conversation(conversation)
        _, way, names, *_ = conversation.id.split("/")
        assert way in ("open", "two answers")
        assert names == "seen" or "-test-" in conversation.images[0], "no training image shows an unseen name"


def test_built_again_nothing_changes_and_more_is_added_behind(built: Path, tmp_path: Path) -> None:
    path = tmp_path / "questions"
    build_questions(path, train=2, size=SIZE)
    first = read(path)
    build_questions(path, train=2, size=SIZE)
    assert read(path) == first
    build_questions(path, train=4, test=4, size=SIZE)
    assert sorted(read(path), key=lambda one: one.id) == sorted(read(built), key=lambda one: one.id)


def test_a_run_that_was_killed_at_its_start_is_repeated(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILES[0]).touch()
    build_questions(tmp_path, train=1, size=SIZE)
    assert read(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with raises_naming(UserError, tmp_path / "other", "notes.txt"):
        build_questions(tmp_path / "other", train=1, size=SIZE)


def test_each_copy_of_a_counting_scene_is_a_region() -> None:
    scenes = [draw_asked_scene(kind="counting", seed=0, split="train", index=index, size=SIZE) for index in range(3)]
    phrases = [[region.phrase for region in asked.row.regions] for asked in scenes]
    assert any(len(set(of_scene)) < len(of_scene) for of_scene in phrases), "copies share their phrase"
    assert scenes[0] == draw_asked_scene(kind="counting", seed=0, split="train", index=0, size=SIZE)


def test_scenes_that_others_talk_about_get_their_questions(built: Path, tmp_path: Path) -> None:
    path = tmp_path / "questions"
    scenes = [draw_asked_scene(kind="scene", seed=0, split="train", index=index, size=SIZE) for index in range(3)]
    with CollectionWriter(path, license=LICENSE, source="scenes") as writer:
        for row in (asked.row for asked in scenes):
            writer.add(row.key, row.data, regions=row.regions, split=row.split)
    foreign = replace(scenes[0].conversations[0], id="caption", source="captions")
    add_conversations(path, [foreign])
    build_questions(path, train=4, size=SIZE)
    asked = {key for each in read(path) if each.id != "caption" for key in each.images}
    assert asked == {key for each in read(built) for key in each.images if "-train-" in key}
