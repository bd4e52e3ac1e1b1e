"""The tour's page with captions: five kinds of text, their marks and boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_run

from foveate.report import render


def captions(image: str) -> dict[str, Any]:
    said = [{"text": "a red boat", "verdict": "supported"}, {"text": "a whale", "verdict": "contradicted"}]
    texts = [
        {"format": kind, "title": title, "text": f"text of {title}", "assertions": said}
        for kind, title in (("alt", "AltText"), ("ssc", "SSC"), ("dsc_plus", "DSC+"))
    ]
    region = {"box": [0.1, 0.1, 0.6, 0.6], "phrase": "red boat of the pseudo-label"}
    examples = [{"image": image, "key": f"s-{n}", "captions": texts, "regions": [region]} for n in range(4)]
    numbers = {"title": "SSC", "n": 4, "tokens": 12.5, "ana": 1.0, "held": 0.5}
    return {"model": "m", "definition": "d", "examples": examples, "formats": [numbers]} | {
        "assertions": {"n": 30, "held": 24, "held_by_another_scene": 7}
    }


def test_captions_are_on_the_page(tmp_path: Path) -> None:
    result = made_run.tour_result(tmp_path)
    image = result["pictures"]["located"][0]["image"]
    page = render(made_run.write_run(tmp_path, {**result, "captions": captions(image)})).read_text(encoding="utf-8")
    for said in (
        "Captions in four formats",
        "text of DSC+",
        "red boat of the pseudo-label",
        "mark-contradicted",
        "3 more, and the formats",
        "24 of 30",
        "judged by another scene’s truth: 7",
    ):
        assert said in page
    assert 'href="#captions"' in page


def test_without_captions_nothing_is_said(tmp_path: Path) -> None:
    page = render(made_run.write_run(tmp_path, made_run.tour_result(tmp_path))).read_text(encoding="utf-8")
    assert "Captions in four formats" not in page


def test_unusable_captions_and_an_untrained_captioner_are_named(tmp_path: Path) -> None:
    result = made_run.tour_result(tmp_path)
    content = captions(result["pictures"]["located"][0]["image"])

    def render_captions(captions: dict[str, Any]) -> str:
        run = made_run.write_run(tmp_path, {**result, "captions": captions})
        return render(run).read_text(encoding="utf-8")

    assert "was trained on requests" in render_captions(content)
    content |= {"reads_requests": False, "formats": [*content["formats"], {"title": "AFC", "n": 0}]}
    content["examples"][0]["unusable"] = {"AFC": "a <b>boat</b> a boat a boat"}
    page = render_captions(content)
    assert "was not trained on requests" in page
    assert ">0 of 4<" in page
    assert "a &lt;b&gt;boat&lt;/b&gt; a boat a boat" in page
