"""Fixtures of the playground's tests: Chromium, and a server of fixed answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from page_server import FakeServer


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from page_browser import CHROMIUM

    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    from page_server import FakeServer, serve

    with serve(FakeServer()) as running:
        yield running
