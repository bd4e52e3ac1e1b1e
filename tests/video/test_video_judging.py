"""Judges of answers about videos: what they are asked, strict and official scores, stored replies, judges that fail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from video_to_kill import Reply, run_evaluation, write_questions

from chat_server import ChatServer, Say, fails, says
from foveate.chat.judge import JudgeReply, collect_replies
from foveate.chat.protocol import ChatRequest
from foveate.core.errors import UserError
from foveate.core.files import read_json_lines
from foveate.core.results import Row
from foveate.video.evaluate import ClipRequest, VideoEvaluationSettings, evaluate
from foveate.video.score_table import ANSWERS, PROMPTS, REPLIES, JudgePrompt, JudgeSettings, VideoScores, score
from naming import raises_naming

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens/slowfast/judge.json").read_text())


Replies = Sequence[str | None] | Callable[[ChatRequest], str | None]


class RecordedJudge:
    """A judge that replies from a list by the number in a question; None is a request that failed."""

    def __init__(self, replies: Replies, name: str = "judge-7") -> None:
        self.replies, self.name = replies, name
        self.requests: list[ChatRequest] = []

    def ask(self, requests: Sequence[ChatRequest]) -> list[JudgeReply]:
        self.requests += requests
        replies = [self._reply(request) for request in requests]
        errors = ["timeout" if reply is None else "" for reply in replies]
        return [
            JudgeReply(self.name, "2026-11-27", reply or "", error)
            for reply, error in zip(replies, errors, strict=True)
        ]

    def _reply(self, request: ChatRequest) -> str | None:
        if callable(self.replies):
            return self.replies(request)
        return self.replies[int(request.messages[1].text.split("number ")[1].split("?")[0])]


class Echo:
    """A model that answers with the question."""

    def ask_all(self, requests: Sequence[ClipRequest], *, max_tokens: int) -> list[Reply]:
        return [Reply(f"In the image, {request.text}") for request in requests]


def answer_open(folder: Path, count: int, *, missing: int = 0) -> Path:
    """The run folder of open questions; the last ones have no clip, and count as wrong."""
    (folder / "videos").mkdir(parents=True)
    lines = []
    for number in range(count + missing):
        lines.append({"video": f"clip{number}", "question": f"number {number}?", "answer": "right", "id": str(number)})
        if number < count:
            (folder / f"videos/clip{number}.mp4").write_bytes(b"clip")
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = VideoEvaluationSettings(question_set="own", allow_missing=bool(missing))
    evaluate(Echo(), folder / "questions.jsonl", folder / "videos", run=folder / "run", settings=options)
    return folder / "run"


def row_of(result: VideoScores, data: str) -> Row:
    (row,) = [row for row in result.table if row.data == data]
    return row


def number(row: Row, column: str) -> float | None:
    value = row.values[column]
    return None if value is None else value.value


@pytest.mark.parametrize("case", GOLDEN["sets"], ids=lambda case: case["name"])
def test_golden_sets_of_replies(tmp_path: Path, case: dict[str, Any]) -> None:
    run = answer_open(tmp_path, len(case["replies"]))
    result = score(run, judge=RecordedJudge(case["replies"]))
    official, strict = case["official"], case["strict"]
    accuracy, mean = row_of(result, "accuracy"), row_of(result, "mean score")
    assert number(accuracy, "official") == pytest.approx(official["accuracy"], abs=1e-9)
    assert number(mean, "official") == pytest.approx(official["average_score"], abs=1e-9)
    assert number(accuracy, "strict") == pytest.approx(strict["accuracy_over_all"], abs=1e-9)
    assert number(mean, "strict") == pytest.approx(strict["mean_score_over_ok"], abs=1e-9)
    assert result.further["accuracy of readable replies"] == pytest.approx(strict["accuracy_over_ok"], abs=1e-9)
    truncated = strict["mean_truncated_score_over_ok"]
    assert result.further["mean score without decimals"] == pytest.approx(truncated, abs=1e-9)
    failed = case["replies"].count(None)
    assert (result.unparsed, result.failed) == (strict["n_total"] - strict["n_ok"] - failed, failed)
    assert (result.judge, result.judge_dates) == ("judge-7", ["2026-11-27", "2026-11-27"])


def test_missing_answers_are_in_the_strict_denominators_alone(tmp_path: Path) -> None:
    run = answer_open(tmp_path, 3, missing=1)
    judge = RecordedJudge(["{'pred': 'yes', 'score': 4}"] * 3)
    with raises_naming(UserError, run, "clip3", "--allow-missing"):
        score(run, judge=judge)
    result = score(run, JudgeSettings(allow_missing=True), judge=judge)
    accuracy, mean = row_of(result, "accuracy"), row_of(result, "mean score")
    assert (number(accuracy, "strict"), number(accuracy, "official")) == (0.75, 1.0)
    assert (number(mean, "strict"), number(mean, "official")) == (3.0, 4.0)
    # Of replies alone: an answer that is missing has none.
    readable = (result.further["accuracy of readable replies"], result.further["mean score without decimals"])
    assert readable == (1.0, 4.0)
    assert (result.missing, result.failed, result.unparsed, len(judge.requests)) == (1, 0, 0, 3)


def test_the_judge_reads_question_answer_and_prediction(tmp_path: Path) -> None:
    run = answer_open(tmp_path, 1)
    judge = RecordedJudge(["{'pred': 'no', 'score': 0}"])
    score(run, judge=judge)
    system, user = judge.requests[0].messages
    assert system.role == "system"
    assert "Question: number 0?\nCorrect answer: right\nPrediction: In the video, number 0?" in user.text
    assert "'pred'" in user.text
    assert "'pred'" not in PROMPTS["CI"].user


@settings(max_examples=30)
@given(st.lists(st.text(max_size=20), min_size=3, max_size=3))
def test_what_people_write_is_never_a_slot(texts: list[str]) -> None:
    question, answer, prediction = texts
    prompt = JudgePrompt("system", "<{question}|{answer}|{prediction}>")
    assert prompt.fill([question], answer, [prediction]).messages[1].text == f"<{question}|{answer}|{prediction}>"
    fixed = prompt.fill(["{answer}"], "{prediction}", ["{question}"]).messages[1].text
    assert fixed == "<{answer}|{prediction}|{question}>"


def test_vcgbench_is_judged_by_five_aspects(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("v_a.mp4", "b.mp4"):
        (videos / name).write_bytes(b"clip")
    for part in ("generic", "temporal"):
        entries = [{"Q": f"{part}?", "A": "yes", "video_name": name} for name in ("v_a", "v_b")]
        (tmp_path / f"{part}_qa.json").write_text(json.dumps(entries))
    pair = [{"Q1": "one?", "Q2": "two?", "A": "yes", "video_name": "v_a"}]
    (tmp_path / "consistency_qa.json").write_text(json.dumps(pair))
    options = VideoEvaluationSettings(question_set="vcgbench")
    result = evaluate(Echo(), tmp_path, videos, run=tmp_path / "run", settings=options)
    assert (result.table, result.unjudged) == ([], 5)
    scores = {"facts": 4.8, "detailed": 3, "context": 2, "order": 1, "contradictions": 5}

    def reply(request: ChatRequest) -> str:
        system = request.messages[0].text.split("Other words")[0]
        return str({"score": next(value for word, value in scores.items() if word in system)})

    judge = RecordedJudge(reply)
    result = score(tmp_path / "run", judge=judge)
    assert len(judge.requests) == 2 * 3 + 2 + 1
    (pairs,) = [text for request in judge.requests if "First question" in (text := request.messages[1].text)]
    assert all(part in pairs for part in ("one?", "two?", "In the video, one?", "In the video, two?"))
    values = {row.data: (number(row, "strict"), number(row, "official")) for row in result.table}
    assert values["mean score, correctness"] == (4.8, 4.0)
    assert values["mean of the five scores"] == (pytest.approx(3.16), pytest.approx(3.0))


def test_replies_are_stored_with_name_and_date_and_not_asked_for_again(tmp_path: Path) -> None:
    run = answer_open(tmp_path, 4)
    replies: list[str | None] = ["{'pred': 'yes', 'score': 5}", "garbage", None, "{'pred': 'no', 'score': 1}"]
    first = score(run, judge=RecordedJudge(replies))
    assert (first.unparsed, first.failed) == (1, 1)
    rows = read_json_lines(run / REPLIES)
    assert {(row["judge"], row["date"]) for row in rows} == {("judge-7", "2026-11-27")}
    # Only the request that failed is repeated; garbage would be the same again.
    judge = RecordedJudge(["{'pred': 'yes', 'score': 3}"] * 4)
    second = score(run, judge=judge)
    assert len(judge.requests) == 1
    assert (second.unparsed, second.failed, number(row_of(second, "accuracy"), "strict")) == (1, 0, 0.5)
    # Another judge is asked everything, and the first one's replies stay.
    other = RecordedJudge(["{'pred': 'no', 'score': 0}"] * 4, name="judge-8")
    assert score(run, judge=other).judge == "judge-8"
    silent = RecordedJudge(lambda request: pytest.fail("asked again"))
    assert score(run, judge=silent).table == second.table
    # A last line that was cut is asked for again.
    (run / REPLIES).write_bytes((run / REPLIES).read_bytes()[:-5])
    assert score(run, judge=other) == score(run, judge=other)
    assert len(other.requests) == 5


def test_other_wordings_come_from_a_file_and_bear_their_hash(tmp_path: Path) -> None:
    run = answer_open(tmp_path, 2)
    judge = RecordedJudge(["{'pred': 'yes', 'score': 5}"] * 2)
    ours = score(run, judge=judge)
    path = tmp_path / "prompts.yaml"
    prompt = {"system": "Judge.", "user": "Q: {question}\nA: {answer}\nP: {prediction} {'pred': 'yes'}"}
    path.write_text(yaml.safe_dump({"open": prompt}))
    theirs = score(run, JudgeSettings(judge_prompts=path), judge=judge)
    assert (ours.judge_prompts, len(theirs.judge_prompts), len(judge.requests)) == ("", 12, 4)
    assert judge.requests[2].messages[1].text == "Q: number 0?\nA: right\nP: In the video, number 0? {'pred': 'yes'}"
    for content, names in (
        ({"opens": prompt}, ("open",)),
        ({"open": {"system": "x"}}, ("open", "user")),
        ({"open": prompt | {"user": "{question}{answer}"}}, ("open.user", "{prediction}")),
        ({"CO": prompt}, ("CO.user", "{prediction2}")),
        ([], ("open",)),
    ):
        path.write_text(yaml.safe_dump(content))
        with raises_naming(UserError, path, *names):
            score(run, JudgeSettings(judge_prompts=path), judge=judge)
    with raises_naming(UserError, tmp_path / "none.yaml"):
        score(run, JudgeSettings(judge_prompts=tmp_path / "none.yaml"), judge=judge)


@pytest.mark.parametrize(
    ("say", "unparsed", "failed"),
    [
        (says("I think it is right."), 1, 0),
        (says(""), 1, 0),
        (says("no", finish="content_filter"), 0, 1),
        (says("late", seconds=60), 0, 1),
        (fails(400), 0, 1),
        (Say(body=b"{}"), 0, 1),
        (says('{"pred": "yes", "score": NaN}'), 1, 0),
    ],
    ids=["garbage", "nothing", "refuses", "hangs", "http", "no completion", "no number"],
)
def test_a_judge_that_fails_costs_its_question_and_no_other(
    tmp_path: Path, say: Say, unparsed: int, failed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = answer_open(tmp_path, 3)
    # One wait less: retries are tested with the client.
    monkeypatch.setattr("foveate.chat.client._MAX_BACKOFF_SECONDS", 0.01)

    def behave(number: int, body: dict[str, Any]) -> Say:
        return say if "number 1?" in str(body) else says("{'pred': 'yes', 'score': 4}")

    with ChatServer(behave) as server:
        options = JudgeSettings(judge=server.url, judge_model="local", judge_seconds=1.5 if say.seconds else 60)
        result = score(run, options)
    assert (result.unparsed, result.failed, result.judge) == (unparsed, failed, "local")
    assert number(row_of(result, "accuracy"), "strict") == pytest.approx(2 / 3)
    assert number(row_of(result, "accuracy"), "official") == 1.0
    assert number(row_of(result, "mean score"), "strict") == 4.0


def test_a_judge_that_answers_nothing_at_all_scores_nothing(tmp_path: Path) -> None:
    run = answer_open(tmp_path, 2)
    result = score(run, judge=RecordedJudge([None, None]))
    assert (number(row_of(result, "accuracy"), "strict"), result.failed) == (0.0, 2)
    assert number(row_of(result, "accuracy"), "official") is None
    assert row_of(result, "mean score").values == {"strict": None, "official": None}
    assert json.loads((run / "result.json").read_text())["failed"] == 2


def test_a_run_that_is_not_finished_or_none_is_refused(tmp_path: Path) -> None:
    run = answer_open(tmp_path, 2)
    with raises_naming(UserError, run, "--judge"):
        score(run)
    with raises_naming(UserError, "--judge-model"):
        score(run, JudgeSettings(judge="http://127.0.0.1:1/v1"))
    with raises_naming(UserError, "--judge"):
        JudgeSettings(judge_model="local").open_judge()
    lines = (run / ANSWERS).read_text().splitlines(keepends=True)
    (run / ANSWERS).write_text(lines[0])
    with raises_naming(UserError, run, "1 of 2", "foveate video evaluate"):
        score(run, judge=RecordedJudge([]))
    with raises_naming(UserError, tmp_path / "videos", "foveate video evaluate"):
        score(tmp_path / "videos")


def test_replies_up_to_a_judge_that_goes_away_are_stored(tmp_path: Path) -> None:
    class Leaving(RecordedJudge):
        def ask(self, requests: Sequence[ChatRequest]) -> list[JudgeReply]:
            if self.requests:
                raise UserError("http://judge: HTTP 401")
            return super().ask(requests)

    tasks = [(str(index), "", PROMPTS[""].fill([f"number {index}?"], "a", ["b"])) for index in range(70)]
    with raises_naming(UserError, "401"):
        collect_replies(Leaving(["x"] * 70), tasks, tmp_path / REPLIES)
    assert len(read_json_lines(tmp_path / REPLIES)) == 64
    judge = RecordedJudge(["x"] * 70)
    assert len(collect_replies(judge, tasks, tmp_path / REPLIES)) == 70
    assert len(judge.requests) == 6


def test_choices_need_no_judge(tmp_path: Path) -> None:
    write_questions(tmp_path, count=6)
    lines = [line for line in (tmp_path / "questions.jsonl").read_text().splitlines() if "options" in line]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    result = run_evaluation(str(tmp_path), str(tmp_path / "run"))
    shutil.copy(tmp_path / "run/result.json", tmp_path / "before.json")
    assert score(tmp_path / "run").table == result.table
    assert not (tmp_path / "run" / REPLIES).exists()


def test_a_wrong_address_is_named_by_its_option() -> None:
    with raises_naming(UserError, "--judge", "nonsense") as caught:
        JudgeSettings(judge="nonsense", judge_model="judge").open_judge()
    assert "--endpoint" not in str(caught.value)
