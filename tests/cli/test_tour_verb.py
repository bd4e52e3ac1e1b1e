"""The verb `tour` without its study: the lines it ends with."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import foveate.report
import foveate_labs.pages.tour
import foveate_labs.tour.run
from foveate.cli.verbs.serve import command as serve
from foveate.core.files import write_json_atomically
from foveate_labs.verbs.tour import command


def test_the_tour_ends_with_a_line_that_serves_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tour(run: Path, settings: object, *, seed: int, **options: object) -> Path:
        assert (run, seed) == (tmp_path, 3)
        (run / "cloc-seed3" / "model").mkdir(parents=True)
        write_json_atomically(run / "cloc-seed3" / "model" / "config.json", {"kind": "region-text"})
        write_json_atomically(run / "result.json", {})
        return run

    monkeypatch.setattr(foveate_labs.tour.run, "tour", tour)
    monkeypatch.setattr(foveate.report, "render", lambda folder: folder / "report.html")
    monkeypatch.setattr(foveate_labs.pages.tour, "summarize", lambda result: ["learned"])
    result = CliRunner().invoke(command, ["--out", str(tmp_path), "--seed", "3"])
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if "foveate serve" in line]
    arguments = shlex.split(line)
    arguments = arguments[arguments.index("serve") + 1 :]
    assert arguments == [str(tmp_path / "cloc-seed3" / "model"), "mini"]
    assert [parameter.name for parameter in serve.params][:1] == ["folders"], "they are the verb's folders"
