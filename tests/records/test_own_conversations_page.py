"""The page on own conversations is carried out: its files are written, its commands run, nothing is quarantined."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_images import jpeg

from foveate.cli.main import cli
from foveate.records.collection import Collection
from foveate.records.conversations import Conversations

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "own-conversations.md"


def test_the_page_is_carried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    photos = tmp_path / "my-data" / "photos"
    photos.mkdir(parents=True)
    for number, name in enumerate(("harbor", "market")):
        (photos / f"{name}.jpg").write_bytes(jpeg(number, width=640, height=480))
    files = re.findall(r"`(my-data/[\w.]+)`:\n\n```json\n(.*?)```", text, re.DOTALL)
    for name, content in files:
        Path(name).write_text(content, encoding="utf-8")
    commands = re.findall(r"^foveate (.*)$", text, re.MULTILINE)
    # What trains, and what asks the result, takes minutes; the questions of own/ are made before it.
    commands = [c for c in commands if c.startswith(("collect", "inspect")) and " own/" not in c]
    assert len(files) == 5
    assert len(commands) == 7
    for command in commands:
        result = CliRunner().invoke(cli, shlex.split(command))
        assert result.exit_code == 0, result.output
        assert "quarantined" not in result.output
    with Collection.open(tmp_path / "my-conversations") as collection:
        conversations = list(Conversations(collection))
        assert len(collection) == 2 + 1  # with --images, market.jpg has another key
    assert [entry.group for entry in conversations] == [
        "refer-ground",
        "general",
        "refer-ground",
        "refer-ground",
        "text-rich",
    ]
    assert (tmp_path / "my-conversations" / "cache" / "boxes-llava.png").is_file()
