"""Pages of multimodal models: escaped, with every part, and as narrow as a phone in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browser import NEEDED, probe
from PIL import Image

from foveate.report import render

LONG = "supercalifragilisticexpialidocious" * 3
TABLE = {
    "columns": [
        {"key": key, "title": title, "what": f"asked with {title.lower()}", "role": role}
        for key, title, role in (
            ("image", "Its image", "ours"),
            ("no_image", "No image", "control"),
            ("another_image", "Another image", "control"),
        )
    ],
    "table": [
        {"question": question, "data": "questions", "n": 80, "chance": 0.5,
         "values": {"image": {"value": 0.8, "low": 0.7, "high": 0.9}, "no_image": {"value": 0.5}}}
        for question in ("All questions", "name, unseen names")
    ],
}  # fmt: skip


def tokens(*texts: str, learned: bool = False) -> list[dict[str, Any]]:
    return [{"text": text, "learned": learned} for text in texts]


RESULTS: dict[str, dict[str, Any]] = {
    "mllm_preview": {
        "collection": "shapes", "split": "train", "stage": "instruction", "step": 1, "batch": 2, "sets": 9,
        "conversations": 2, "lengths": [9, 5], "visual": [4, 4], "max_positions": 128, "padding_share": 0.2,
        "learned_share": 0.4, "names": 1,
        "left_out": [{"what": "samples", "count": 2, "reason": f"cannot be read ({LONG})"}],
        "samples": [
            {
                "views": [
                    {"file": "one.png", "label": "row 1, column 2", "before": "(1,2)\n", "key": LONG, "size": [64, 64],
                     "names": [{"box": [0, 0.2, 0.5, 1], "phrase": "red <b>disc</b>"}]}
                ],
                "regions": [{"image": 0, "box": [0, 0.2, 0.5, 1]}, {"image": 0, "box": [0, 0.2, 0.5, 1]}],
                "conversations": [
                    {"id": f"where/{LONG}", "group": "refer-ground",
                     "reads_images": 4, "reads_itself": 9, "reads_others": 0,
                     "tokens": [*tokens("<user>", " Where", " is", f" {LONG}", "?", "<assistant>"),
                                {"text": "<region>", "learned": True, "region": 1}, *tokens("<end>", learned=True)]},
                    {"id": "what", "group": "general", "reads_images": 4, "reads_itself": 5, "reads_others": 0,
                     "tokens": [{"text": "<region>", "region": 2}, *tokens("\n", " ", "disc", learned=True)]},
                ],
                "visual": 4, "padding": 0, "mask": "one.png",
            },
            {"views": [{"file": "one.png", "key": "one", "size": [64, 64]}], "visual": 4, "padding": 4},
        ],
    },
    "ask": {
        "model": f"runs/{LONG}/model", "description": "lite0 + pooled + llama, 5.1 M parameters",
        "seconds_to_open": 3.2,
        "images": [{"image": "one.png", "name": f"{LONG}.png", "size": [48, 64]},
                   {"image": "one.png", "name": "two.png", "size": [48, 64]}],
        "exchanges": [
            {"question": f"Where is <b>{LONG}</b>?", "text": f"It is at [8, 6, 40, 30] {LONG}.", "tokens": 9,
             "boxes": [[8, 6, 40, 30]], "box_images": [1], "regions": [[0, 0, 64, 48]], "region_images": [0],
             "finished": False, "seconds": 0.4},
            {"question": "Is it?", "text": "", "tokens": 0, "finished": True, "seconds": 0.1},
        ],
    },
    "mllm_train": {
        "status": "finished", "recipe": {}, "collection": "shapes", "images": 18, "conversations": {"general": 9},
        "names": 12, "parameters": 27_000_000, "seconds": 75.0, "model": "model/",
        "stages": [
            {"name": name, "status": "finished", "steps": 3, "seconds": 30, "samples": 9, "curves": f"{name}.jsonl",
             "last": {"loss": 0.5}, "bad_samples": {LONG: "cannot be read"} if name == "alignment" else {}}
            for name in ("alignment", "instruction")
        ],
    },
    "video_evaluate": {
        "title": "MSVD-QA", "question_set": "msvd", "model": LONG, "how": f"slowfast frames=50 {LONG}", "questions": 80,
        "clips": 9, "published": [6415], "missing": 2, "reasons": [f"no such clip '{LONG}' (question <b>7</b>)"],
        "unfinished": 3, "unparsed": 1, "failed": 1, "judge": "judge-7", "judge_dates": ["2026-11-26", "2026-11-27"],
        "judge_prompts": "0123456789ab", "further": {"accuracy of readable replies": 0.61},
        "samples": [
            {"question": f"What color is the {LONG}?", "clip": "order-0", "prediction": prediction,
             "is_right": is_right, "evidence": [[2, 3, 5], [22]], "frames": [0, 3, 10, 25], "slow": slow,
             "num_frames": 32}
            for prediction, is_right, slow in (("<b>red</b>", True, [3]), ("", False, []), ("?", None, [3]))
        ],
        "columns": [{"key": "strict", "title": "Strict", "role": "ours"}, {"key": "official", "title": "Official"}],
        "table": [
            {"question": "MSVD-QA", "data": "accuracy", "n": 80,
             "values": {"strict": {"value": 0.6, "low": 0.5, "high": 0.7}, "official": {"value": 0.625}}},
            {"question": "MSVD-QA", "data": "mean score", "n": 80, "unit": "of 5",
             "values": {"strict": {"value": 3.1, "low": 2.8, "high": 3.4}, "official": None}},
        ],
    },
    "mllm_evaluate": {
        "title": "Scenes", "suite": "scenes", "model": f"runs/{LONG}/model", "split": "test", "questions": 80,
        "images": 20, "unreadable": 1, "unfinished": 2, **TABLE,
        "samples": [
            {"image": "one.png", "regions": [[0.1, 0.2, 0.5, 1]],
             "question": f"What is <region>, {LONG}?", "references": ["red disc", LONG],
             "answers": {"image": answer, "no_image": LONG, "another_image": ""}, "score": score, "slice": "name",
             **({} if score else {"boxes": [[0.2, 0.3, 0.4, 0.9]], "true_boxes": [[0.1, 0.2, 0.5, 1]]})}
            for answer, score in (("red disc", 1.0), ("<script>blue</script>", 0.0))
        ],
    },
}  # fmt: skip


def write_run(folder: Path, kind: str) -> Path:
    Image.new("RGB", (64, 48), (200, 40, 40)).save(folder / "one.png")
    for name in ("alignment", "instruction"):
        rows = [{"step": step, "loss": 1 / step, "token_accuracy": 0.1 * step} for step in (1, 2, 3)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = {"kind": kind, "command": ["foveate", "mllm"], **RESULTS[kind]}
    (folder / "result.json").write_text(json.dumps(result))
    return render(folder)


def test_texts_of_a_collection_are_text_on_the_page(tmp_path: Path) -> None:
    page = write_run(tmp_path, "mllm_preview").read_text()
    assert "red &lt;b&gt;disc&lt;/b&gt;" in page
    # Two tokens of one box: drawn once, each linked both ways.
    assert page.count('<g class="box box-default"') == 1
    for number in (1, 2):
        assert f'id="box-1-{number}"' in page
        assert f'id="token-1-{number}"' in page
    assert "·Where" in page
    assert "cannot be read" in page


def test_boxes_of_question_and_answer_lie_on_their_images(tmp_path: Path) -> None:
    first, second = write_run(tmp_path, "ask").read_text().split("<figure")[1:]
    assert "box-region" in first
    assert "box-default" not in first
    # 8, 6 to 40, 30 of 64 x 48 pixels.
    assert 'x="0.1250" y="0.1250" width="0.5000" height="0.5000"' in second
    assert "box-region" not in second
    assert "cut off at --max-tokens" in second
    assert "&lt;b&gt;" in second


def test_right_and_wrong_answers_are_marked(tmp_path: Path) -> None:
    page = write_run(tmp_path, "mllm_evaluate").read_text()
    assert "<script>blue" not in page
    boxes = [page.count(f'<g class="box box-{style}"') for style in ("region", "default", "truth")]
    assert boxes == [2, 1, 1], "regions of questions, boxes of answers, and where they should be"
    assert "What is [box]" in page
    assert "<region>" not in page
    assert "the true box" in page
    assert page.count('class="verdict yes"') == page.count('class="verdict no"') == 1


def test_scores_of_videos_bear_their_judge_and_what_is_missing(tmp_path: Path) -> None:
    page = write_run(tmp_path, "video_evaluate").read_text()
    assert "judge-7, 2026-11-26 to 2026-11-27, prompts 0123456789ab" in page
    assert "question &lt;b&gt;7&lt;/b&gt;" in page
    assert "bootstrap over clips" in page
    assert all(part in page for part in ("60.0", "62.5", "3.1", "6,415"))


def test_evidence_of_a_video_is_marked_as_read_or_not(tmp_path: Path) -> None:
    page = write_run(tmp_path, "video_evaluate").read_text()
    assert "&lt;b&gt;red&lt;/b&gt;" in page
    # Frames 2 and 3, and frame 5, of 32: one group in two runs, of which frame 3 was read; the other group was not.
    for style in ("left:6.25%;width:6.25%", "left:15.62%;width:3.12%"):
        assert page.count(f'<i class="band" style="{style}"></i>') == 3
    assert page.count('<i class="band unseen" style="left:68.75%;width:3.12%"></i>') == 3
    assert page.count('<b class="slow" style="left:10.94%"></b>') == 2
    assert page.count("Evidence: 1 of 2 among the frames that were read, 1 among the slow ones. <b>Not all") == 2
    assert page.count('class="verdict yes"') == page.count('class="verdict no"') == 1
    assert 'id="evidence"' not in write_run(tmp_path, "mllm_evaluate").read_text()


@pytest.mark.parametrize("kind", sorted(RESULTS))
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.slow
@NEEDED[1]
def test_nothing_sticks_out(tmp_path: Path, kind: str, width: int) -> None:
    seen = probe(tmp_path, write_run(tmp_path, kind), width=width)
    assert seen.scroll <= width, seen.outside
    assert (seen.outside, seen.loaded, seen.cut) == ([], [], [])
