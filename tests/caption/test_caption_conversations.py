"""Captions as conversations of a collection: what is added, that nothing is doubled, and what cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from foveate.caption.chat_requests import caption_request, length_class
from foveate.caption.lengths import count_clip_tokens
from foveate.caption.settings import TargetSettings
from foveate.caption.targets import conversations as conversations_module
from foveate.caption.targets.conversations import prepare_captions
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.conversations import KIND, Conversation, Conversations, Turn, add_conversations
from foveate.records.record import CAPTION_GROUPS
from naming import raises_naming


@pytest.fixture
def scenes(scene_collection: Path, tmp_path: Path) -> Path:
    return shutil.copytree(scene_collection, tmp_path / "scenes")


def test_each_caption_answers_the_request_for_its_format_and_length(scenes: Path) -> None:
    counts = prepare_captions(scenes, TargetSettings())
    with Collection.open(scenes) as collection:
        talks = list(Conversations(collection, split="train"))
    assert len(talks) == counts.added == sum(counts.written.values())
    kinds = set()
    for talk in talks:
        question, answer = talk.turns
        kind = talk.id.rpartition("/")[2]
        kinds.add((talk.group, kind))
        request = question.text.removeprefix("<image>\n")
        _, _, alt = request.partition(" Text: ")
        assert request == caption_request(kind, length=length_class(count_clip_tokens(answer.text)), alt=alt)
        assert bool(alt) == (kind == "afc")
        assert talk.source == ("scenes: exact" if talk.group == "descriptions" else "scenes: rules-1")
    # These are the formats that the rules write.
    assert {kind for _, kind in kinds} == {"ssc", "dsc", "dsc_plus", "afc"}
    assert {group for group, _ in kinds} == set(CAPTION_GROUPS)


def test_repeated_or_stopped_it_ends_with_the_same_rows(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fails after some of the parts, as a kill would.
    monkeypatch.setattr("foveate.records.conversations._ROWS_PER_PART", 7)
    written = conversations_module.to_conversation
    calls = iter(range(20))

    def stop_after_some(row):  # noqa: ANN001, ANN202
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return written(row)

    monkeypatch.setattr(conversations_module, "to_conversation", stop_after_some)
    with pytest.raises(KeyboardInterrupt):
        prepare_captions(scenes, TargetSettings())
    monkeypatch.setattr(conversations_module, "to_conversation", written)
    first = prepare_captions(scenes, TargetSettings())
    assert first.existing == 14
    again = prepare_captions(scenes, TargetSettings())
    assert (again.added, again.existing) == (0, first.added + first.existing)
    with Collection.open(scenes) as collection:
        table = collection.table(KIND)
    assert len(table) == again.existing
    assert len(set(table["id"].to_pylist())) == len(table)
    assert len(set(table["recipe_hash"].to_pylist())) == 1


def test_captions_of_other_settings_are_counted(scenes: Path) -> None:
    first = prepare_captions(scenes, TargetSettings())
    assert first.others == prepare_captions(scenes, TargetSettings()).others == 0
    for dry_run in (True, False):
        assert prepare_captions(scenes, TargetSettings(), seed=1, dry_run=dry_run).others == first.added


def test_captions_of_other_settings_are_replaced(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Conversation("own", (), (Turn("user", "What?"), Turn("assistant", "That.")), CAPTION_GROUPS[0])
    add_conversations(scenes, [own])
    first = prepare_captions(scenes, TargetSettings())
    assert prepare_captions(scenes, TargetSettings(), seed=1, replace=True, dry_run=True).others == first.added
    with monkeypatch.context() as killed:
        killed.setattr(conversations_module, "remove_rows", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare_captions(scenes, TargetSettings(), seed=1, replace=True)
    second = prepare_captions(scenes, TargetSettings(), seed=1, replace=True)
    assert (second.added, second.others, second.removed) == (0, 0, first.added)
    with Collection.open(scenes) as collection:
        table = collection.table(KIND)
    assert len(table) == second.existing + 1
    assert "own" in table["id"].to_pylist()
    # What was removed can be written again.
    again = prepare_captions(scenes, TargetSettings(), replace=True)
    assert (again.added, again.removed) == (first.added, second.existing)


def test_the_parts_decide_nothing(scenes: Path, scene_collection: Path, tmp_path: Path, monkeypatch) -> None:  # noqa: ANN001
    whole = prepare_captions(scenes, TargetSettings())
    monkeypatch.setattr(conversations_module, "_IMAGES_PER_PART", 5)
    in_parts = prepare_captions(scenes, TargetSettings())
    assert in_parts.written == whole.written
    assert (in_parts.added, in_parts.existing) == (0, whole.added)


def test_a_dry_run_counts_and_writes_nothing(scenes: Path) -> None:
    result = CliRunner().invoke(cli, ["captioner", "prepare", "--collection", str(scenes), "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    counts = json.loads(result.output.splitlines()[-1])
    assert counts["images"]["scenes"] == 24
    assert sum(counts["written"].values()) > 24
    assert counts["added"] == 0
    assert not (scenes / "annotations" / KIND).exists()


def test_fields_are_set_by_name_and_dropped_rewrites_are_counted(scenes: Path) -> None:
    arguments = ["captioner", "prepare", "images=5", "noisy_alt=0", "--collection", str(scenes), "--json", "--quiet"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    counts = json.loads(result.output.splitlines()[-1])
    assert sum(counts["images"].values()) == 5
    written, dropped = (sum(counts[name].values()) for name in ("written", "dropped"))
    assert dropped > 0
    assert written == counts["added"]


def test_mistakes_name_the_field(tiny_collection: Path) -> None:
    with raises_naming(UserError, "short_kinds", "description_kinds", "alt, title"):
        prepare_captions(tiny_collection, TargetSettings())
    with raises_naming(UserError, "short_kinds", "titel", "title"):
        prepare_captions(tiny_collection, TargetSettings(short_kinds=("titel",)))
    arguments = ["captioner", "prepare", "short_kind=[alt]", "--collection", str(tiny_collection)]
    output = CliRunner().invoke(cli, arguments)
    assert "short_kinds" in str(output.exception) + output.output
