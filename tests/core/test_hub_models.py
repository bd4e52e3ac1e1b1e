"""Models that Foveate wrote, opened as OWNER/NAME from a hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate.core.errors import UserError
from foveate.core.hub import find, locate
from local_hub import Hub, serving_this_process
from naming import raises_naming

FILES = {
    "species": ("config.json", "model.safetensors", "taxa.json"),
    "adapter": ("adapter.json", "adapter.safetensors"),
    "classifier": ("config.json", "model.safetensors"),
    "served": ("config.json", "model.safetensors"),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("repositories")
    for kind, names in FILES.items():
        (root / kind).mkdir()
        for name in names:
            (root / kind / name).write_text("{}", encoding="utf-8")
    (root / "empty").mkdir()
    (root / "empty" / "README.md").write_text("nothing", encoding="utf-8")
    with serving_this_process(Hub({f"a/{kind}": root / kind for kind in (*FILES, "empty")}), root / "cache"):
        yield Hub({})


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.usefixtures("hub")
def test_each_kind_is_found_on_the_hub(kind: str) -> None:
    found = find(kind, f"a/{kind}")
    assert sorted(path.name for path in found.folder.iterdir()) == sorted(FILES[kind])
    assert found.commit is not None
    assert find(kind, f"a/{kind}@v1").folder == found.folder


@pytest.mark.usefixtures("hub")
def test_a_repository_without_the_files_of_the_kind_is_named() -> None:
    with raises_naming(UserError, "model 'a/empty'", "config.json"):
        find("species", "a/empty")


def test_a_mistyped_path_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with raises_naming(UserError, "no such folder (got 'runs/lora')", "OWNER/NAME on the hub"):
        locate("adapter", "runs/lora")
    assert locate("adapter", "runs/lora@main") is None
