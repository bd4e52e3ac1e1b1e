"""Right after the install, without a network: a folder of photographs is indexed, searched and looked into."""

from __future__ import annotations

import importlib.resources
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from command_line import Run

from foveate.core.hub import DEFAULT_ENCODER

SAMPLES = Path(str(importlib.resources.files("skimage"))) / "data"
NAMES = {"chelsea.png": "1.png", "coffee.png": "2.png", "rocket.jpg": "3.jpg"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("there is no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Photographs whose names say nothing of what they show."""
    folder = tmp_path / "my-folder"
    folder.mkdir()
    for name, number in NAMES.items():
        shutil.copy(SAMPLES / name, folder / number)
    return folder


def test_a_folder_is_indexed_and_searched(foveate: Run, photographs: Path) -> None:
    made = foveate("index", photographs, "--json", "--quiet")
    assert made.code == 0, made.err
    assert made.json["model"] == DEFAULT_ENCODER
    assert made.json["counts"] == {"images": 3, "regions": 3 * 38, "unreadable": 0}
    index = made.json["paths"]["index"]
    # The third is small in its photograph: it comes first, but may be as good as chance.
    first = (("a kitten", "1", (0,)), ("something to drink", "2", (0,)), ("a rocket", "3", (0, 3)))
    for text, name, codes in first:
        found = foveate("search", index, text, "--json", "--quiet")
        assert found.code in codes, found.out
        assert found.json["results"]["hits"][0]["key"] == name, text
    absent = foveate("search", index, "a grand piano", "--json", "--quiet")
    assert absent.code == 3
    assert "by chance" in absent.json["reason"]
    # The words of a name find it whatever the floor is.
    shutil.copy(photographs / "1.png", photographs / "grand_piano.png")
    assert foveate("index", photographs, "--quiet").code == 0
    assert (
        foveate("search", index, "a grand piano", "--json", "--quiet").json["results"]["hits"][0]["key"]
        == "grand_piano"
    )


def test_a_phrase_is_located(foveate: Run, photographs: Path) -> None:
    found = foveate("locate", photographs / "2.png", "a cup of coffee", "--json")
    assert found.code == 0, found.err
    assert found.json["model"] == DEFAULT_ENCODER
    absent = foveate("locate", DEFAULT_ENCODER, photographs / "2.png", "a zebra", "--json")
    assert absent.code == 3
    assert not absent.json["has_match"]
    for words in (("locate", photographs / "2.png"), ("index",), ("index", "a", "b", "c")):
        assert foveate(*words).code == 2


def test_a_hub_out_of_reach_is_said_at_once_and_names_the_default(
    foveate: Run, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("someone/some-clip", "open_clip:ViT-B-32/laion2b_s34b_b79k"):
        refused = foveate("index", name, photographs)
        assert f"'{DEFAULT_ENCODER}'" in refused.sentence
        assert not (photographs.parent / "my-folder-index").exists()


def test_the_server_has_the_shipped_models(foveate: Run) -> None:
    served = foveate("serve", "--dry-run", "--json").json["models"]
    assert [(model["name"], model["kind"]) for model in served] == [
        ("mini", "multimodal"),
        (DEFAULT_ENCODER, "localizer"),
    ]
