"""`foveate cache`: what it lists and what it removes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from foveate.cli.verbs.cache import command
from foveate.core.errors import UserError
from foveate.pretrain.caches import Cache, list_caches
from foveate.vision.feature_store import FeatureStore, keys_of


def made(folder: Path, name: str, *, days: float) -> Path:
    """A store of five entries that was last opened `days` days ago."""
    store = FeatureStore(folder / "cache", kind="images", depends=(name,), shape=(3,), dtype=torch.float32)
    store.fill(
        keys_of(map(str, range(5))),
        lambda entries: (torch.ones(len(entries), 3), np.zeros((len(entries), 2), np.int32), {}),
        block=2,
        description="made",
    )
    then = time.time() - days * 86_400
    os.utime(store.folder / "used", (then, then))
    return store.folder


def ask(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(command, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_lists_and_removes_what_nobody_uses(tmp_path: Path) -> None:
    fresh, old = made(tmp_path, "fresh", days=1), made(tmp_path, "old", days=40)
    former = tmp_path / "cache" / "features-0123"
    former.mkdir()
    (former / "000000000.features.npy").write_bytes(bytes(100))
    (tmp_path / "cache" / "texts-0123.safetensors").write_bytes(bytes(50))
    (tmp_path / "cache" / "notes.txt").write_text("mine")
    assert all(isinstance(one, Cache) for one in list_caches(tmp_path / "cache"))
    listed = {row["name"]: row for row in ask(tmp_path)["caches"]}
    assert set(listed) == {fresh.name, old.name, "features-0123", "texts-0123.safetensors"}
    assert {name for name, row in listed.items() if row["unused"]} == set(listed) - {fresh.name}
    assert listed[fresh.name]["parts"] == 3
    assert listed["features-0123"]["bytes"] == 100
    would = ask(tmp_path, "--remove", "unused", "--dry-run")
    assert old.is_dir()
    assert ask(tmp_path, "--remove", "unused")["freed_bytes"] == would["freed_bytes"] > 150
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {fresh.name, "notes.txt"}
    ask(tmp_path, "--remove", "all")
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"notes.txt"}


def test_a_removal_that_was_stopped_is_finished_by_the_next(tmp_path: Path) -> None:
    folder = made(tmp_path, "one", days=0)
    folder.replace(folder.with_name(f".{folder.name}.removed"))
    assert ask(tmp_path, "--remove", "unused")["freed_bytes"] > 0
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("remove", ["unused", "all"])
def test_a_removal_is_stopped_and_the_cache_made_again(remove: str, tmp_path: Path) -> None:
    for name in (".{}.removed", "..{}.removed.removed"):  # the second of a removal by an earlier release
        folder = made(tmp_path, "one", days=40)
        folder.replace(folder.with_name(name.format(folder.name)))
    made(tmp_path, "one", days=40)
    assert len(list_caches(tmp_path / "cache")) == 3
    assert ask(tmp_path, "--remove", remove)["freed_bytes"] > 0
    assert not list((tmp_path / "cache").iterdir())


def test_words_and_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is neither a collection"):
        CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False)
    (tmp_path / "collection.json").write_text("{}")
    said = CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False).output
    assert "no cache in" in said
    wrong = CliRunner().invoke(command, [str(tmp_path), "--remove", "unusd"], catch_exceptions=False)
    assert wrong.exit_code == 2
    assert "unused" in wrong.output
    with pytest.raises(UserError, match="is no folder"):
        CliRunner().invoke(command, [str(tmp_path / "nothing")], catch_exceptions=False)
