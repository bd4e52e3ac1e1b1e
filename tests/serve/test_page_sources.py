"""The playground's files: no inline code, no other place named, no unsafe script, small."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
from page_server import PAGE

SCRIPTS = ("boxes.js", "play.js", "server.js", "snippets.js", "tasks.js")


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
