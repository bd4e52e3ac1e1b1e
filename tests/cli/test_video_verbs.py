"""`foveate video`: from clips and questions to answers, scores and pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from chat_server import ChatServer, says
from foveate.cli.verbs.video import commands
from foveate.cli.verbs.video.clip import Span
from foveate.core.errors import UserError
from foveate.core.files import read_json_lines
from foveate.multimodal.answers import Answer
from foveate.pretrain.train import build_model
from foveate.records.boxes import PixelBox
from foveate.report.pages.video import list_budget, list_evidence
from foveate.search.locate import rank_frames
from foveate.video.results import VideoAskResult
from foveate.video.score_table import ANSWERS, REPLIES
from foveate.vision.localizer.folder import save_model
from multimodal.foreign_models import save
from naming import raises_naming

HOW = "slowfast-slow_2frms_spatial_1d_max_pool-fast_1x1"


def test_a_set_is_evaluated_and_scored_by_commands(foveate: Any, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    random = np.random.default_rng(0)
    for clip in range(4):
        (videos / f"deep/clip{clip}").mkdir(parents=True)
        for number in range(5):
            frame = Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8))
            frame.save(videos / f"deep/clip{clip}/{number}.png")
    lines = [
        {"video": f"clip{number % 4}", "question": f"what {number}?", "answer": "red"}
        | ({"options": ["red", "blue"]} if number % 2 else {})
        for number in range(8)
    ]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, lines)))
    run = tmp_path / "run"
    arguments = ["--set", "own", "--questions", questions, "--videos", videos, "--out", run]
    arguments += ["--how", HOW, "--frames", 3, "--max-tokens", 4, "--device", "cpu"]
    result = foveate("video", "evaluate", "mini", *arguments, "--json").json
    assert (result["questions"], result["unjudged"], result["missing"]) == (8, 4, 0)
    assert "Own questions" in Path(result["paths"]["report"]).read_text(encoding="utf-8")
    rows = (run / ANSWERS).read_bytes()
    (run / ANSWERS).write_bytes(rows[: len(rows) // 2])
    foveate("video", "evaluate", "mini", *arguments)
    assert (run / ANSWERS).read_bytes() == rows
    assert all(len(row["seen"]["indices"]) == 3 for row in read_json_lines(run / ANSWERS))
    assert "--judge-url" in foveate("video", "score", run).sentence
    (videos / "deep/clip3").rename(videos / "deep/other")
    sentence = foveate("video", "evaluate", "mini", *arguments, "--out", tmp_path / "other").sentence
    assert "2 of 8" in sentence
    assert "clip3" in sentence
    with ChatServer(lambda number, body: says("{'pred': 'yes', 'score': 4}")) as server:
        scored = foveate("video", "score", run, "--judge-url", server.url, "--judge-model", "judge-7").out
    assert re.search(r"^accuracy +100\.0% \(100\.0–100\.0\) +100\.0% +4 +–$", scored, re.MULTILINE)
    assert "Judge: judge-7" in scored
    assert len(read_json_lines(run / REPLIES)) == 4


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Six frames of one color each, red only in the fourth."""
    folder = tmp_path / "street"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (64, 48), (200, 20, 20) if number == 3 else (20, 20 * number, 90)).save(
            folder / f"{number}.png"
        )
    return folder


def test_a_clip_answers_questions_and_leaves_a_page(foveate: Any, clip: Path, tmp_path: Path) -> None:
    strategy = ["--frames", 4, "--slow", 2, "--fast", "1x1", "--device", "cpu"]
    result = foveate(
        "video", "ask", "mini", clip, "where?", "what?", *strategy, "--out", tmp_path / "run", "--json"
    ).json
    assert [exchange["question"] for exchange in result["exchanges"]] == ["where?", "what?"]
    assert (result["seen"]["num_decoded"], len(result["seen"]["indices"])) == (6, 4)
    assert result["seen"]["tokens"] == {"slow": 48, "fast": 4}
    stored = VideoAskResult.model_validate_json((tmp_path / "run/result.json").read_text())
    assert [frame.is_slow for frame in stored.frames] == [True, False, True, False]
    assert stored.grids == {"fast": (1, 1)}
    assert "free for text and answer" in (tmp_path / "run/report.html").read_text()
    chosen = foveate(
        "video", "ask", "mini", clip, "which?", *strategy, "--option", "red", "--option", "blue", "--json"
    ).json
    exchange = chosen["exchanges"][0]
    assert sum(exchange["probabilities"]) == pytest.approx(1)
    assert exchange["text"] == "AB"[exchange["probabilities"].index(max(exchange["probabilities"]))] + (
        ". red" if exchange["probabilities"][0] >= exchange["probabilities"][1] else ". blue"
    )
    # The shipped model was never trained on letters.
    assert (exchange["scored_by"], exchange["mass"] < 1e-4) == ("texts", True)


def test_evidence_is_printed_and_drawn(foveate: Any, clip: Path, tmp_path: Path) -> None:
    strategy = ["--frames", 4, "--slow", 2, "--fast", "1x1", "--option", "red", "--option", "blue", "--device", "cpu"]
    run = tmp_path / "run"
    printed = foveate("video", "ask", "mini", clip, "which color?", *strategy, "--evidence", "--out", run).out
    stored = VideoAskResult.model_validate_json((run / "result.json").read_text())
    (exchange,) = stored.exchanges
    assert len(exchange.drops) == len(exchange.control) == len(stored.frames) == 4
    best = max(range(4), key=lambda row: exchange.drops[row])
    first = printed.split("evidence: ")[1].splitlines()[1].split()
    assert first[1:3] == ["frame", str(stored.frames[best].index)]
    bars = list_evidence(1, exchange)
    assert max(max(bar["width"], bar["control_width"]) for bar in bars) == pytest.approx(100)
    page = (run / "report.html").read_text()
    assert page.count('class="drops"') == 4
    assert all(f"{drop:+.3f}" in page for drop in exchange.drops)
    refused = foveate("video", "ask", "mini", clip, "which?", "--how", "mean", "--evidence", "--device", "cpu").sentence
    assert "slowfast" in refused


def test_questions_of_a_chat_are_answered_as_alone(foveate: Any, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = ["--frames", 4, "--slow", 2, "--fast", "1x1", "--device", "cpu"]
    alone = foveate("video", "ask", "mini", clip, "what?", *strategy).out.splitlines()[0]
    lines = iter(["where?", "", "<image>" * 2000, "what?"])

    def read(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    ended = foveate("video", "chat", "mini", clip, *strategy)
    assert ended.code == 0
    assert ended.out.splitlines()[-1] == alone
    # The question that does not fit is refused, and ends no conversation.
    assert "1,024" in ended.err


@pytest.mark.parametrize("interrupted", ["prompt", "answer"])
def test_ctrl_c_in_a_chat_keeps_what_was_answered(
    foveate: Any, interrupted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(prompt: str) -> str:
        line = next(lines)
        if line == "prompt":
            raise KeyboardInterrupt
        return line

    def ask(viewing: object, question: str, *arguments: object, **options: object) -> str:
        if question == "answer":
            raise KeyboardInterrupt
        return f"{question}!"

    lines = iter(["first", interrupted])
    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(commands, "watch_clip", lambda *arguments, **options: None)
    monkeypatch.setattr(commands, "describe_viewing", lambda viewing: [])
    monkeypatch.setattr(commands, "ask_question", ask)
    monkeypatch.setattr(commands, "save_viewing", lambda viewing, exchanges, run: ({"exchanges": exchanges}, {}))
    ended = foveate("video", "chat", "mini", "clip.mp4", "--json")
    assert (ended.code, ended.json["exchanges"]) == (0, ["first!"])


def test_frames_are_chosen_by_what_they_show(foveate: Any, clip: Path, tmp_path: Path) -> None:
    save_model(build_model(tiny.recipe()).eval(), tmp_path / "model")
    result = foveate("video", "frames", clip, "--slow", 2, "--json").json
    assert [frame["index"] for frame in result["frames"] if frame["is_slow"]] == [0, 2]
    result = foveate("video", "frames", clip, "--how", "slow", "--slow", 2, "--json").json
    assert [frame["index"] for frame in result["frames"]] == [0, 2]
    by_model = ["--selector", tmp_path / "model", "--choose", "change", "--device", "cpu"]
    assert foveate("video", "frames", clip, "--slow", 2, *by_model).code == 0
    for arguments, name in (
        (["--choose", "change"], "--selector"),
        (["--choose", "query", "--selector", tmp_path / "model"], "query"),
        (["--query", "a red boat"], "query"),
        (["--how", "mean", "--query", "a red boat"], "query"),
        (["--start", "0:07"], "0:05.0"),
        (["--start", "soon"], "--start"),
        (["--how", "slowfst"], "slowfast"),
    ):
        assert name in foveate("video", "frames", clip, *arguments).sentence


def test_what_a_refusal_advises_leaves_room_for_the_question(foveate: Any, clip: Path) -> None:
    whole = ["--slow-pool", "1x1", "--fast", "none", "--device", "cpu"]
    sentence = foveate("video", "ask", "mini", clip, "what?", *whole, "--slow", 30).sentence
    advised = re.search(r"--slow (\d+)", sentence)
    assert advised
    assert foveate("video", "ask", "mini", clip, "what?", *whole, "--slow", advised[1]).code == 0


def test_a_refusal_counts_the_question_and_the_answer_that_is_wanted(foveate: Any, clip: Path) -> None:
    small = ["--slow", 1, "--fast", "1x1", "--device", "cpu"]
    refused = foveate("video", "ask", "mini", clip, "what?", *small, "--max-tokens", 2000)
    counts = re.search(r"(\d+) tokens of video and ([\d,]+) of", refused.sentence)
    assert counts
    assert 2000 < int(counts[2].replace(",", "")) < 2040
    # An answer with options is a letter: 128 tokens need not be free.
    options = ["--option", "red", "--option", "blue"]
    assert foveate("video", "ask", "mini", clip, "w " * 900, *small, *options).code == 0
    assert foveate("video", "ask", "mini", clip, "w " * 900, *small).code == 1


def test_a_run_folder_that_is_a_file_is_refused_before_work(foveate: Any, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for verb in (["ask", "none", clip, "q"], ["chat", "none", clip], ["frames", clip], ["find", "none", clip, "q"]):
        ended = foveate("video", *verb, "--out", tmp_path / "file")
        assert (ended.code, "file" in ended.sentence, "none" in ended.sentence, ended.out) == (1, True, False, ""), verb


def test_a_plan_counts_before_weights_are_read(foveate: Any, clip: Path) -> None:
    planned = foveate("video", "plan", "mini", clip, "--slow", 2, "--fast", "1x1", "--json").json
    assert planned["frames"] == 6
    assert sum(planned["tokens"].values()) + planned["text"] + planned["left"] == planned["limit"] == 1024
    part = foveate("video", "plan", "mini", clip, "--start", 1, "--end", "0:04", "--json").json
    assert part["frames"] == 3
    assert foveate("video", "plan", "mini", clip, "--seconds", 3).code == 2
    # What a refusal of ts advises.
    assert foveate("video", "plan", "mini", "--how", "ts", "--sampled", 500, "--json").json["tokens"]["sampled"] == 500
    assert foveate("video", "plan", "mini", "--seconds", 3, "--end", 1).code == 2
    (clip / "4.png").write_bytes(b"no image")
    assert "--allow-damaged" in foveate("video", "plan", "mini", clip).sentence
    assert foveate("video", "plan", "mini", clip, "--allow-damaged", "--json").json["frames"] == 5


def test_positions_of_a_model_of_ours_are_not_stretched(foveate: Any, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"video": "clip", "question": "what?", "answer": "a"}')
    files = ("--set", "own", "--questions", tmp_path / "questions.jsonl", "--videos", tmp_path)
    for verb in (("ask", "mini", clip, "what?"), ("plan", "mini", clip), ("evaluate", "mini", *files)):
        refused = foveate("video", *verb, "--rope-factor", 2)
        assert (refused.code, "rope_factor" in refused.sentence) == (1, True), verb
        assert foveate("video", *verb, "--rope-factor", 0.5).code == 2
    assert foveate("video", "plan", "mini", clip, "--rope-factor", 1, "--json").json["limit"] == 1024


def test_options_without_effect_are_refused(foveate: Any, clip: Path, tmp_path: Path) -> None:
    options = ["--option", "red", "--option", "blue"]
    assert "--max-tokens" in foveate("video", "ask", "mini", clip, "which?", *options, "--max-tokens", 3).err
    for questions in (["where?", "what?"], []):
        verb = ["ask", "mini", clip, *questions] if questions else ["chat", "mini", clip]
        assert "--choose query" in foveate("video", *verb, "--choose", "query", "--selector", tmp_path).sentence


def test_a_context_without_room_or_limit_has_no_free_part() -> None:
    fields: dict[str, Any] = {"title": "t", "clip": "c", "how": "slowfast", "num_decoded": 1, "frames": []}
    for limit, styles in ((None, ["b0", "b1"]), (12, ["b0", "b1"]), (15, ["b0", "b1", "bfree"])):
        result = VideoAskResult(**fields, tokens={"slow": 8, "fast": 4}, limit=limit)
        assert [style for *_, style in list_budget(result)] == styles


def test_parts_of_clips() -> None:
    assert Span.parse("1:20", None) == Span(80.0, None)
    with raises_naming(UserError, "--end", "1:75"):
        Span.parse(None, "1:75")


def test_a_multimodal_model_is_asked_about_every_frame(foveate: Any, clip: Path, tmp_path: Path) -> None:
    from foveate.multimodal.opening import open_mllm

    arguments = ["--out", tmp_path / "run", "--count", 2, "--device", "cpu", "--json"]
    found = foveate("video", "find", "mini", clip, "red disc", *arguments)
    result = found.json
    answers = [open_mllm("mini", device="cpu").locate(clip / f"{number}.png", "red disc") for number in range(6)]
    assert [bool(frame["box"]) for frame in result["frames"]] == [bool(answer.boxes) for answer in answers]
    assert found.code == (0 if any(answer.boxes for answer in answers) else 3)
    for frame, answer in zip(result["frames"], answers, strict=True):
        assert frame["score"] == pytest.approx(max(answer.box_scores or answer.rejected), rel=1e-4)
    assert result["measure"] == "match"
    # Without a box head a box has no score, and one of transformers is read in its unit.
    folder = save("smolvlm", tmp_path / "smolvlm")
    arguments = ["--out", tmp_path / "other", "--device", "cpu", "--json", "--frames", 2]
    other = foveate("video", "find", folder, clip, "red disc", *arguments, "--unit-of-boxes", "0-1000")
    assert (other.code, other.json["frames"][0]["box"], other.json["frames"][0]["score"]) == (3, None, None)
    refused = foveate("video", "find", "small", clip, "red disc", "--unit-of-boxes", "0-1")
    assert "--unit-of-boxes" in refused.err


def test_found_frames_come_first_and_then_the_best_score() -> None:
    box = PixelBox(0, 0, 9, 9)
    answers = [
        Answer("no", rejected=(9.0,)), Answer("a", boxes=(box,), box_scores=(7.5,)),
        Answer("b", boxes=(box,), box_scores=(8.0,)), Answer("no", rejected=(2.0,)), Answer("b", boxes=(box,)),
    ]  # fmt: skip
    assert rank_frames(answers, [0.0, 1.0, 2.0, 3.0, 4.0]) == [2, 1, 4, 0, 3]


def test_a_phrase_is_looked_for_in_every_frame(foveate: Any, clip: Path, tmp_path: Path) -> None:
    save_model(build_model(tiny.recipe()).eval(), tmp_path / "model")
    arguments = ["--out", tmp_path / "run", "--count", 2, "--device", "cpu", "--json"]
    result = foveate("video", "find", tmp_path / "model", clip, "a red boat", *arguments).json
    # An untrained model may point at a box without area, which has no score.
    scores = [-1.0 if frame["score"] is None else frame["score"] for frame in result["frames"]]
    assert [frame["index"] for frame in result["frames"]] == list(range(6)), "each once, the last one too"
    assert result["best"] == sorted(range(6), key=lambda row: -scores[row])[:2]
    for frame in result["frames"]:
        x1, y1, x2, y2 = frame["box"]
        assert 0 <= x1 <= x2 <= 64
        assert 0 <= y1 <= y2 <= 48
    shown = [row for row, frame in enumerate(result["frames"]) if frame["image"]]
    assert shown == sorted(result["best"])
    assert str(tmp_path / "none") in foveate("video", "find", tmp_path / "none", clip, "a red boat").sentence
    shipped = foveate("video", "find", clip, "a red boat", "--out", tmp_path / "shipped", "--device", "cpu", "--json")
    assert shipped.json["model"] == "small"
    assert len(shipped.json["frames"]) == 6
    # The same image located alone has the same box.
    alone = foveate(
        "locate", tmp_path / "model", clip / f"{shown[0]}.png", "a red boat", "--device", "cpu", "--json"
    ).json
    assert alone["boxes"][alone["default"]] == result["frames"][shown[0]]["fractions"]


def test_frames_are_sampled_at_a_rate(foveate: Any, tmp_path: Path) -> None:
    for number in range(12):
        Image.new("RGB", (40, 30), (20 * number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    result = foveate("video", "frames", tmp_path, "--fps", "0.5", "--out", tmp_path / "rate", "--json").json
    assert [frame["time"] for frame in result["frames"]] == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    options = ("--rule", "linspace", "--frames", "3", "--out", tmp_path / "ends", "--json")
    assert [frame["index"] for frame in foveate("video", "frames", tmp_path, *options).json["frames"]] == [0, 5, 11]
