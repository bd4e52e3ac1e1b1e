"""Files and clips that the playground takes, in Chromium: dropped, pasted, moving images, videos."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
from page_browser import IN_BROWSER, MEASURE, SIZES, animate, ask, choose, done, opened
from page_server import PAGE, FakeServer

from video_files import moving_square, write_clip

pytestmark = IN_BROWSER


def test_files_are_dropped_pasted_and_refused_in_a_sentence(browser: Any, server: FakeServer) -> None:
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
    browser: Any, server: FakeServer, tmp_path: Path, size: str, scheme: str
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
    browser: Any, server: FakeServer, tmp_path: Path
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
