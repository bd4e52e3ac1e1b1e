"""The page from a card to a table is carried out: commands run and print what it shows, but for measured numbers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from foveate.cli.main import cli

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "camera-traps.md"
_TAXA = re.compile(r"\w+( \w+)?( (–|[a-z]+) #( #)?$|: test-)|(model|temperature|pooling|prior|roll-up|threshold|near)")
_BLOCKS = re.compile(r"^```(bash|python)\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)


def read_blocks() -> list[tuple[str, str, str]]:
    """Return language, content and the printed text behind it of each block of the page."""
    return _BLOCKS.findall(PAGE.read_text(encoding="utf-8"))


def mask(text: str) -> Iterator[str]:
    """Yield lines without their numbers; names of taxa and steps depend on the last digit of a training."""
    for line in text.splitlines():
        # Columns are as wide as the longest name, which depends on the last digit, too.
        line = re.sub(r"[\d.,]+", "#", " ".join(line.split()))
        if line and not _TAXA.match(line):
            yield line


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_page_is_carried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = read_blocks()
    (making,) = [content for language, content, _ in blocks if language == "python"]
    exec(compile(making, str(PAGE), "exec"), {"__name__": "page"})
    lines = [line for language, content, _ in blocks if language == "bash" for line in content.splitlines()]
    training = [line for line in lines if re.match(r"foveate species (boxes|build|train)", line)]
    assert len(training) == 3
    for line in training:
        run(line)
    (tmp_path / "my-species.csv").write_text("latin,common\nPanthera tigris,tiger\nBubalus bubalis,water buffalo\n")
    carried_out = 0
    for language, content, printed in blocks:
        # The survey of a user's own table is another one than the generated survey.
        if language != "bash" or "TimelapseData" in content or any(line in training for line in content.splitlines()):
            continue
        output = "".join(run(line) for line in content.splitlines())
        carried_out += content.count("foveate ")
        missing = set(mask(printed)) - set(mask(output))
        assert not missing, f"{content}{output}"
    assert carried_out >= 14
    assert (tmp_path / "results/report.html").is_file()


def run(line: str) -> str:
    result = CliRunner().invoke(cli, shlex.split(line, comments=True)[1:])
    assert result.exit_code == 0, f"{line}\n{result.output}{result.exception}"
    if "review results --max-events" in line:
        fill_in(Path("results/review/review.csv"))
    return result.output


def fill_in(table: Path) -> None:
    """Write the answers that the page names: blank in the first row, ok in the second."""
    rows = table.read_text(encoding="utf-8").splitlines()
    for number, answer in ((1, "blank"), (2, "ok")):
        assert rows[number].endswith(",,")
        rows[number] = f"{rows[number][:-1]}{answer},"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
