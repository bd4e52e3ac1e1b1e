"""What the playground does with a question, in Chromium: boxes, stopping, conversations, keys, errors."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
from page_browser import IN_BROWSER, SIZES, ask, done, draw, opened, take_example
from page_server import PAGE, FakeServer

pytestmark = IN_BROWSER

HOSTILE = "<img src=x onerror=alert(1)> <b>bold</b> <script>document.title='x'</script> [a](javascript:alert(1))"


@pytest.mark.parametrize("size", SIZES)
def test_a_box_is_drawn_asked_about_and_boxes_of_the_answer_go_into_the_next_question(
    browser: Any, server: FakeServer, size: str
) -> None:
    server.boxes = [{"box": [0.5, 0.6, 0.9, 0.95], "image": 0, "phrase": "shamrock", "score": 7.9}]
    with opened(browser, server, size=size) as page:
        take_example(page)
        page.locator("#layer").scroll_into_view_if_needed()
        draw(page, (0.1, 0.4), (0.35, 0.6))
        question = page.get_by_role("textbox", name="Question")
        assert question.input_value() == "Where is the keyboard?"
        draw(page, (0.1, 0.7), (0.3, 0.9))
        article = done(ask(page, "Is <2> left of <1>?"))
        assert article.locator(".answer-text").inner_text() == "a keyboard"
        assert "2 tokens" in article.inner_text()
        path, body = server.requests[-1]
        content = body["messages"][0]["content"]
        assert (path, body["model"], body["stream"]) == ("chat/completions", "mini", True)
        url = content[0]["image_url"]["url"]
        assert base64.b64decode(url.split(",")[1]) == (PAGE / "example.jpg").read_bytes()
        assert content[1]["text"] == "Is <1> left of <2>?", "boxes are numbered as the question names them"
        boxes = body["foveate"]["boxes"]
        assert boxes[0] == pytest.approx([0.1, 0.7, 0.3, 0.9], abs=0.01)
        assert boxes[1] == pytest.approx([0.1, 0.4, 0.35, 0.6], abs=0.01)

        drawn = page.locator("#layer").get_by_role("button", name="shamrock")
        assert drawn.bounding_box()["width"] == pytest.approx(
            0.4 * page.locator("#layer").bounding_box()["width"], abs=6
        )
        question.fill("")
        drawn.click()
        assert question.input_value() == "What is <3>?"
        question.fill("And  too?")
        article.get_by_role("button", name="shamrock").click()
        assert "<3>" in question.input_value(), "the same box keeps its number"


def test_stop_ends_an_answer_at_the_server_too(browser: Any, server: FakeServer) -> None:
    server.text, server.seconds = "one two three " * 40, 0.1
    with opened(browser, server) as page:
        article = ask(page, "Count.")
        article.get_by_text("one two").wait_for()
        assert page.locator(":focus").get_attribute("id") == "stop"
        page.get_by_role("button", name="Stop").click()
        done(article)
        text = article.locator(".answer-text").inner_text()
        assert text.startswith("one two")
        assert len(text.split()) < 60
        assert "stopped" in article.inner_text()
        server.text, server.seconds = "again", 0.0
        assert done(ask(page, "Again?")).locator(".answer-text").inner_text() == "again"
        assert server.num_gone == 1


def test_what_a_model_says_is_text(browser: Any, server: FakeServer) -> None:
    server.text = HOSTILE
    server.boxes = [{"box": [0.1, 0.2, 0.4, 0.5], "image": 0, "phrase": HOSTILE, "score": None}]
    with opened(browser, server, problems=1) as page:
        take_example(page)
        article = done(ask(page, HOSTILE))
        assert article.locator(".answer-text").inner_text() == HOSTILE
        assert article.locator(".reply, .chips, h2").locator("img, b, script, a").count() == 0
        assert page.locator("#layer img, #layer script").count() == 0
        assert page.title() == "Foveate playground"
        server.refusal = (400, HOSTILE)
        assert HOSTILE in done(ask(page, "What is it?")).inner_text()


def test_a_conversation_goes_on_with_one_image(browser: Any, server: FakeServer) -> None:
    with opened(browser, server) as page:
        take_example(page)
        draw(page, (0.1, 0.4), (0.35, 0.6))
        done(ask(page, "What is <1>?"))
        page.get_by_text("Settings").click()
        page.get_by_role("checkbox", name="Go on").check()
        page.get_by_role("spinbutton", name="Most tokens").fill("7")
        done(ask(page, "What color is it?"))
        body = server.requests[-1][1]
        assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
        parts = [part["type"] for message in body["messages"][::2] for part in message["content"]]
        assert parts == ["image_url", "text", "text"]
        assert body["messages"][0]["content"][1]["text"] == "What is it?"
        assert "foveate" not in body
        assert body["max_tokens"] == 7


def test_a_key_is_asked_for_and_shown_nowhere(browser: Any, server: FakeServer) -> None:
    server.key = "s3cret"
    with opened(browser, server, problems=1) as page:
        page.get_by_label("This server asks for a key").fill("s3cret")
        page.get_by_role("button", name="Unlock").click()
        article = done(ask(page, "Hello?"))
        article.get_by_text("curl and Python").click()
        assert "FOVEATE_API_KEY" in article.inner_text()
        assert "s3cret" not in page.content()
        page.get_by_role("combobox", name="Model").select_option("my-index")
        page.get_by_role("textbox", name="Words").fill("boat")
        page.get_by_role("button", name="Search", exact=True).click()
        page.get_by_role("img", name="a boat 2").wait_for()
        assert page.context.storage_state() == {"cookies": [], "origins": []}


def test_a_server_that_is_gone_or_refuses_is_told_in_its_sentence(browser: Any, server: FakeServer) -> None:
    with opened(browser, server, problems=2) as page:
        server.refusal = (503, "'mini': queue full (64 wait); try again in 1 s")
        assert "queue full (64 wait)" in done(ask(page, "Hello?")).inner_text()
        page.route("**/v1/**", lambda route: route.abort())
        assert "does not answer" in done(ask(page, "Hello?")).inner_text()


@pytest.mark.parametrize(("language", "program"), [("curl", "bash"), ("Python", sys.executable)])
def test_the_copied_request_runs(browser: Any, server: FakeServer, language: str, program: str) -> None:
    if language == "curl" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with opened(browser, server) as page:
        take_example(page)
        draw(page, (0.1, 0.4), (0.35, 0.6))
        article = done(ask(page, 'It\'s "<1>"?'))
        first = server.requests[-1]
        article.get_by_text("curl and Python").click()
        shown = article.get_by_role("region", name=language).inner_text()
        assert len(shown) < 2500, "the image is cut for reading"
        article.get_by_role("button", name=f"Copy {language}").click()
        page.get_by_text("Copied").wait_for()
        question = page.get_by_role("textbox", name="Question")
        question.fill("")
        question.focus()
        page.keyboard.press("Control+V")
        script = question.input_value()
    result = subprocess.run([program, "-"], input=script, capture_output=True, text=True, timeout=60, check=True)
    assert "keyboard" in result.stdout
    assert server.requests[-1] == first
