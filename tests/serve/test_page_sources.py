"""The playground's files: no inline code, no other place named, no unsafe script, small."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
from page_server import PAGE

SCRIPTS = ("boxes.js", "play.js", "review.js", "server.js", "snippets.js", "tasks.js")
PAGES = ("index.html", "review.html")
STYLES = ("play.css", "review.css")


def read(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Ids, addresses and inline code of the page."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self.feed(read(name))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = dict(attrs)
        self.ids += [fields["id"] or ""] if "id" in fields else []
        self.addresses += [fields[name] or "" for name in ("src", "href", "action") if name in fields]
        inline = tag in ("style", "base") or (tag == "script" and "src" not in fields)
        self.inline += [tag] if inline else []
        self.inline += [name for name in fields if name == "style" or name.startswith("on")]


@pytest.mark.parametrize("name", PAGES)
def test_the_page_has_no_inline_code_and_names_no_other_place(name: str) -> None:
    page = Page(name)
    assert page.inline == []
    assert all(re.match(r"page/[a-z]+\.(css|js)$|#\w+$|data:,$", address) for address in page.addresses)
    for file in (name, *STYLES, *SCRIPTS):
        assert re.findall(r"https?://|//\w+\.\w", read(file)) == [], file


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_use_ids_that_exist_and_nothing_that_reads_html_or_outlives_the_tab(name: str) -> None:
    script = read(name)
    ids = set(re.findall(r'\bby\("([\w-]+)"\)', script))
    assert ids <= set(Page("review.html" if name == "review.js" else "index.html").ids)
    # The storage of a session ends with its tab.
    banned = (
        r"innerHTML|outerHTML|insertAdjacent|DOMParser|document\.write|\beval\b|Function\(|localStorage|indexedDB"
        r"|cookie"
    )
    assert re.findall(banned, script) == []


def test_each_id_is_there_once_and_the_files_stay_small() -> None:
    for page in PAGES:
        ids = Page(page).ids
        assert len(ids) == len(set(ids))
    files = {file.name: file.stat().st_size for file in PAGE.iterdir()}
    assert set(files) == {"example.jpg", *PAGES, *STYLES, *SCRIPTS}
    assert sum(files.values()) < 130_000
    assert all(len(read(name).splitlines()) <= 400 for name in files if not name.endswith(".jpg"))
