"""The review page in Chromium: 500 events by keys alone, killed in between, two reviewers, and its layout."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
from page_browser import IN_BROWSER, MEASURE, SIZES, opened
from page_server import FakeServer
from review_run import FOX, LYNX, copy_run, export, read_csv, write_run

from foveate.serve.run import listen
from foveate.species.answers import ReviewSession, choose_answer
from foveate.species.predictions import Predictions

pytestmark = IN_BROWSER


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), 12)


@contextmanager
def serving(results: Path, *options: str, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], FakeServer, str]]:
    """Run the command; yield its process, the page's address, and the key in its fragment."""
    command = [sys.executable, "-m", "foveate", "species", "review", str(results), "--page", "--port", str(port)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stdout is not None
        address, _, key = process.stdout.readline().split()[-1].partition("#")
        yield process, FakeServer(url=address), f"#{key}"
    finally:
        process.kill()
        process.wait(timeout=60)


def free_port() -> int:
    with listen("127.0.0.1", 0) as sock:
        return sock.getsockname()[1]


def event_of(page: Any) -> str:
    return page.locator("#title").inner_text().split(" · ")[0]


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def status(page: Any, begin: str) -> None:
    page.get_by_role("status").filter(has_text=begin).wait_for()


def clear_status(page: Any) -> None:
    page.evaluate("document.getElementById('status').textContent = ''")


def read_answers(results: Path) -> dict[str, dict[str, int | None]]:
    session = ReviewSession(results)
    chosen = {name: choose_answer(answers) for name, answers in session._answers.items()}
    return {name: {n.name: n.count for n in answer.names} for name, answer in chosen.items() if answer}


def type_species(page: Any, *names: tuple[str, int]) -> None:
    for text, count in names:
        press(page, "s")
        page.keyboard.type(text)
        page.get_by_role("option").first.wait_for()
        press(page, "Enter", "Escape", str(count))
    press(page, "Enter")


def test_500_events_by_keys_alone_with_the_server_killed_in_between(browser: Any, tmp_path: Path) -> None:
    results, port, rng = write_run(tmp_path / "run", 500), free_port(), random.Random(1)
    expected: dict[str, dict[str, int | None]] = {}
    killed = 0
    while killed < 8:
        with serving(results, "--reviewer", "Ada", port=port) as (process, server, key):
            with opened(browser, server, fragment=key, bypass_csp=True) as page:
                page.get_by_role("listitem").first.wait_for()
                for _ in range(14):
                    if page.locator("#events button:not(.done)").count() == 0:
                        break
                    events, kind = [event_of(page)], rng.choice(["species", "blank", "batch", "undo"])
                    clear_status(page)
                    while page.locator("#draft li").count():
                        press(page, "Backspace")
                    if kind == "species":
                        type_species(page, ("vul", 2), ("lyn", 3))
                        answer: dict[str, int | None] = {FOX: 2, LYNX: 3}
                    elif kind == "batch":
                        press(page, "x")
                        for _ in range(7):
                            press(page, "ArrowDown", "x")
                            status(page, f"{len(events) + 1} selected")
                            events.append(event_of(page))
                        press(page, "h")
                        answer = {"human": None}
                    else:
                        press(page, "b")
                        answer = {"blank": None}
                    status(page, "Saved")
                    if kind == "undo":
                        press(page, "z")
                        status(page, "Undone")
                        assert event_of(page) == events[0]
                        press(page, "Z")
                        status(page, "Done again")
                    expected |= dict.fromkeys(events, answer)
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        assert read_answers(results) == expected
    assert len(expected) > 200
    exports = export(results, tmp_path / "exports")
    files = set(Predictions.open(results).images["file"].to_pylist())
    assert {row["file"] for row in read_csv(tmp_path / "exports/csv")} == files
    assert {image["file"] for image in json.loads(exports["megadetector"])["images"]} == files


def test_undo_a_batch_and_insist_on_a_name(browser: Any, run: Path, tmp_path: Path) -> None:
    results = copy_run(run, tmp_path / "run")
    html = "<img src=x onerror=document.title=1>"
    with serving(results) as (_, server, key), opened(browser, server, fragment=key, problems=1) as page:
        page.get_by_label("Name, written").fill("Ada")
        press(page, "Enter")
        page.get_by_role("listitem").first.wait_for()
        first = event_of(page)
        press(page, "s")
        page.keyboard.type(html)
        press(page, "Enter", "Enter")
        page.get_by_role("alert").filter(has_text="Enter again").wait_for()
        press(page, "Enter")
        status(page, "Saved")
        assert page.title() == "Foveate review"
        press(page, "x", "ArrowDown", "ArrowDown", "X", "v")
        status(page, "Saved: 3 events")
        assert page.locator("#events .done").count() == 4
        press(page, "z")
        status(page, "Undone")
        assert page.locator("#events .done").count() == 1
        page.get_by_role("combobox", name="Events").select_option("reviewed")
        assert event_of(page) == first
        assert html in page.locator("#people").inner_text()
        press(page, "?")
        page.get_by_role("dialog", name="Keys").wait_for()
        press(page, "Escape")
    assert {name: [*names] for name, names in read_answers(results).items()} == {first: [html]}


def test_two_reviewers_see_that_they_differ(browser: Any, run: Path, tmp_path: Path) -> None:
    results = copy_run(run, tmp_path / "run")
    with serving(results) as (_, server, key), opened(browser, server, fragment=key) as page:
        with opened(browser, server, fragment=key) as other:
            for each, name in ((page, "Ada"), (other, "Ben")):
                each.get_by_label("Name, written").fill(name)
                press(each, "Enter")
                each.get_by_role("listitem").first.wait_for()
            event = event_of(page)
            assert event_of(other) == event
            press(page, "h")
            status(page, "Saved")
            press(other, "v")
            status(other, "Saved")
            press(page, "ArrowUp")
            page.locator("#people").get_by_text("Answers differ").wait_for()
            assert "Ben: vehicle" in page.locator("#people .chosen").inner_text()
            assert "Ada: human" in page.locator("#people").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_everything_is_visible_and_labeled(browser: Any, run: Path, tmp_path: Path, size: str, scheme: Any) -> None:
    results = copy_run(run, tmp_path / "run")
    with serving(results, "--reviewer", "Ada") as (_, server, key):
        with opened(browser, server, size=size, fragment=key, color_scheme=scheme, bypass_csp=True) as page:
            page.locator("#strip img").first.wait_for()
            press(page, "3")
            measured = page.evaluate(MEASURE)
            assert measured["scroll"] <= SIZES[size][0]
            outside = [name for name in measured["outside"] if not name.startswith(("IMG", "BUTTON"))]
            assert (outside, measured["faint"], measured["small"]) == ([], [], [])
            unnamed = "[...document.querySelectorAll('input, select, button')].filter((e) => e.checkVisibility() && "
            unnamed += "!(e.labels?.length || e.ariaLabel || e.textContent.trim())).map((e) => e.outerHTML)"
            assert page.evaluate(unnamed) == []
            page.screenshot(path=tmp_path / "page.png", full_page=True)
