"""What the playground offers for each kind of model, in Chromium: localizer, index, classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
from page_browser import IN_BROWSER, done, draw, opened, take_example
from page_server import FakeServer

pytestmark = IN_BROWSER


def test_each_kind_of_model_shows_what_it_offers(browser: Any, server: FakeServer) -> None:
    with opened(browser, server) as page:
        take_example(page)
        model = page.get_by_role("combobox", name="Model")
        assert model.locator("option").all_inner_texts() == [
            "mini (multimodal)", "cloc (localizer)", "my-index (index)", "birds (classifier)"
        ]  # fmt: skip
        tasks = page.get_by_role("group", name="What to do")
        model.select_option("cloc")
        assert tasks.inner_text().split("\n")[-2:] == ["Where is", "Compare"]
        page.get_by_role("textbox", name="Phrase").fill("red boat; wug")
        page.get_by_role("button", name="Find", exact=True).click()
        article = done(page.get_by_role("article").first)
        assert server.requests[-1][1]["phrases"] == ["red boat", "wug"]
        assert "Not found: wug: the text is like random letters." in article.inner_text()
        assert "Unknown to the text tower: “wug”." in article.inner_text()
        assert page.get_by_role("status").inner_text() == "1 of 2 found"
        assert page.locator("#layer").get_by_role("button", name="red boat").count() == 1
        assert page.locator("#layer .answer").count() == 1

        tasks.get_by_role("radio", name="Compare").check(force=True)
        page.get_by_role("textbox", name="Names").fill("cat; dog; boat")
        page.get_by_role("button", name="Compare", exact=True).click()
        article = done(page.get_by_role("article").first)
        assert article.get_by_role("listitem").all_inner_texts()[0].startswith("dog")

        model.select_option("birds")
        assert page.get_by_role("textbox", name="Question").count() == 0
        page.get_by_role("button", name="Classify", exact=True).click()
        article = done(page.get_by_role("article").first)
        assert [row.split()[:2] for row in article.get_by_role("listitem").all_inner_texts()] == [
            ["heron", "0.600"], ["stork", "0.300"]
        ]  # fmt: skip


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_a_search_that_finds_nothing_says_so_names_words_and_shows_the_nearest(
    browser: Any, server: FakeServer, tmp_path: Path, size: str
) -> None:
    with opened(browser, server, size=size) as page:
        page.get_by_role("combobox", name="Model").select_option("my-index")
        for text, is_missing in (("a wug with a blicket", True), ("a boat", False)):
            page.get_by_role("textbox", name="Words").fill(text)
            page.get_by_role("button", name="Search", exact=True).click()
            page.get_by_role("img", name="a boat 2").first.wait_for()
            article = done(page.get_by_role("article").first)
            sentence = "Not found: the text is like random letters. The nearest:"
            assert (sentence in article.inner_text()) is is_missing
            assert ("Unknown to the text tower: “wug”, “blicket”." in article.inner_text()) is is_missing
            assert article.get_by_role("listitem").count() == 3
            assert page.get_by_role("status").inner_text().startswith("Not found" if is_missing else "3 hits")
        page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_more_like_a_box_and_a_hit_becomes_the_image(browser: Any, server: FakeServer) -> None:
    with opened(browser, server) as page:
        take_example(page)
        draw(page, (0.1, 0.4), (0.35, 0.6))
        page.get_by_role("button", name="Find more like this box").click()
        done(page.get_by_role("article").first)
        path, body = server.requests[-1]
        assert (path, body["model"], "text" in body) == ("search", "my-index", False)
        assert body["box"] == pytest.approx([0.1, 0.4, 0.35, 0.6], abs=0.01)
        page.get_by_role("button", name="Take as the image: a boat 0").click()
        page.get_by_role("img", name="img0").wait_for()
        assert page.get_by_role("textbox", name="Corners of box 1").input_value() == "12, 18, 60, 54"
