"""`foveate doctor` and the dry run as a user types them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from command_line import Run

import tiny

ROOT = Path(__file__).resolve().parents[2]


def test_the_installation(foveate: Run, tmp_path: Path) -> None:
    told = foveate("doctor")
    assert told.code == 0, told.out
    assert "MiniLM weights: ok" in told.out
    assert "no problems" in told.out
    found = foveate("doctor", "--json").json
    assert all(one["ok"] for one in found["files"])
    assert not list(tmp_path.iterdir())


def test_other_weights_are_a_problem(foveate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from foveate.vision import minilm

    monkeypatch.setitem(minilm.FILES_SHA256, "config.json", "0" * 64)
    told = foveate("doctor")
    assert told.code == 1
    assert "problem: MiniLM weights: " in told.out
    assert "sha256" in told.out


def test_a_collection_and_a_run(foveate: Run, recipe_file: Path, tiny_collection: Path, tmp_path: Path) -> None:
    common = ("doctor", tiny_collection, "--seconds", "0.1")
    alone = foveate(*common, "--json")
    assert alone.code == 0, alone.err
    assert alone.json["rates"]["loader"] > 0
    assert alone.json["reach"] is None
    run = foveate(*common, "--recipe", recipe_file, "--json")
    assert run.code == 0, run.out
    assert run.json["reach"]["hours"] >= run.json["reach"]["hours_if_the_loader_kept_up"] > 0
    told = foveate(*common, "--recipe", recipe_file)
    assert "the run takes about" in told.out

    large = foveate(*common, "training.batch_size=32", "--recipe", recipe_file)
    assert large.code == 1
    assert "problem: batch_size 32 is larger than the 16 usable images" in large.out
    texts = foveate(*common, "data.captions={poem: 1, alt: 0, title: 0}", "--recipe", recipe_file)
    assert texts.code == 1
    assert "has a text of the kinds poem" in texts.out
    split = foveate(*common, "data.split=trian", "--recipe", recipe_file)
    assert split.code == 1
    assert "Did you mean 'train'?" in split.out
    uneven = foveate(*common, "--recipe", recipe_file, "--devices", "3", "--json")
    assert uneven.code == 1
    assert any("cannot be split evenly over 3" in one for one in uneven.json["problems"])
    shards = foveate(*common, "--recipe", recipe_file, "--devices", "8", "--reader", "webdataset")
    assert "3 shards for 8 WebDataset readers" in shards.out
    memory = foveate(*common, "--recipe", recipe_file, "--hardware", "small=1,0.0001")
    assert "0.0 GB are available" in memory.out
    assert not list(tmp_path.iterdir())


def test_mistakes(foveate: Run, recipe_file: Path, tiny_collection: Path) -> None:
    assert "no-such" in foveate("doctor", "no-such").sentence
    assert foveate("doctor", "--recipe", recipe_file).code == 2
    assert "Did you mean 'tour'?" in foveate("doctor", tiny_collection, "--recipe", "tuor").sentence


def test_a_dry_run_needs_no_collection(foveate: Run, tmp_path: Path) -> None:
    told = foveate("pretrain", "tour", "--dry-run", "--devices", "64", "--hardware", "h100-80gb")
    assert told.code == 0, told.err
    assert "device-days" in told.out
    assert foveate("pretrain", "tour", "--dry-run", "--samples", "1920", "--json").json["totals"]["steps"] == 10
    assert foveate("pretrain", "tour").code == 2
    assert foveate("pretrain", "tour", "--devices", "2", "--collection", "x").code == 2
    assert "Did you mean 'h200'?" in foveate("pretrain", "tour", "--dry-run", "--hardware", "h20").sentence
    assert not list(tmp_path.iterdir())


def test_the_default_run_folder_is_not_the_tours(foveate: Run, tiny_collection: Path, tmp_path: Path) -> None:
    tiny.write_recipe(tmp_path / "tour.yaml", training={"steps": 1})
    done = foveate(
        "pretrain", "tour.yaml", "--collection", tiny_collection, "--no-evaluation", "--device", "cpu", "--json"
    )
    assert done.json["paths"]["run"] == "runs/pretrain-tour"


def test_the_slurm_example_is_a_shell_script() -> None:
    script = ROOT / "docs" / "examples" / "slurm-cloc.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    text = script.read_text(encoding="utf-8")
    assert "-m -- foveate pretrain" in text, (
        "without the dashes torchrun takes the old name --run for an option of its own"
    )
