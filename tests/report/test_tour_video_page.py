"""The tour's section "A clip": the number with its control, the frames with both boxes, the scores over time."""

from __future__ import annotations

import html
import re
import shlex
from pathlib import Path
from typing import Any

import made_run

from foveate.report import render


def video(image: str) -> dict[str, Any]:
    box, truth = [0.1, 0.1, 0.3, 0.3], [0.1, 0.1, 0.4, 0.3]
    frames = [
        {"image": image, "time": 0.0, "box": box, "score": 0.1, "control_score": 0.2},
        {"image": image, "time": 0.5, "box": box, "true_box": truth, "score": 0.4, "control_score": 0.1},
        {"time": 1.0, "box": box, "true_box": truth, "score": 0.3, "control_score": 0.1},
        {"time": 1.5, "box": box, "score": 0.2, "control_score": -1.0},
    ]
    return {
        "file": "clip.webp", "phrase": "red <b>kite</b>", "absent": "whale", "frames": frames, "in_sight": 2,
        "start": 0.5, "end": 1.5, "best_in_sight": 2, "iou": 0.667, "absent_iou": 0.041, "center_iou": 0.1,
    }  # fmt: skip


def test_a_clip_stands_on_the_page_with_truth_and_control(tmp_path: Path) -> None:
    result = made_run.tour_result(tmp_path)
    content = video(result["pictures"]["located"][0]["image"])
    page = render(made_run.write_run(tmp_path, {**result, "video": content})).read_text(encoding="utf-8")
    section = page[page.index('id="video"') :]
    section = section[: section.index("</section>")]
    assert "red &lt;b&gt;kite&lt;/b&gt;" in section
    assert "<b>kite" not in section
    assert "overlaps the true one by 67%; that of “whale”, which is not in the clip, by 4%" in section
    assert re.search(r'class="figure">2 of 2</p><p><span>frames with the highest cosine', section)
    assert "by chance: 1.0" in section
    assert "in sight from 0.5 to 1.5 s" in section
    assert section.count("<figure>") == 2
    assert section.count("box-truth") == 1
    assert section.count("out of sight") == 1
    assert 'class="span"' in section
    assert 'href="#video"' in page


def test_a_tour_without_a_clip_has_no_section(tmp_path: Path) -> None:
    page = render(made_run.write_run(tmp_path, made_run.tour_result(tmp_path))).read_text(encoding="utf-8")
    assert "#video" not in page


def test_commands_name_the_head_of_this_run(tmp_path: Path) -> None:
    run = tmp_path / "a tour"
    adaptation = {"train_images": 2, "test_images": 2, "backbone": 9} | dict.fromkeys(
        ("classes", "rows", "examples"), []
    )
    lesson = made_run.tour_result(run)["lesson"]
    result = {"kind": "tour", "seed": 4, "video": video(""), "lesson": lesson, "adaptation": adaptation}
    page = html.unescape(re.sub("<[^>]+>", "", render(made_run.write_run(run, result)).read_text(encoding="utf-8")))
    head = shlex.quote(str(run / "lesson" / "after" / "model"))
    assert f"foveate adapt train --backbone {head} " in page
    assert "runs/tour" not in page
