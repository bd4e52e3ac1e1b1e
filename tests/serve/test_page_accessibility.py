"""The playground by keys alone, and its layout in Chromium: wide and on a phone, light and dark."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
from page_browser import EXAMPLE, IN_BROWSER, MEASURE, SIZES, ask, done, opened, take_example
from page_server import FakeServer

pytestmark = IN_BROWSER


def test_everything_works_by_keyboard_alone(browser: Any, server: FakeServer) -> None:
    with opened(browser, server) as page:
        press = page.keyboard.press
        page.get_by_role("radio", name="Ask").wait_for()
        press("Tab")
        assert page.locator(":focus").inner_text() == "Skip to the question"
        names = []
        for _ in range(8):
            press("Tab")
            names.append(page.locator(":focus").get_attribute("id") or page.locator(":focus").get_attribute("value"))
        assert names == ["theme", "choose", "example", "model", "chat", "text", "send", None]
        page.get_by_role("button", name=EXAMPLE).focus()
        press("Enter")
        page.get_by_role("img", name="example.jpg").wait_for()
        page.get_by_role("button", name="Add a box").focus()
        press("Enter")
        corners = page.get_by_role("textbox", name="Corners of box 1")
        box = page.get_by_role("button", name="Box 1:")
        assert corners.input_value() == "134, 134, 314, 314"
        for key in ("ArrowLeft", "ArrowDown", "Shift+ArrowRight", "Control+ArrowUp"):
            press(key)
        assert corners.input_value() == "125, 142, 314, 322"
        assert box.get_attribute("aria-label") == "Box 1: 125, 142, 314, 322"
        assert page.get_by_role("status").inner_text() == "Box 1: 125, 142, 314, 322"
        for _ in range(60):
            press("ArrowLeft")
        assert corners.input_value().startswith("0, 142, 188"), "a box stays in its image"
        page.get_by_role("textbox", name="Question").fill("")
        box.focus()
        press("Enter")
        assert page.locator(":focus").input_value() == "What is <1>?"
        press("Enter")
        done(page.get_by_role("article").first)
        assert page.get_by_role("status").inner_text() == "a keyboard"
        assert page.locator(":focus").get_attribute("id") == "text"
        corners.fill("10, 20, 110, 220")
        corners.press("Enter")
        assert box.get_attribute("aria-label") == "Box 1: 10, 20, 110, 220"
        corners.fill("10, 20, 5")
        corners.blur()
        assert corners.get_attribute("aria-invalid") == "true"
        box.focus()
        press("Delete")
        assert page.locator(":focus").get_attribute("id") == "add"
        assert box.count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_window_faint_or_without_a_name(
    browser: Any, server: FakeServer, tmp_path: Path, size: str, scheme: str
) -> None:
    server.text = "averyveryverylongwordwithoutanyspaceinitthatgoesonandonandonandonandon " * 3
    server.boxes = [{"box": [0.9, 0, 1, 0.05], "image": 0, "phrase": "a long label " * 9, "score": 1.0}]
    with opened(browser, server, size=size, color_scheme=scheme, bypass_csp=True) as page:
        take_example(page)
        page.get_by_role("button", name="Add a box").click()
        done(ask(page, "What is <1>? " + "x" * 300)).get_by_text("curl and Python").click()
        page.get_by_role("combobox", name="Model").select_option("my-index")
        page.get_by_role("textbox", name="Words").fill("boat")
        page.get_by_role("button", name="Search", exact=True).click()
        page.get_by_role("img", name="a boat 2").wait_for()
        page.get_by_text("Settings").click()
        done(page.get_by_role("article").first)
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        seen = page.evaluate(MEASURE)
        assert (seen["scroll"], seen["outside"]) == (SIZES[size][0], [])
        assert seen["faint"] == []
        assert seen["small"] == []
        controls = re.findall(r"- (?:button|textbox|combobox|radio|checkbox|spinbutton|img|region)(?: \[.*\])?:?$",
                              page.locator("body").aria_snapshot(), re.MULTILINE)  # fmt: skip
        assert controls == [], "each control has a name"
