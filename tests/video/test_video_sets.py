"""Question sets in their published layouts: the questions, the names of clips, nested folders, and what is missing."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.video.questions import VideoQuestion, find_clips, load_set, read_rows
from foveate.video.sets import SETS
from naming import raises_naming

OPTIONS = ("run", "sit", "eat", "sing", "sleep")


def write_table(path: Path, header: str, *rows: Sequence[Any], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def read(name: str, path: Path) -> list[VideoQuestion]:
    return load_set(name).read(path)


def find_question_clips(folder: Path, questions: Sequence[VideoQuestion]) -> dict[str, Path]:
    return find_clips(folder, {question.id: question.clip for question in questions})


NEXT = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
NEXT_IG = "n,video_name,frame_count,width,height,question,answer_number,question_id,question_type,a0,a1,a2,a3,a4,answer"
OPEN_IG = "n,video_id,answer,question,video_name,question_id,question_type"
VCG_IG = "n,video_name,question,question_id,answer,question_type"


def test_nextqa_finds_nested_videos_by_its_map(tmp_path: Path) -> None:
    rows = [
        ("40100", 369, 640, 480, "how do they play", 2, 6, "CH", *OPTIONS),
        ("40100", 1, 2, 3, "b", 0, 1, "CW", *OPTIONS),
    ]
    path = write_table(tmp_path / "val.csv", NEXT, *rows)
    (first, second) = read("nextqa", path)
    assert (first.id, first.texts, first.options, first.correct, first.answer) == (
        "40100_6", ("how do they play",), OPTIONS, 2, "eat",
    )  # fmt: skip
    assert (first.kind, first.aspects, second.id) == ("CH", (), "40100_1")
    write_json(tmp_path / "map_vid_vidorID.json", {"40100": "1106/40100"})
    # The same number in another folder is another video: the map's path comes first.
    touch(tmp_path / "videos", "1106/40100.mp4", "0001/40100.mp4")
    questions = read("nextqa", path)
    assert find_question_clips(tmp_path / "videos", questions)["40100_6"] == tmp_path / "videos/1106/40100.mp4"
    (tmp_path / "map_vid_vidorID.json").unlink()
    with raises_naming(UserError, "40100", "1106/40100.mp4", "0001/40100.mp4"):
        find_question_clips(tmp_path / "videos", read("nextqa", path))


def test_the_lists_of_ig_vlm_have_numbers_or_texts_of_answers(tmp_path: Path) -> None:
    equal = ("cap", "cap", "hat", "bag", "tie")
    rows = [(0, "7", 1, 2, 3, "q", 1, "71", "DO", *equal, "cap"), (1, "7", 1, 2, 3, "q", 9, "72", "DO", *equal, "cap")]
    (first, second) = read("nextqa", write_table(tmp_path / "NExT_QA.csv", NEXT_IG, *rows))
    assert (first.id, first.correct) == ("71", 1)
    assert "options" in second.problem
    header = "n,video_name,question,question_id,answer,video_id,question_type,a0,a1,a2,a3,a4"
    rows = [
        (1, "7", "why", "7_CW_1", "sing", "7", "CW", *OPTIONS),
        (2, "7", "why", "7_CW_2", "fly", "7", "CW", *OPTIONS),
    ]
    (first, second) = read("intentqa", write_table(tmp_path / "IntentQA.csv", header, *rows))
    assert (first.id, first.correct, first.problem) == ("7_CW_1", 3, "")
    assert second.correct is None
    assert second.problem


def test_intentqa_as_published(tmp_path: Path) -> None:
    header = "video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4,action,lemma,lemma_id"
    row = ("61", 1266, 640, 360, "why", 4, 2, "CW", *OPTIONS, "playing", "play", 141)
    (question,) = read("intentqa", write_table(tmp_path / "test.csv", header, row))
    assert (question.id, question.correct, question.clip) == ("61_2", 4, ("61",))


def test_egoschema_asks_what_has_an_answer(tmp_path: Path) -> None:
    entries = [
        {"q_uid": uid, "google_drive_id": "x", "question": f"what of {uid}"}
        | {f"option {index}": option for index, option in enumerate(OPTIONS)}
        for uid in ("a", "b", "c")
    ]
    path = write_json(tmp_path / "questions.json", entries)
    with raises_naming(UserError, "subset_answers.json"):
        read("egoschema", path)
    write_json(tmp_path / "subset_answers.json", {"c": 0, "a": 4, "gone": 1, "b": 7})
    questions = {question.id: question for question in read("egoschema", path)}
    assert set(questions) == {"a", "b", "c", "gone"}
    assert (questions["a"].correct, questions["a"].texts, questions["a"].clip) == (4, ("what of a",), ("a",))
    assert "questions.json" in questions["gone"].problem
    assert [bool(questions[id].problem) for id in "abc"] == [False, True, False]
    header = "n,video_name,question_id,question,answer,a0,a1,a2,a3,a4"
    (question,) = read(
        "egoschema", write_table(tmp_path / "EgoSchema.csv", header, (1, "u-1", "drive", "q", "sit", *OPTIONS))
    )
    assert (question.id, question.correct) == ("u-1", 1)


def test_msvd_knows_both_names_of_a_clip(tmp_path: Path) -> None:
    path = write_json(tmp_path / "val_qa.json", [{"answer": "man", "id": 30933, "question": "who?", "video_id": 1201}])
    assert read("msvd", path)[0].clip == ("vid1201",)
    (tmp_path / "youtube_mapping.txt").write_text("bQJ_162_169 vid1201\n-4w_5_15 vid1\n")
    (question,) = read("msvd", path)
    assert (question.id, question.clip, question.answer) == ("30933", ("bQJ_162_169", "vid1201"), "man")
    touch(tmp_path / "videos", "vid1201.avi")
    assert find_question_clips(tmp_path / "videos", [question])["30933"].name == "vid1201.avi"
    row = (1, 1201, "man", "who?", "bQJ_162_169", "1201_30933", 0)
    assert read("msvd", write_table(tmp_path / "MSVD_QA.csv", OPEN_IG, row))[0].clip == question.clip
    (tmp_path / "youtube_mapping.txt").write_bytes(b"\xff\xfe\x00")
    with raises_naming(UserError, "youtube_mapping.txt"):
        read("msvd", path)
    (tmp_path / "youtube_mapping.txt").write_text("vid1201")
    with raises_naming(UserError, "youtube_mapping.txt"):
        read("msvd", path)


def test_msrvtt(tmp_path: Path) -> None:
    entry = {"answer": "couch", "category_id": 14, "id": 158581, "question": "what?", "video_id": 6513}
    (question,) = read("msrvtt", write_json(tmp_path / "val_qa.json", [entry]))
    assert (question.clip, question.texts, question.aspects, question.kind) == (("video6513",), ("what?",), ("",), "14")
    row = (1, 6513, "couch", "what?", "video6513", 158581, 14)
    assert read("msrvtt", write_table(tmp_path / "MSRVTT_QA.csv", OPEN_IG, row)) == [question]


def test_tgif_names_a_question_by_its_own_id(tmp_path: Path) -> None:
    header = "gif_name,question,answer,type,vid_id,key,description"
    rows = [
        ("gif1", "how many ?", "two", 1, "FRAMEQA1", 62578, "a, b"),
        ("gif1", "what color ?", "red", 2, "FRAMEQA2", 62578, ""),
    ]
    path = write_table(tmp_path / "Test_frameqa_question.csv", header, *rows, delimiter="\t")
    questions = read("tgif", path)
    assert [(q.id, q.kind, q.clip) for q in questions] == [
        ("FRAMEQA1", "number", ("gif1",)), ("FRAMEQA2", "color", ("gif1",)),
    ]  # fmt: skip
    listed = [
        (1, "FRAMEQA1", "two", "how many ?", "gif1", 62578, 1),
        (2, "FRAMEQA2", "red", "what color ?", "gif1", 62578, 2),
    ]
    assert read("tgif", write_table(tmp_path / "TGIF_FrameQA.csv", OPEN_IG, *listed)) == questions


def test_activitynet_joins_answers_and_both_names(tmp_path: Path) -> None:
    asked = [{"video_name": "1QI", "question": "is it?", "question_id": id} for id in ("1QI_3", "1QI_4")]
    path = write_json(tmp_path / "test_q.json", asked)
    with raises_naming(UserError, "test_a.json"):
        read("activitynet", path)
    answers = [{"answer": None, "type": None, "question_id": id} for id in ("1QI_3", "1QI_4")]
    write_json(tmp_path / "test_a.json", answers)
    assert [(each.answer, each.problem) for each in read("activitynet", path)] == [("", "it has no answer")] * 2
    answers = [{"answer": "no", "type": 3, "question_id": id} for id in ("1QI_3", "1QI_9")]
    write_json(tmp_path / "test_a.json", answers)
    first, second, third = read("activitynet", path)
    assert (first.id, first.answer, first.kind, first.clip) == ("1QI_3", "no", "yes/no", ("v_1QI", "1QI"))
    assert "test_a.json" in second.problem
    assert (third.id, "test_q.json" in third.problem) == ("1QI_9", True)
    row = (1, "v_1QI", "no", "is it?", "v_1QI", "1QI_3", 3)
    assert read("activitynet", write_table(tmp_path / "ActivityNet_QA.csv", OPEN_IG, row)) == [first]


def test_vcgbench_reads_three_parts_in_both_layouts(tmp_path: Path) -> None:
    published = tmp_path / "published"
    published.mkdir()
    for part in ("generic", "temporal"):
        write_json(published / f"{part}_qa.json", [{"Q": f"{part}?", "A": "yes", "video_name": "v_a"}])
    with raises_naming(UserError, "consistency_qa.json", "Consistency_QA1.csv"):
        read("vcgbench", published)
    write_json(published / "consistency_qa.json", [{"Q1": "one?", "Q2": "two?", "A": "yes", "video_name": "v_a"}])
    questions = read("vcgbench", published)
    assert [(q.id, q.texts, q.aspects) for q in questions] == [
        ("generic/0", ("generic?",), ("CI", "DO", "CU")),
        ("temporal/0", ("temporal?",), ("TU",)),
        ("consistency/0", ("one?", "two?"), ("CO",)),
    ]
    write_json(published / "generic_qa.json", [{"Q": "what?", "A": None, "video_name": "v_a"}])
    unanswered = read("vcgbench", published)[0]
    assert (unanswered.answer, unanswered.problem) == ("", "it has no answer")
    names = ("Generic_QA", "Temporal_QA", "Consistency_QA1", "Consistency_QA2")
    for name, text in zip(names, ("generic?", "temporal?", "one?", "two?"), strict=True):
        write_table(tmp_path / f"{name}.csv", VCG_IG, (0, "v_a", text, "v_a_0", "yes", 0))
    assert read("vcgbench", tmp_path) == questions
    write_table(tmp_path / "Consistency_QA2.csv", VCG_IG, (0, "v_a", "two?", "v_a_1", "yes", 0))
    with raises_naming(UserError, "Consistency_QA1.csv", "Consistency_QA2.csv"):
        read("vcgbench", tmp_path)


def test_own_questions(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    lines = [
        {"video": "trips/taxi.mp4", "question": "What follows?", "answer": "a bus", "id": "x", "type": "order"},
        {
            "video": "taxi",
            "question": "Where?",
            "options": ["left", "right"],
            "answer": "right",
            "id": None,
            "type": None,
        },
        {"video": "taxi", "question": "Where?", "options": ["left", "right"], "answer": 0},
        {"video": "taxi", "question": " ", "answer": ""},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second, third, fourth = read("own", path)
    assert (first.id, first.clip, first.kind, first.answer) == ("x", ("trips/taxi",), "order", "a bus")
    assert (second.id, second.kind, second.correct, third.correct) == ("2", "", 1, 0)
    assert fourth.problem == "it has no answer and no question"
    touch(tmp_path / "videos", "trips/taxi.webm", "other/taxi.mp4")
    assert find_question_clips(tmp_path / "videos", [first])["x"].name == "taxi.webm"
    for line, names in (
        ({"video": "a", "queston": "b"}, ("line 1", "queston", "question")),
        ({"video": "a", "question": 3}, ("line 1", "question", "3")),
        ({"video": "a", "question": "b", "answer": True}, ("line 1", "answer", "True")),
        ({"video": "a", "question": "b", "answer": "c", "evidence": [3]}, ("line 1", "evidence", "[3]")),
        ({"video": "a", "question": "b", "answer": 0, "options": ["x"]}, ("line 1", "options", "1")),
    ):
        path.write_text(json.dumps(line))
        with raises_naming(UserError, path, *names):
            read("own", path)


@pytest.mark.parametrize("evidence", [[3], [[]], [[-1]], [[1.5]], [[True]], "3", [["3"]]])
def test_evidence_is_groups_of_frames(tmp_path: Path, evidence: Any) -> None:
    line = {"video": "a", "question": "q", "answer": "a", "evidence": evidence}
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(line))
    with raises_naming(UserError, path, "line 1", "evidence"):
        read("own", path)


def test_clips_are_files_or_folders_of_images(tmp_path: Path) -> None:
    touch(tmp_path, "deep/er/a.MP4", "frames/b/0001.jpg", "frames/b/0002.jpg", "c.txt", "d.gif")
    os.symlink(tmp_path / "deep", tmp_path / "deep/er/round")
    base = load_set("own").read(_write_lines(tmp_path / "q.jsonl", "a"))[0]
    questions = [replace(base, id=name, clip=(name,)) for name in "abcd"]
    clips = find_question_clips(tmp_path, questions)
    assert {name: path.relative_to(tmp_path).as_posix() for name, path in clips.items()} == {
        "a": "deep/er/a.MP4", "b": "frames/b", "d": "d.gif",
    }  # fmt: skip
    # Another folder may hold another clip of the name at the end of a path.
    paths = [replace(base, id=name, clip=(name,)) for name in ("deep/er/a", "frames/a", "a/b")]
    assert find_question_clips(tmp_path, paths) == {"deep/er/a": tmp_path / "deep/er/a.MP4"}
    with raises_naming(UserError, tmp_path / "none"):
        find_question_clips(tmp_path / "none", questions)


def _write_lines(path: Path, video: str) -> Path:
    path.write_text(json.dumps({"video": video, "question": "q", "answer": "a"}), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", sorted(SETS))
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"a,b\n1,2\n", b'video_name,question\n"a,b', b"[1, 2]", b"[]"]
)
def test_files_that_are_no_questions_are_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    """None is a traceback, and none an empty set."""
    for suffix in ("csv", "json"):
        path = tmp_path / f"test_q.{suffix}"
        path.write_bytes(content)
        write_json(tmp_path / "test_a.json", [])
        write_json(tmp_path / "subset_answers.json", {})
        with raises_naming(UserError, tmp_path):
            read(name, path)
    with raises_naming(UserError, tmp_path / "none.csv"):
        read(name, tmp_path / "none.csv")


def test_a_table_that_was_cut_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "val.csv", NEXT, ("1", 1, 1, 1, 'what "is" it, then', 2, 6, "CH", *OPTIONS))
    whole = path.read_text()
    path.write_text(whole[: whole.index("is")])
    with raises_naming(UserError, path):
        read("nextqa", path)
    path.write_text(whole[: whole.index("eat")])
    assert "option" in read("nextqa", path)[0].problem
    path.write_text(whole.rstrip("\r\n") + ",more\n")
    with raises_naming(UserError, path, "line 2"):
        read("nextqa", path)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1), min_size=5, max_size=5
    )
)
def test_any_text_survives_a_table(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = write_table(tmp_path_factory.mktemp("table") / "t.csv", "x,a,b,c,d,e", ("", *texts))
    assert list(read_rows(path)[0].values()) == ["", *texts]


def test_unknown_sets_name_the_nearest() -> None:
    with raises_naming(UserError, "nextq", "nextqa"):
        load_set("nextq")
