"""Backbones of the hub through the command line: downloaded once, opened without it, and what is said where it fails.

The hub is a server on this machine; models are tiny and random, in their libraries' real formats.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from adapt.compared import stripes
from foveate.adapt.load_backbone import parse_backbone
from foveate.core.errors import UserError
from local_hub import COMMIT, Hub, serving
from naming import raises_naming
from vision.foreign import save_clip, save_dinov2, save_open_clip

BACKBONES = {
    "vit": "timm:test_vit.r160_in1k",
    "cnn": "timm:a/cnn",
    "dino": "dinov2:a/dino",
    "clip": "clip:a/clip",
    "open": "open_clip:a/open",
}
MERGED = {"vit", "dino", "open"}
COMMANDS = Path(__file__).with_name("hub_commands.py")


def run(hub: Hub, home: Path, commands: Sequence[Sequence[object]], **variables: str) -> list[tuple[int, str]]:
    """Exit status and output of each command, none of which may end in a traceback."""
    done = subprocess.run(
        [sys.executable, str(COMMANDS)],
        input=json.dumps([list(map(str, command)) for command in commands]),
        env={**os.environ, **hub.environment(home), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert not [output for status, output in answers if status is None]
    return [(status, output) for status, output in answers]


def train(folder: Path, backbone: str, *more: object, to: str) -> list[object]:
    return ["train", "--backbone", backbone, "--collection", folder / "stripes.npz", "--method", "bitfit", "--epochs",
            1, "--device", "cpu", "--out", folder / to, "training.workers=0", "training.head_c=1", *more]  # fmt: skip


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import timm
    from timm.models import save_for_hf

    root = tmp_path_factory.mktemp("repositories")
    names = ("timm/test_vit.r160_in1k", "a/cnn", "a/dino", "a/clip", "a/open", "a/pickle", "a/cut", "a/gated", "a/busy")
    folders = {name: root / name.replace("/", "--") for name in names}
    for name, model in (("timm/test_vit.r160_in1k", "test_vit"), ("a/cnn", "test_resnet")):
        save_for_hf(timm.create_model(model), folders[name], safe_serialization=True)
    for name in ("a/dino", "a/pickle", "a/cut", "a/gated", "a/busy"):
        save_dinov2(folders[name])
    (folders["a/pickle"] / "model.safetensors").rename(folders["a/pickle"] / "pytorch_model.bin")
    save_clip(folders["a/clip"])
    save_open_clip(folders["a/open"])
    return folders


@pytest.mark.parametrize("names", [("vit", "dino"), pytest.param(tuple(BACKBONES), marks=pytest.mark.slow)])
def test_a_backbone_is_downloaded_once_and_pinned_and_opens_without_the_hub(
    names: tuple[str, ...], repositories: dict[str, Path], tmp_path: Path
) -> None:
    stripes(tmp_path / "stripes.npz", splits=(4, 2, 2))
    backbones = {name: BACKBONES[name] for name in names}
    hub, home = Hub(repositories), tmp_path / "home"
    with serving(hub):
        done = run(hub, home, [train(tmp_path, backbone, to=name) for name, backbone in backbones.items()])
        assert not [output for status, output in done if status], done
        weights = [asked for asked in hub.asked if asked.startswith("GET") and asked.endswith(".safetensors")]
        assert len(weights) == len(set(weights)) == len(backbones)
        assert f"fetching a/dino from {hub.endpoint}" in done[names.index("dino")][1]
    for name, backbone in backbones.items():
        settings = json.loads((tmp_path / name / "adapter" / "adapter.json").read_text())["info"]["backbone"]
        assert settings == {**parse_backbone(backbone), "revision": COMMIT}
    # The hub is gone: what is in the cache opens, with the same command and by the adapter.
    merged = [name for name in names if name in MERGED]
    if names == tuple(BACKBONES):
        commands = [
            train(tmp_path, backbones["dino"], "backbone.offline=true", to="offline"),
            train(tmp_path, backbones[names[-1]], "backbone.revision=main", to="named"),
        ]
    else:
        commands, merged = [], merged[:1]
    commands = [
        train(tmp_path, backbones["dino"], to="again"),
        *commands,
        *(["merge", tmp_path / name, "--out", tmp_path / f"merged-{name}"] for name in merged),
        train(tmp_path, str(tmp_path / "merged-vit"), to="from-the-folder"),
    ]
    for status, output in run(hub, home, commands):
        assert status == 0, output
        assert "fetching" not in output


@pytest.mark.slow
def test_what_fails_is_said_in_one_line_and_nothing_cut_off_is_kept(
    repositories: dict[str, Path], tmp_path: Path
) -> None:
    stripes(tmp_path / "stripes.npz", splits=(4, 2, 2))
    hub, home = Hub(repositories, cut={"a/cut"}, gated={"a/gated"}, broken={"a/busy"}), tmp_path / "home"
    tell = "`hf download {} --local-dir FOLDER` makes it on a machine with a network"
    with serving(hub):
        expected = {
            ("dinov2:a/none",): f"'a/none': {hub.endpoint} has no repository of this name; check OWNER/NAME, run",
            ("dinov2:a/gated",): "'a/gated': the repository is gated: accept its terms",
            ("dinov2:a/dino", "backbone.revision=v9"): "'a/dino' at revision 'v9': the repository has no such revision",
            ("dinov2:a/busy",): f"'a/busy': {hub.endpoint} answers with an error (503); try again later, or give the",
            ("dinov2:a/cut",): f"'a/cut': the download from {hub.endpoint} broke off (peer closed connection",
            ("dinov2:a/pickle",): "a/pickle: its weights are a pickle (pytorch_model.bin), which may run code",
            ("timm:test_vit.r16_in1k",): "timm has no weights of this name. Did you mean 'test_vit.r160_in1k'?",
        }
        done = run(hub, home, [train(tmp_path, *given, to="run") for given in expected])
        for (status, output), part in zip(done, expected.values(), strict=True):
            last = output.splitlines()[-1]
            assert status == 1
            assert last.startswith("foveate: ")
            assert part in last
            assert len(output.splitlines()) <= 2
        assert tell.format("a/cut") in done[4][1]
        assert not [asked for asked in hub.asked if asked.startswith("GET") and asked.endswith(".bin")]
    assert not (tmp_path / "run").exists()
    assert not list(home.rglob("*.incomplete"))
    assert not list(home.rglob("*.safetensors"))
    # The server has stopped.
    away = f"not in the cache, and {hub.endpoint} is out of reach; give the path of a folder instead: "
    done = run(hub, home, [train(tmp_path, f"dinov2:{name}", to="run") for name in ("a/dino", "a/cut")])
    for (status, output), name in zip(done, ("a/dino", "a/cut"), strict=True):
        assert status == 1
        assert f"'{name}': {away}{tell.format(name)}" in output
    done = run(hub, home, [train(tmp_path, "dinov2:a/cut", to="run")], HF_HUB_OFFLINE="1")
    assert "'a/cut': not in the cache, and offline mode is on" in done[0][1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["a/dino", "hf-hub:a/dino"])
def test_a_hub_model_without_its_kind_is_told_how_to_be_named(text: str) -> None:
    with raises_naming(UserError, "timm:a/dino", "dinov2:a/dino"):
        parse_backbone(text)
