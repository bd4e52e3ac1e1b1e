"""Evaluations of a question set: resumed to the same bytes, nothing skipped, clips that change, full disks, locks."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from video_to_kill import HashModel, Reply, write_questions

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, read_json_lines
from foveate.multimodal.choose import Choice
from foveate.video.evaluate import ClipRequest, VideoEvaluationSettings, evaluate
from foveate.video.score_table import ANSWERS
from killing import Server, kill_at_random
from naming import raises_naming
from small_disk import Disk, disk

__all__ = ["disk"]  # the fixture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_questions(tmp_path / "set")
    return tmp_path / "set"


def ask(folder: Path, run: Path, model: Any = None, **options: Any) -> Any:
    settings = VideoEvaluationSettings(question_set="own", **options)
    return evaluate(model or HashModel(), folder / "questions.jsonl", folder / "videos", run=run, settings=settings)


def test_questions_about_a_clip_stand_together_and_all_are_rows(folder: Path, tmp_path: Path) -> None:
    model = HashModel()
    result = ask(folder, tmp_path / "run", model, batch_size=5, max_tokens=7)
    rows = read_json_lines(tmp_path / "run" / ANSWERS)
    assert [len(batch) for batch in model.batches] == [5] * 12
    clips = [row["clip"] for row in rows]
    assert [clip for number, clip in enumerate(clips) if clip not in clips[:number]] == list(dict.fromkeys(clips))
    assert sum(first != second for first, second in zip(clips, clips[1:], strict=False)) == 12
    assert sorted(int(row["id"]) for row in rows) == list(range(1, 61))
    assert all("In the video" in row["predictions"][0] and row["seen"]["indices"] == [0, 4, 8] for row in rows)
    assert (result.questions, result.clips, result.unjudged, result.missing) == (60, 13, 20, 0)
    (accuracy,) = [row for row in result.table if row.question == "Own questions"]
    hits = [row["predictions"][0][0] == "B" for row in rows if row["options"]]
    assert accuracy.values["strict"].value == pytest.approx(sum(hits) / 40)
    assert {row.question: row.n for row in result.table} == {
        "Own questions": 40, "Own questions: cause": 20, "Own questions: order": 20,
    }  # fmt: skip
    assert json.loads((tmp_path / "run" / "result.json").read_text())["questions"] == 60


def test_a_run_goes_on_to_the_same_bytes_wherever_its_rows_end(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ask(folder, run, batch_size=4)
    whole, result = (run / ANSWERS).read_bytes(), (run / "result.json").read_bytes()
    lengths = random.Random(0).sample(range(len(whole)), 12)
    for length in (0, len(whole), len(whole) - 1, *lengths):
        (run / ANSWERS).write_bytes(whole[:length])
        num_rows = len(read_json_lines(run / ANSWERS))
        model = HashModel()
        ask(folder, run, model, batch_size=4)
        assert (run / ANSWERS).read_bytes() == whole
        assert (run / "result.json").read_bytes() == result
        # No question whose batch is there is asked again.
        assert len(model.batches) == 15 - num_rows // 4
    with raises_naming(UserError, run, "recipe"):
        ask(folder, run, batch_size=4, max_tokens=9)


def test_a_batch_with_one_damaged_clip_answers_the_others(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (folder / "videos/clip3.mp4").write_bytes(b"damaged")
    with raises_naming(UserError, "clip3.mp4", "--allow-missing", run):
        ask(folder, run)
    result = ask(folder, run, HashModel(), allow_missing=True)
    rows = {row["id"]: row for row in read_json_lines(run / ANSWERS)}
    damaged = [row for row in rows.values() if row["clip"] == "clip3"]
    assert len(damaged) == result.missing == sum("error" in row for row in rows.values()) == 5
    assert "clip3.mp4" in result.reasons[0]
    assert sum(row.n for row in result.table[:1]) == 40
    # A mended clip is asked about again; the rows of the others stay.
    (folder / "videos/clip3.mp4").write_bytes(b"clip 3")
    model = HashModel()
    assert ask(folder, run, model).missing == 0
    assert {request.clip.name for batch in model.batches for request in batch} >= {"clip3.mp4"}
    assert len(model.batches) < 5


def test_how_often_the_evidence_was_seen(folder: Path, tmp_path: Path) -> None:
    evidence: list[list[list[int]]] = [[[4]], [[0], [4]], [[0, 4]], [[3]], []]
    lines = [{"video": "clip1", "question": "q", "answer": "a", "evidence": groups} for groups in evidence]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = ask(folder, tmp_path / "run")
    assert result.further == {
        "evidence among the frames": 0.75, "evidence among the slow frames": 0.5,
    }  # fmt: skip
    assert [sample.evidence for sample in result.samples] == evidence[:4]
    assert {(*sample.frames, *sample.slow, sample.num_frames, sample.is_right) for sample in result.samples} == {
        (0, 4, 8, 4, 9, None)
    }
    # A page shows some of many questions, from all parts of the set.
    lines = [{"video": "clip1", "question": f"q{number}", "answer": "a", "evidence": [[4]]} for number in range(100)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    questions = [sample.question for sample in ask(folder, tmp_path / "many").samples]
    assert (len(questions), questions[0], questions[20]) == (40, "q0", "q50")


def test_accuracy_with_the_evidence_and_without(folder: Path, tmp_path: Path) -> None:
    # The model answers A to five characters and B to six, and sees frames 0, 4 and 8.
    lines = [
        {"video": "clip1", "question": "q" * (5 if number % 6 else 6), "options": ["red", "blue"], "answer": "red"}
        | {"evidence": [[4 if number % 3 else 5]]}
        for number in range(24)
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = ask(folder, tmp_path / "run")
    further = result.further
    assert [sample.is_right for sample in result.samples] == [bool(number % 6) for number in range(24)]
    assert further["accuracy with the evidence among the frames"] == 1.0
    assert further["accuracy without it"] == 0.5


class Doubtful(HashModel):
    """Knows by likelihood that the second option is right, where it is asked so and the question is not long."""

    def ask_all(self, requests: Sequence[ClipRequest], *, max_tokens: int) -> list[Reply]:
        replies = super().ask_all(requests, max_tokens=max_tokens)
        for request, reply in zip(requests, replies, strict=True):
            reply.seen = {**reply.seen, "clip": str(request.clip), "warnings": [f"{request.clip}: cut off"]}
            if request.likelihood and request.options and len(request.text) < 20:
                is_sure = len(request.text) % 8 == 0
                mass, scored_by = (0.9, "letters") if is_sure else (1e-5, "texts")
                reply.choice = Choice((0.2, 0.5, 0.3), mass=mass, scored_by=scored_by)
        return replies


def test_choices_are_scored_by_likelihood_too(folder: Path, tmp_path: Path) -> None:
    plain = ask(folder, tmp_path / "plain", Doubtful())
    assert [column.key for column in plain.columns] == ["strict", "official"]
    result = ask(folder, tmp_path / "run", Doubtful(), likelihood=True)
    rows = [row for row in read_json_lines(tmp_path / "run" / ANSWERS) if row["options"]]
    scored = sum("probabilities" in row for row in rows)
    assert 0 < scored < len(rows) == 40
    values = result.table[0].values
    assert result.columns[-1].key == "likelihood"
    assert values["likelihood"].value == pytest.approx(scored / 40)
    assert values["strict"].value == plain.table[0].values["strict"].value
    assert values["likelihood"].n == 40
    assert {(row["mass"], row["scored_by"]) for row in rows if "probabilities" in row} == {
        (0.9, "letters"),
        (1e-5, "texts"),
    }
    by_texts = sum(row.get("scored_by") == "texts" for row in rows)
    assert 0 < by_texts < scored
    assert result.further["likeliest options found by their texts"] == pytest.approx(by_texts / scored)
    assert "likeliest options found by their texts" not in plain.further
    with raises_naming(UserError, tmp_path / "plain"):
        ask(folder, tmp_path / "plain", likelihood=True)


def test_rows_name_clips_without_the_folder_of_their_user(folder: Path, tmp_path: Path) -> None:
    (folder / "videos/clip3.mp4").write_bytes(b"damaged")
    ask(folder, tmp_path / "run", Doubtful(), allow_missing=True)
    text = (tmp_path / "run" / ANSWERS).read_text()
    assert str(folder) not in text
    seen = json.loads(text.splitlines()[0])["seen"]
    assert (seen["clip"], seen["warnings"]) == ("clip0.mp4", ["clip0.mp4: cut off"])


def test_another_model_under_the_same_name_is_noticed(folder: Path, tmp_path: Path) -> None:
    def run(weights: str) -> Any:
        settings = VideoEvaluationSettings(question_set="own")
        arguments = (HashModel(), folder / "questions.jsonl", folder / "videos")
        return evaluate(*arguments, run=tmp_path / "run", settings=settings, name="m", weights=weights)

    assert run("a1") == run("a1")
    with raises_naming(UserError, tmp_path / "run", "recipe"):
        run("b2")


def test_missing_clips_are_refused_or_wrong(folder: Path, tmp_path: Path) -> None:
    for clip in range(1, 8):
        (folder / f"videos/clip{clip}.mp4").unlink()
    with raises_naming(UserError, folder / "videos", "35 of 60", "'clip1'", "'clip5'", "--allow-missing") as caught:
        ask(folder, tmp_path / "run")
    assert str(caught.value).count("no such clip") == 5
    assert not (tmp_path / "run").exists()
    result = ask(folder, tmp_path / "run", Always("B"), allow_missing=True)
    assert (result.missing, result.questions) == (35, 60)
    strict, official = (result.table[0].values[key] for key in ("strict", "official"))
    missing = sum("error" in row for row in read_json_lines(tmp_path / "run" / ANSWERS) if row["options"])
    assert (strict.n, official.n) == (40, 40 - missing)
    assert (strict.value, official.value) == (pytest.approx(1 - missing / 40), 1.0)


class Always:
    """A model that says the same to everything."""

    def __init__(self, text: str, *, finished: bool = True) -> None:
        self.reply = Reply(text, finished)

    def ask_all(self, requests: Sequence[ClipRequest], *, max_tokens: int) -> list[Reply]:
        return [self.reply] * len(requests)


@pytest.mark.parametrize("text", ["", "   ", "I cannot say.", "Z)", "B) run; not A) sit"])
def test_answers_of_any_kind_are_counted(folder: Path, tmp_path: Path, text: str) -> None:
    result = ask(folder, tmp_path / "run", Always(text, finished=False))
    assert (result.questions, result.unfinished) == (60, 60)
    named = text.startswith("B)")
    assert (result.unparsed, result.table[0].values["strict"].value) == ((0, 1.0) if named else (40, 0.0))
    # The official reader takes the first letter with a bracket in the order of letters.
    assert result.table[0].values["official"].value == 0.0


def test_a_clip_that_was_replaced_is_noticed(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ask(folder, run)
    before = (run / ANSWERS).read_bytes()
    clip = folder / "videos/clip7.mp4"
    clip.write_bytes(b"clip 8")  # as long as before
    with raises_naming(UserError, run, "'clip7'", "--out"):
        ask(folder, run)
    clip.unlink()
    with raises_naming(UserError, "'clip7'"):
        ask(folder, run, allow_missing=True)
    clip.write_bytes(b"clip 7")
    ask(folder, run)
    assert (run / ANSWERS).read_bytes() == before
    # The same clips elsewhere are the same clips; another question file is another evaluation.
    (folder / "videos").rename(folder / "moved")
    (folder / "videos/deep").mkdir(parents=True)
    for path in (folder / "moved").iterdir():
        path.rename(folder / "videos/deep" / path.name)
    model = HashModel()
    ask(folder, run, model)
    assert model.batches == []
    write_questions(folder, count=59)
    with raises_naming(UserError, run):
        ask(folder, run)


def test_folders_of_frames_are_hashed_too(folder: Path, tmp_path: Path) -> None:
    clip = folder / "videos/clip5"
    clip.mkdir()
    clip.with_suffix(".mp4").unlink()
    for name in ("1.jpg", "2.jpg"):
        (clip / name).write_bytes(name.encode())
    ask(folder, tmp_path / "run")
    (clip / "2.jpg").rename(clip / "3.jpg")
    with raises_naming(UserError, "'clip5'"):
        ask(folder, tmp_path / "run")


def test_two_runs_in_one_folder(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with FolderLock(run, purpose="evaluating a model"), raises_naming(UserError, run, "process"):
        ask(folder, run)
    ask(folder, run)


def test_without_a_decoder_nothing_is_asked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (folder / "videos/film.mp4").write_bytes(b"film")
    line = {"video": "film", "question": "what?", "answer": "red"}
    (folder / "questions.jsonl").write_text(json.dumps(line))
    with raises_naming(UserError, "film.mp4", "foveate[video]"):
        ask(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_limit_draws_questions_by_the_seed(folder: Path, tmp_path: Path) -> None:
    rows = {}
    for seed in (0, 1):
        assert ask(folder, tmp_path / str(seed), limit=9, seed=seed).questions == 9
        rows[seed] = [row["id"] for row in read_json_lines(tmp_path / str(seed) / ANSWERS)]
    assert rows[0] != rows[1]
    (folder / "questions.jsonl").write_text('{"video": "clip1", "question": "a", "answer": "b", "id": "x"}\n' * 2)
    with raises_naming(UserError, "'x'", "2"):
        ask(folder, tmp_path / "twice")


def test_a_full_disk_names_itself_and_the_run_goes_on(disk: Disk, folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    ask(folder, whole)
    disk.change("remount,size=20k")
    with pytest.raises(OSError, match="No space left") as caught:
        ask(folder, disk.folder / "run")
    assert ANSWERS in str(caught.value.filename)
    disk.change("remount,size=400k")
    ask(folder, disk.folder / "run")
    assert (disk.folder / "run" / ANSWERS).read_bytes() == (whole / ANSWERS).read_bytes()


@pytest.mark.slow
def test_a_run_that_is_killed_at_twenty_moments_ends_with_the_same_file(folder: Path, tmp_path: Path) -> None:
    """Each time killed once and resumed, and once killed again and again until it ends."""
    with Server("video_to_kill") as server:
        seconds = server.seconds("run_evaluation", folder, tmp_path / "whole", 0.01)
        whole = (tmp_path / "whole" / ANSWERS).read_bytes()
        numbers = iter(range(1000))

        def finish(killed: bool) -> None:
            run = tmp_path / f"run{next(numbers)}"
            server.start("run_evaluation", folder, run, 0.01).finish()
            assert (run / ANSWERS).read_bytes() == whole
            assert (run / "result.json").read_bytes() == (tmp_path / "whole" / "result.json").read_bytes()
            started[0] += 1

        started = [0]
        kill_at_random(
            lambda: server.start("run_evaluation", folder, tmp_path / f"run{started[0]}", 0.01),
            kills=20,
            longest=seconds,
            seed=5,
            after=finish,
        )
        again = tmp_path / "again"
        kill_at_random(
            lambda: server.start("run_evaluation", folder, again, 0.01),
            kills=5,
            longest=seconds / 4,
            seed=6,
            after=lambda killed: None,
        )
        server.start("run_evaluation", folder, again).finish()
        assert (again / ANSWERS).read_bytes() == whole
