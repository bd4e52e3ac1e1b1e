"""Backends are found by the names of their modules, and what is no backend is refused with the nearest one."""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path

import pytest

import foveate.caption.backends
from foveate.caption.captioner import Backend, CaptionRequest, CaptionResponse, backend_names, find_backend
from foveate.core.errors import UserError
from naming import raises_naming

MODULE = """
from foveate.caption.captioner import Backend, CaptionResponse
from foveate.core.recipes import Settings


class EchoSettings(Settings):
    word: str = "echo"


class Echo:
    name, model, revision, concurrency = "echo", "echo", "1", 3

    def __init__(self, word):
        self.word = word

    async def caption(self, request):
        return CaptionResponse(f"{self.word} {request.key}")

    async def close(self):
        pass


BACKEND = Backend(settings=EchoSettings, open=lambda settings, collection: Echo(settings.word), note="says it again")
"""


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echo.py").write_text(MODULE)
    monkeypatch.setattr(foveate.caption.backends, "__path__", [*foveate.caption.backends.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "foveate.caption.backends.echo", raising=False)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("echo")
def test_a_new_module_is_a_backend() -> None:
    assert "echo" in backend_names()
    backend = find_backend("echo")
    assert isinstance(backend, Backend)
    assert not backend.only_scenes
    captioner = backend.open(backend.settings(word="hello"), None)  # type: ignore[arg-type]
    request = CaptionRequest("p1", "ssc", "ssc-1", "Write.", b"", "image/jpeg", "", 10, 0.0, 0)
    assert asyncio.run(captioner.caption(request)) == CaptionResponse("hello p1")


@pytest.mark.parametrize("name", ["http", "transformers"])
def test_every_field_of_a_backend_is_described(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "verbs" / "caption.md").read_text(encoding="utf-8")
    section = page.partition(f"\n### {name}\n")[2].partition("\n#")[0]
    assert not [field for field in find_backend(name).settings.model_fields if f"`{field}`" not in section]


@pytest.mark.usefixtures("echo")
def test_an_unknown_backend_is_refused_with_the_nearest() -> None:
    with raises_naming(UserError, "ecco", "echo"):
        find_backend("ecco")


def test_every_backend_says_what_it_is() -> None:
    for name in backend_names():
        backend = find_backend(name)
        assert isinstance(backend, Backend), name
        assert backend.note, name
        assert backend.settings.model_fields, name
