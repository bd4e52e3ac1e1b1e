"""From result.json to one self-contained page: content, honesty, inertness, errors."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import made_adapt
import made_run
import pytest

from foveate.core.errors import UserError
from foveate.report import numbers, render
from foveate.report.page import breakable, unbroken
from foveate.report.render import kinds, tell
from foveate_labs.pages.tour import summarize
from naming import raises_naming

KINDS = ["caption", "evaluate", "inspect", "locate", "pretrain", "regions", "search"]


class Reader(HTMLParser):
    """Collects tags with their attributes, and text outside style and script."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._raw = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag if tag in ("style", "script") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tour")
    return folder, made_run.tour_result(folder)


@pytest.fixture(scope="module")
def tour_html(tour: tuple[Path, dict[str, Any]]) -> str:
    folder, result = tour
    return render(made_run.write_run(folder, result)).read_text(encoding="utf-8")


def check_self_contained(html: str) -> None:
    reader = Reader(html)
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    for style in re.findall(r"<style>(.*?)</style>", html, re.S):
        assert "url(" not in style
        assert "@import" not in style
    assert len(reader.all("script")) == 1
    assert "default-src 'none'" in html


def check_accessible(html: str) -> None:
    reader = Reader(html)
    assert all(attributes.get("alt") for attributes in reader.all("img"))
    for svg in reader.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg.get("role") == "img" and svg.get("aria-label")), svg
    identifiers = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in reader.tags:
        label, link = attributes.get("aria-labelledby"), attributes.get("href") or ""
        assert label is None or label in identifiers, label
        assert not link.startswith("#") or link[1:] in identifiers, link
    assert reader.all("html")[0]["lang"] == "en"
    assert len(reader.all("h1")) == 1
    assert all(button.get("type") == "button" for button in reader.all("button"))


def test_tour_page_is_self_contained_and_accessible(tour_html: str) -> None:
    check_self_contained(tour_html)
    check_accessible(tour_html)
    assert len(tour_html) < 4_000_000


def test_tour_page_says_what_matters(tour_html: str) -> None:
    text = Reader(tour_html).text
    for piece in (
        "12 of 16 queries for photographs have the very thing among the first five",
        "as the very first: 9",
        "drawings and scenes: 3 of 8, right kind 2",
        "9 of 16 absent names are refused",
        "14 of 16 present ones are not",
        "58% of 204 boxes get their right name of 2 after a lesson of",
        "before: 5%. 95%: 51% to 64%. taught with permuted names: 3%",
        "58.0% 51.0–64.0",
        "n = 204 · chance 50.0%",
        "2 min 46 s",
        "1.4 GB",
        "What ships had answered after 48 s",
        "foveate tour",
        "commit 0123456789ab",
        "seed 0",
        "779,141 parameters",
        "foveate locate photo.jpg",
    ):
        assert piece in text, piece


def test_right_and_wrong_answers_are_counted_and_marked(tour: tuple[Path, dict[str, Any]], tour_html: str) -> None:
    pictures = tour[1]["pictures"]
    text = Reader(tour_html).text
    heading = f"<summary>All {len(pictures['located'])}, with test scenes"
    every_answer = tour_html.split(heading)[1].split("</details>")[0]
    for data in ("photographs", "scenes"):
        overlaps = [a["iou"]["head"] for a in pictures["located"] if a["data"] == data]
        assert f"{sum(v >= 0.5 for v in overlaps)} of {len(overlaps)} found" in text
    missed = sum(a["iou"]["head"] < 0.5 for a in pictures["located"])
    assert len(re.findall(r"</svg>missed</span>", every_answer)) == missed
    hits = [(hit["right"], hit["related"]) for search in pictures["searches"] for hit in search["results"]["found"]]
    every_search = tour_html.split(f"<summary>All {len(pictures['searches'])} searches")[1].split("</details>")[0]
    # The legend above them has each of the three symbols without a label.
    assert every_search.count('aria-label="the very one"') == hits.count((True, False)) > 0
    assert every_search.count('aria-label="the right kind"') == hits.count((False, True)) > 0
    assert every_search.count('aria-label="wrong"') == hits.count((False, False)) > 0


def test_the_page_shows_what_ships_before_the_lesson(tour_html: str) -> None:
    order = ["yours", "search", "locate", "lesson", "cost", "limits"]
    places = [tour_html.index(f'aria-labelledby="{name}"') for name in order]
    assert places == sorted(places)
    section = tour_html[places[1] : places[2]]
    assert section.index('class="legend"') < section.index('class="row'), "the key stands before the symbols"
    # What is visible are the first queries, whatever was found.
    visible = section.split("<details")[0]
    assert [text for text in ("a red kite in the sky", "boats") if f"“{text}”" in visible] == [
        "a red kite in the sky",
        "boats",
    ]


def test_a_tour_in_lines_and_in_progress(tour: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    lines = summarize(tour[1])
    assert [line.split(":")[0] for line in lines] == ["search", "locate", "lesson", "all parts"]
    assert lines[0].startswith("search: 12 of 16 queries for photographs have the very thing")
    assert lines[-1] == "all parts: 2 min 46 s, 1.4 GB of memory"
    running = {"kind": "tour", "running": True, "seconds": {"ask": 9.0}}
    text = Reader(render(made_run.write_run(tmp_path, running)).read_text("utf-8")).text
    assert "is being made now" in text
    assert "Taught new names" not in text


def test_a_tour_that_was_resumed_does_not_call_its_time_that_of_the_whole(
    tour: tuple[Path, dict[str, Any]], tour_html: str, tmp_path: Path
) -> None:
    result = {**copy.deepcopy(tour[1]), "resumed": True}
    assert summarize(result)[-1] == "the parts that were left: 2 min 46 s, 1.4 GB of memory"
    shutil.copytree(tour[0] / "images", tmp_path / "images")
    text = Reader(render(made_run.write_run(tmp_path, result)).read_text("utf-8")).text
    assert "for what an earlier session had left" in text
    assert "from nothing to this page" not in text
    assert "from nothing to this page" in Reader(tour_html).text


def test_long_commands_wrap_and_no_zero_is_negative() -> None:
    assert unbroken("foveate ask <a> --image-out where.png\nb") == (
        "<span>foveate</span> <span>ask</span> <span>&lt;a&gt;</span> <span>--image-out</span> <span>where.png</span>\n"
        "<span>b</span>"
    )
    assert [numbers.decimal(value) for value in (-0.001, -0.5, 0.25, None)] == ["0.00", "−0.50", "0.25", "–"]
    assert [numbers.signed(value, 1) for value in (-0.01, -0.5, 0.25, None)] == ["+0.0", "−0.5", "+0.2", ""]
    assert numbers.short(-0.0) == "0"


def test_hostile_text_is_inert(tour: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    hostile = "\"'><script>document.title='owned'</script><img src=x onerror=alert(1)></style></svg>{{ 7*7 }}"
    folder, result = tour
    result = copy.deepcopy(result)
    pictures, lesson = result["pictures"], result["lesson"]
    pictures.update(rule=hostile, model=hostile)
    for answer in pictures["located"]:
        answer.update(phrase=hostile, slice=hostile, data=hostile)
    for search in pictures["searches"]:
        search.update(data=hostile, note=hostile)
        search["query"]["text"] = hostile
        for hit in search["results"]["found"]:
            hit["caption"] = hostile
    lesson["names"] = [hostile]
    for image in lesson["images"]:
        image["data"] = hostile
        for box in image["boxes"]:
            box.update(truth=hostile, before=hostile)
    for row in lesson["table"]:
        row.update(data=hostile)
    for column in lesson["columns"]:
        column.update(title=hostile, what=hostile)
    for row in lesson["curve"]:
        row[hostile] = 1.0
    result["title"] = result["command"] = result["version"] = hostile
    result["seconds"][hostile] = 3.0
    html = render(made_run.write_run(folder, result)).read_text(encoding="utf-8")
    check_self_contained(html)
    check_accessible(html)
    assert "<script>document" not in html
    assert "<img src=x" not in html
    assert "{{ 7*7 }}" in Reader(html).text, "a caption is data, never a template"


@pytest.mark.parametrize("kind", KINDS)
def test_every_other_kind_renders(kind: str, tmp_path: Path) -> None:
    result = made_run.small_results(tmp_path)[kind]
    html = render(made_run.write_run(tmp_path, result)).read_text(encoding="utf-8")
    check_self_contained(html)
    check_accessible(html)


@pytest.mark.parametrize("make", [made_adapt.train, made_adapt.predict])
def test_names_of_classes_and_images_of_a_tuned_model_are_no_code(
    make: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    html = render(made_run.write_run(tmp_path, make(tmp_path))).read_text(encoding="utf-8")
    check_self_contained(html)
    check_accessible(html)
    assert made_adapt.HOSTILE not in html
    assert made_adapt.HOSTILE in Reader(html).text


def test_kinds_are_the_modules() -> None:
    assert kinds() == sorted(
        [
            "adapt",
            "adapt_compare",
            "adapt_predict",
            "adapt_wise",
            "ask",
            "audit",
            "calibrate",
            "captioner",
            "federated_cluster",
            "federated_embed",
            "federated_features",
            "mllm_evaluate",
            "mllm_plan",
            "mllm_preview",
            "mllm_train",
            "species",
            "species_check",
            "species_explain",
            "species_review",
            "species_train",
            "studies",
            "study",
            "tour",
            "video_ask",
            "video_evaluate",
            "video_find",
            *KINDS,
        ]
    )


def test_small_pages_say_their_content(tmp_path: Path) -> None:
    results = made_run.small_results(tmp_path)
    texts = {
        kind: Reader(render(made_run.write_run(tmp_path, results[kind])).read_text(encoding="utf-8")).text
        for kind in KINDS
    }
    assert "truncated image 3 a/<b>.jpg" in texts["inspect"]
    assert texts["inspect"].index("As the model sees them") < texts["inspect"].index("What is in it")
    assert "Images 12,842 Texts 19,420 Regions 16,861" in texts["inspect"]
    assert "<b>A boat</b> in Kiel" in texts["caption"]
    assert "ended early: the server is away" in texts["caption"].lower()
    assert "code fence 7" in texts["caption"]
    assert "12,842" in texts["inspect"]
    assert "batch size 192" in texts["pretrain"]
    assert "0.9, 0.98" in texts["pretrain"]
    assert "grounding head (the answer)" in texts["locate"]
    assert "random box" in texts["locate"]
    assert "a box in an image → Generated scenes" in texts["search"]
    assert "Which of these boxes?" in texts["evaluate"]
    assert "This detector is an oracle" in texts["regions"]
    assert "No box detected 3" in texts["regions"]
    assert "dsc plus" in texts["regions"]


@pytest.mark.parametrize("kind", ["pretrain", "evaluate", "inspect", *made_adapt.PAGES])
def test_every_number_of_the_terminal_is_on_the_page(kind: str, tmp_path: Path) -> None:
    make = made_adapt.PAGES.get(kind)
    made_run.write_run(tmp_path, make(tmp_path) if make else made_run.small_results(tmp_path)[kind])
    text = Reader(render(tmp_path).read_text(encoding="utf-8")).text
    printed = re.findall(r"\d[\d.,]*", "\n".join(tell(tmp_path)))
    assert len(printed) > 5
    assert set(printed) <= set(re.findall(r"\d[\d.,]*", text))


def test_a_search_page_names_files_and_says_first_that_nothing_was_found(tmp_path: Path) -> None:
    result = made_run.small_results(tmp_path)["search"]
    (name, hits), *_ = result["results"].items()
    files = {"key": "trip-a", "path": "/photos/my trip/a <b>.jpg", "z": 1.0}
    hits = [{**hits[0], **files, "caption": ""}, {**hits[1], **files, "caption": "a boat"}]
    result |= {
        "results": {name: hits},
        "note": "Not found: as random letters. The nearest are shown.",
        "file": "/elsewhere/query.png",
        "command": ["foveate", "search", "my index", "--image", "/elsewhere/query.png"],
    }
    page = render(made_run.write_run(tmp_path, result)).read_text(encoding="utf-8")
    reader = Reader(page)
    assert "What is like this box in query.png? Not found: as random letters." in reader.text
    assert reader.text.count("Not found") == 1
    assert "Made by foveate search 'my index' --image /elsewhere/query.png" in reader.text
    assert "(no text)" not in page
    link = '<a href="file:///photos/my%20trip/a%20%3Cb%3E.jpg">a &lt;b&gt;.jpg</a>'
    assert f'<p class="phrase">{link}</p>' in page
    assert '<p class="phrase">a boat</p>' in page
    assert page.count(link) == 2
    assert page.count("/<wbr>photos/<wbr>my trip/") == 2
    result |= {"query": {**result["query"], "text": "a boat", "box": None}}
    texts = Reader(render(made_run.write_run(tmp_path, result)).read_text(encoding="utf-8")).text
    assert "a boat Not found" in texts
    assert "query.png" in texts


def test_locate_without_a_known_truth_claims_none(tmp_path: Path) -> None:
    result = made_run.small_results(tmp_path)["locate"] | {"truth": None, "iou": {}}
    text = Reader(render(made_run.write_run(tmp_path, result)).read_text(encoding="utf-8")).text
    assert "true box" not in text
    assert "found" not in text
    assert "Overlap" not in text


def test_a_tour_with_little_in_it_still_renders(tmp_path: Path) -> None:
    html = render(made_run.write_run(tmp_path, {"kind": "tour"})).read_text("utf-8")
    check_self_contained(html)
    check_accessible(html)
    assert "The numbers" not in html


def change(result: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(result)
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
    target: Any = result
    for part in parents:
        target = target[part]
    target[last] = value
    return result


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        ("kind", "tuor", ["kind of run", "tuor", "tour"]),
        ("pictures.located.0.truth", [0.5, 0.1, 0.2, 0.4], ["pictures.located.0.truth", "x1 <= x2"]),
        ("pictures.located.0.truth", [0.1, 0.1, float("nan"), 0.4], ["pictures.located.0.truth", "finite"]),
        ("pictures.located.0.boxes", {'a"b': [0, 0, 1, 1]}, ["pictures.located.0.boxes"]),
        ("pictures.located.0.boxes", {"center": [0, 0, 1, 1]}, ["head"]),
        ("pictures.located.0.image", "../secret.png", ["result.json"]),
        ("pictures.located.0.image", "/etc/hostname", ["result.json"]),
        ("pictures.located.0.image", "images/none.webp", ["none.webp", "result.json"]),
        ("pictures.located.0.image", "result.json", ["result.json"]),
        ("lesson.table.0.values", {"stranger": {"value": 1.0}}, ["columns", "stranger"]),
        ("pictures.pictures", "many", ["pictures.pictures"]),
    ],
)
def test_wrong_content_is_refused_with_its_field(
    tour: tuple[Path, dict[str, Any]], path: str, value: Any, names: list[str]
) -> None:
    folder, result = tour
    made_run.write_run(folder, change(result, path, value))
    with raises_naming(UserError, *names):
        render(folder)


def test_missing_and_broken_results_are_refused(tmp_path: Path) -> None:
    with raises_naming(UserError, "result.json"):
        render(tmp_path)
    (tmp_path / "result.json").write_text("{", encoding="utf-8")
    with raises_naming(UserError, tmp_path / "result.json"):
        render(tmp_path)
    (tmp_path / "result.json").write_text("[]", encoding="utf-8")
    with raises_naming(UserError, "kind"):
        render(tmp_path)


def test_a_broken_metrics_line_is_an_error_and_a_cut_off_last_one_is_not(tmp_path: Path) -> None:
    result = made_run.small_results(tmp_path)["pretrain"]
    made_run.write_run(tmp_path, result)
    render(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss"\n{"step": 2, "loss": 1.0}\n', encoding="utf-8")
    with raises_naming(UserError, "1"):
        render(tmp_path)


def test_rendering_twice_gives_the_same_bytes_and_leaves_no_temporary_files(tmp_path: Path) -> None:
    result = made_run.small_results(tmp_path)["locate"]
    made_run.write_run(tmp_path, result)
    before = set(tmp_path.iterdir())
    first = render(tmp_path).read_bytes()
    assert render(tmp_path).read_bytes() == first
    assert set(tmp_path.iterdir()) - before == {tmp_path / "report.html"}
    assert json.loads((tmp_path / "result.json").read_text("utf-8"))["kind"] == "locate"


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_colors_have_enough_contrast(mode: int) -> None:
    css = resources.files("foveate.report").joinpath("templates", "page.css").read_text("utf-8")
    pairs = dict((m[1], (m[2], m[3])) for m in re.finditer(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", css))
    for ink in ("ink", "soft", "accent", "yes", "no"):
        for ground in ("ground", "raised", "sunk"):
            high, low = sorted((luminance(pairs[name][mode]) for name in (ink, ground)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


def test_paths_break_behind_slashes_and_are_escaped() -> None:
    assert breakable("a <b>/c\\d") == "a &lt;b&gt;/<wbr>c\\<wbr>d"


def test_the_policy_names_the_hash_of_the_script_of_the_page(tour_html: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", tour_html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in tour_html or f"script-src 'sha256-{digest}'" in tour_html
