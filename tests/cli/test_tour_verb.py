"""The verb `tour` without its parts: when the page is named, and the lines it ends with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import foveate.report
import foveate_labs.pages.tour
import foveate_labs.tour.run
from foveate.core.files import write_json_atomically
from foveate_labs.studies.settings import TourSettings
from foveate_labs.verbs.tour import command


def test_the_page_is_named_once_when_what_ships_has_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tour(
        run: Path, settings: TourSettings, *, seed: int, on_page: Callable[[Path, bool], object], **options: object
    ) -> Path:
        assert (run, seed, settings.part) == (tmp_path, 3, ("lesson",))
        for opened in (False, True, False):
            on_page(run, opened)
        write_json_atomically(run / "result.json", {})
        return run

    pages = []
    monkeypatch.setattr(foveate_labs.tour.run, "tour", tour)
    monkeypatch.setattr(foveate.report, "render", lambda folder: pages.append(folder) or folder / "report.html")
    monkeypatch.setattr(foveate_labs.pages.tour, "summarize", lambda result: ["learned"])
    result = CliRunner().invoke(command, ["--out", str(tmp_path), "--seed", "3", "--part", "lesson"])
    assert result.exit_code == 0, result.output
    assert len(pages) == 4
    assert result.output.count("what ships has answered") == 1
    assert "learned" in result.output
    assert "foveate serve" in result.output
