"""The playground: its files, and what it does in real Chromium: wide and on a phone, light and dark, by keys."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
from page_server import PAGE, FakeServer, serve

from video_files import moving_square, write_clip

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCRIPTS = ("boxes.js", "play.js", "server.js", "snippets.js", "tasks.js")
SIZES = {"desktop": (1280, 860), "phone": (400, 800), "small": (320, 640)}
HOSTILE = "<img src=x onerror=alert(1)> <b>bold</b> <script>document.title='x'</script> [a](javascript:alert(1))"
EXAMPLE = "Take the example"


def read(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Ids, addresses and inline code of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self.feed(read("index.html"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = dict(attrs)
        self.ids += [fields["id"] or ""] if "id" in fields else []
        self.addresses += [fields[name] or "" for name in ("src", "href", "action") if name in fields]
        inline = tag in ("style", "base") or (tag == "script" and "src" not in fields)
        self.inline += [tag] if inline else []
        self.inline += [name for name in fields if name == "style" or name.startswith("on")]


def test_the_page_has_no_inline_code_and_names_no_other_place() -> None:
    page = Page()
    assert page.inline == []
    assert all(re.match(r"page/[a-z]+\.(css|js)$|#\w+$|data:,$", address) for address in page.addresses)
    for name in ("index.html", "play.css", *SCRIPTS):
        assert re.findall(r"https?://|//\w+\.\w", read(name)) == [], name


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_use_ids_that_exist_and_nothing_that_reads_html_or_outlives_the_tab(name: str) -> None:
    script = read(name)
    ids = set(re.findall(r'\bby\("([\w-]+)"\)', script))
    assert ids <= set(Page().ids)
    banned = (
        r"innerHTML|outerHTML|insertAdjacent|DOMParser|document\.write|\beval\b|Function\(|Storage|indexedDB|cookie"
    )
    assert re.findall(banned, script) == []


def test_each_id_is_there_once_and_the_files_stay_small() -> None:
    ids = Page().ids
    assert len(ids) == len(set(ids))
    files = {file.name: file.stat().st_size for file in PAGE.iterdir()}
    assert set(files) == {"index.html", "play.css", "example.jpg", *SCRIPTS}
    assert sum(files.values()) < 100_000
    assert all(len(read(name).splitlines()) <= 250 for name in files if not name.endswith(".jpg"))


# ---- in Chromium ----

browsed = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serve(FakeServer()) as running:
        yield running


@contextmanager
def opened(
    browser: Any, server: FakeServer, *, size: str = "desktop", problems: int = 0, **options: Any
) -> Iterator[Any]:
    """Open the page; at the end no request has left the origin, and the console has that many errors.

    Args:
        options: `bypass_csp` lets the test's own JavaScript run, which the page's policy forbids.
    """
    width, height = SIZES[size]
    fields = {"viewport": {"width": width, "height": height}, "has_touch": size != "desktop", **options}
    context = browser.new_context(**fields, permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(10_000)
    console: list[str] = []
    addresses: list[str] = []
    page.on("console", lambda message: console.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(server.url)
    try:
        yield page
        assert [address for address in addresses if not address.startswith((server.url, "blob:", "data:"))] == []
        assert len(console) == problems, console
    finally:
        context.close()


def take_example(page: Any) -> None:
    page.get_by_role("button", name=EXAMPLE).click()
    page.get_by_role("img", name="example.jpg").wait_for()


def draw(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag on the image, from and to fractions of its sides."""
    frame = page.locator("#layer").bounding_box()
    points = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=5)
    page.mouse.up()


def animate(file_format: str, num_frames: int) -> bytes:
    """Encode frames of the example with a view that moves."""
    with Image.open(PAGE / "example.jpg") as example:
        frames = [example.crop((8 * index, 200, 8 * index + 160, 320)) for index in range(num_frames)]
    buffer = io.BytesIO()
    frames[0].save(buffer, file_format, save_all=True, append_images=frames[1:], duration=250)
    return buffer.getvalue()


def choose(page: Any, name: str, kind: str, data: bytes) -> None:
    page.locator("#file").set_input_files({"name": name, "mimeType": kind, "buffer": data})


def ask(page: Any, question: str) -> Any:
    page.get_by_role("textbox", name="Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    return page.get_by_role("article").first


def done(article: Any) -> Any:
    """Wait until an answer has ended."""
    article.and_(article.page.locator("[aria-busy=false]")).wait_for()
    return article


class TestBrowser:
    pytestmark = browsed

    @pytest.mark.parametrize("size", SIZES)
    def test_a_box_is_drawn_asked_about_and_boxes_of_the_answer_go_into_the_next_question(
        self, browser: Any, server: FakeServer, size: str
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

    def test_everything_works_by_keyboard_alone(self, browser: Any, server: FakeServer) -> None:
        with opened(browser, server) as page:
            press = page.keyboard.press
            page.get_by_role("radio", name="Ask").wait_for()
            press("Tab")
            assert page.locator(":focus").inner_text() == "Skip to the question"
            names = []
            for _ in range(8):
                press("Tab")
                names.append(
                    page.locator(":focus").get_attribute("id") or page.locator(":focus").get_attribute("value")
                )
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

    def test_stop_ends_an_answer_at_the_server_too(self, browser: Any, server: FakeServer) -> None:
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

    def test_what_a_model_says_is_text(self, browser: Any, server: FakeServer) -> None:
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

    def test_each_kind_of_model_shows_what_it_offers(self, browser: Any, server: FakeServer) -> None:
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
        self, browser: Any, server: FakeServer, tmp_path: Path, size: str
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

    def test_more_like_a_box_and_a_hit_becomes_the_image(self, browser: Any, server: FakeServer) -> None:
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

    def test_files_are_dropped_pasted_and_refused_in_a_sentence(self, browser: Any, server: FakeServer) -> None:
        with opened(browser, server, bypass_csp=True) as page:
            data = base64.b64encode((PAGE / "example.jpg").read_bytes()).decode()
            page.get_by_role("radio", name="Ask").wait_for()
            send = """([kind, name, type, data]) => {
                const transfer = new DataTransfer();
                const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type }));
                const fields = { bubbles: true, cancelable: true };
                document.body.dispatchEvent(kind === "drop"
                    ? new DragEvent("drop", { ...fields, dataTransfer: transfer })
                    : new ClipboardEvent("paste", { ...fields, clipboardData: transfer }));
            }"""
            page.evaluate(send, ["drop", "one.jpg", "image/jpeg", data])
            page.get_by_role("img", name="one.jpg").wait_for()
            page.evaluate(send, ["paste", "two.jpg", "image/jpeg", data])
            page.get_by_role("img", name="two.jpg").wait_for()
            page.evaluate(send, ["drop", "notes.txt", "text/plain", "aGVsbG8="])
            page.get_by_role("article", name="notes.txt").get_by_text("cannot show").wait_for()
            assert page.get_by_role("img", name="two.jpg").count() == 1

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("size", SIZES)
    def test_a_clip_is_asked_about_and_its_sampled_frames_are_shown(
        self, browser: Any, server: FakeServer, tmp_path: Path, size: str, scheme: str
    ) -> None:
        moving, still = animate("WEBP", 4), animate("GIF", 1)
        with opened(browser, server, size=size, color_scheme=scheme, bypass_csp=True) as page:
            choose(page, "moving.webp", "image/webp", moving)
            page.get_by_text("moving.webp, 160 × 120, a clip").wait_for()
            article = done(ask(page, "What happens?"))
            content = server.requests[-1][1]["messages"][0]["content"]
            assert [part["type"] for part in content] == ["video_url", "text"]
            assert base64.b64decode(content[0]["video_url"]["url"].split(",")[1]) == moving
            assert server.requests[-1][1]["foveate"] == {"frame_images": True}
            assert "12 of 36 frames, 4 slow (slowfast); fast 4x4 -> 2x2" in article.inner_text()
            frames = article.get_by_role("list", name="Sampled frames").get_by_role("listitem")
            assert [text for text in frames.all_inner_texts() if "slow" in text] == [
                "0.00 s slow", "4.50 s slow", "9.00 s slow", "13.5 s slow"
            ]  # fmt: skip
            assert frames.get_by_role("img", name="Frame at 1.50 s").count() == 1
            page.screenshot(path=tmp_path / "page.png", full_page=True)
            seen = page.evaluate(MEASURE)
            assert (seen["scroll"], seen["outside"], seen["faint"], seen["small"]) == (SIZES[size][0], [], [], [])
            choose(page, "still.gif", "image/gif", still)
            page.get_by_text("still.gif, 160 × 120").wait_for()
            done(ask(page, "What is it?"))
            assert server.requests[-1][1]["messages"][0]["content"][0]["type"] == "image_url"
            assert "foveate" not in server.requests[-1][1]

    def test_a_moving_image_is_an_image_for_models_without_clips_and_a_video_is_none(
        self, browser: Any, server: FakeServer, tmp_path: Path
    ) -> None:
        video = b"no frames"
        if importlib.util.find_spec("av"):
            options = {"codec": "libvpx", "pixel_format": "yuv420p"}
            video = write_clip(tmp_path / "clip.webm", moving_square(10), **options).read_bytes()
        with opened(browser, server) as page:
            page.get_by_role("combobox", name="Model").select_option("cloc")
            choose(page, "moving.webp", "image/webp", animate("WEBP", 4))
            page.get_by_text("moving.webp, 160 × 120, a clip").wait_for()
            page.get_by_role("textbox", name="Phrase").fill("red boat")
            page.get_by_role("button", name="Find", exact=True).click()
            done(page.get_by_role("article").first)
            assert server.requests[-1][1]["image"].startswith("data:image/webp")
            choose(page, "clip.webm", "video/webm", video)
            page.get_by_text("clip.webm, a clip").wait_for()
            assert page.locator("#video").is_visible()
            assert not page.locator("#layer").is_visible()
            page.get_by_role("button", name="Find", exact=True).click()
            assert "a clip can only be asked about" in done(page.get_by_role("article").first).inner_text()
            page.get_by_role("combobox", name="Model").select_option("mini")
            page.get_by_role("radio", name="Ask").check(force=True)
            done(ask(page, "What happens?"))
            assert server.requests[-1][1]["messages"][0]["content"][0]["type"] == "video_url"
            choose(page, "still.gif", "image/gif", animate("GIF", 1))
            page.get_by_role("img", name="still.gif").wait_for()
            assert not page.locator("#video").is_visible()

    def test_a_conversation_goes_on_with_one_image(self, browser: Any, server: FakeServer) -> None:
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

    def test_a_key_is_asked_for_and_shown_nowhere(self, browser: Any, server: FakeServer) -> None:
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

    def test_a_server_that_is_gone_or_refuses_is_told_in_its_sentence(self, browser: Any, server: FakeServer) -> None:
        with opened(browser, server, problems=2) as page:
            server.refusal = (503, "'mini': queue full (64 wait); try again in 1 s")
            assert "queue full (64 wait)" in done(ask(page, "Hello?")).inner_text()
            page.route("**/v1/**", lambda route: route.abort())
            assert "does not answer" in done(ask(page, "Hello?")).inner_text()

    @pytest.mark.parametrize(("language", "program"), [("curl", "bash"), ("Python", sys.executable)])
    def test_the_copied_request_runs(self, browser: Any, server: FakeServer, language: str, program: str) -> None:
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

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("size", SIZES)
    def test_nothing_is_wider_than_the_window_faint_or_without_a_name(
        self, browser: Any, server: FakeServer, tmp_path: Path, size: str, scheme: str
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

    @pytest.mark.parametrize("size", ["desktop", "phone"])
    def test_mini_reads_a_clip_in_the_playground(self, browser: Any, tmp_path: Path, size: str) -> None:
        with serving(tmp_path, "mini") as server, opened(browser, server, size=size) as page:
            page.set_default_timeout(120_000)
            choose(page, "pan.webp", "image/webp", animate("WEBP", 24))
            article = done(ask(page, "What is in the image?"))
            page.screenshot(path=tmp_path / "page.png", full_page=True)
            frames = article.get_by_role("list", name="Sampled frames").get_by_role("listitem")
            assert frames.count() == 24, article.inner_text()
            assert len([text for text in frames.all_inner_texts() if "slow" in text]) == 10
            assert article.locator(".answer-text").inner_text()

    def test_mini_answers_in_the_playground(self, browser: Any, tmp_path: Path) -> None:
        """With FOVEATE_WRITE_IMAGES=1 its screenshots become those of docs and README."""
        with serving(tmp_path, "mini") as server, opened(browser, server) as page:
            page.set_default_timeout(120_000)
            take_example(page)
            page.get_by_role("button", name="Ask", exact=True).click()
            article = done(page.get_by_role("article").first)
            assert article.locator(".chips button").count() == 1, article.inner_text()
            draw(page, (0.28, 0.65), (0.52, 0.89))
            assert page.get_by_role("textbox", name="Question").input_value() == "What is <1>?"
            page.get_by_role("button", name="Ask", exact=True).click()
            article = done(page.get_by_role("article").first)
            assert article.locator(".answer-text").inner_text() == "satellite antenna"
            page.get_by_role("radio", name="Where is").check(force=True)
            page.get_by_role("textbox", name="Phrase").fill("keyboard; bar of soap; shamrock; zebra")
            page.get_by_role("button", name="Find", exact=True).click()
            article = done(page.get_by_role("article").first)
            assert article.get_by_role("listitem").count() == 3
            assert "Not found: zebra" in article.inner_text()
            frame, box = (
                page.locator(name).bounding_box() for name in ("#layer", "#layer .answer:has-text('keyboard')")
            )
            corners = [(box["x"] - frame["x"]) / frame["width"], (box["y"] - frame["y"]) / frame["height"]]
            corners += [corners[0] + box["width"] / frame["width"], corners[1] + box["height"] / frame["height"]]
            assert corners == pytest.approx([0.0, 0.40, 0.346, 0.63], abs=0.06), "where the scene has its keyboard"
            page.mouse.move(0, 0)
            write_screenshot(page, "serve.webp", tmp_path)
            page.set_viewport_size({"width": 900, "height": 640})
            write_screenshot(page, "jobs/serve.webp", tmp_path, width=450)


@contextmanager
def serving(folder: Path, *models: str) -> Iterator[FakeServer]:
    """Run `foveate serve` on a free port until the end."""
    port_file = folder / "port"
    command = [sys.executable, "-m", "foveate", "serve", *models, "--port", "0", "--port-file", str(port_file)]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not port_file.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "the server listens"
            time.sleep(0.1)
        try:
            yield FakeServer(url=f"http://127.0.0.1:{port_file.read_text().strip()}/")
        finally:
            process.terminate()
            process.communicate(timeout=60)


def write_screenshot(page: Any, name: str, folder: Path, *, width: int | None = None) -> None:
    """Write a screenshot, into the docs where FOVEATE_WRITE_IMAGES asks for it."""
    root = Path(__file__).parents[2] / "docs" / "images" if os.environ.get("FOVEATE_WRITE_IMAGES") else folder
    with Image.open(io.BytesIO(page.screenshot())) as image:
        size = (width, round(image.height * width / image.width)) if width else image.size
        path = root / name
        path.parent.mkdir(exist_ok=True)
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(path, quality=88, method=6)
    assert path.stat().st_size < 90_000


MEASURE = """() => {
  const wide = document.documentElement.clientWidth;
  const visible = (e) => e.checkVisibility() && e.getClientRects().length && !e.closest(".hidden, .skip");
  const all = [...document.body.querySelectorAll("*")].filter(visible);
  const numbers = (color) => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const linear = (v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ({ rgb }) => { const [r, g, b] = rgb.map(linear); return .2126 * r + .7152 * g + .0722 * b; };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const color = numbers(getComputedStyle(e).backgroundColor);
      if (color.a > .99) return color;
    }
    return { rgb: [255, 255, 255] };
  };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  const texts = all.filter((e) => e.matches("input, select, textarea") ||
    [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  const controls = "button:not(.box), select, textarea, input:not([type=radio], [type=checkbox])";
  const box = (e) => e.getBoundingClientRect();
  const scrolls = (e) => e.closest("pre");
  return {
    scroll: document.documentElement.scrollWidth,
    outside: all.filter((e) => box(e).right > wide + 1 && !scrolls(e)).map((e) => `${e.tagName}.${e.className}`),
    faint: texts.filter((e) => ratio(numbers(getComputedStyle(e).color), ground(e)) < 4.5)
      .map((e) => `${e.tagName} ${e.textContent.slice(0, 30)}`),
    small: all.filter((e) => e.matches(controls) && box(e).height < 32).map((e) => e.id || e.textContent),
  };
}"""
