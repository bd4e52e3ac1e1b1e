"""Models between a network and its tuned one: written at an alpha, measured on shifted data, chosen on validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from adapt.compared import stripes
from adapt.test_adapt_train import backbone as backbone  # noqa: PLC0414 - a fixture
from adapt.test_matrix import config, moved
from adapt.towers import pixels, tower
from foveate.adapt.folder import load_adapter, read_head
from foveate.adapt.model import adapt
from foveate.adapt.registry import method_names
from foveate.adapt.wise import interpolated, save_at, smallest_near_best
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.core.progress import configure
from foveate.report.pages.adapt import build_adapt_wise as build_page
from naming import raises_naming

DEFINED = [name for name in method_names() if not name.startswith("vpt")]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["adapt", *map(str, arguments)], catch_exceptions=True)


@pytest.mark.parametrize("name", DEFINED)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_model_that_is_written_is_the_one_that_was_measured(name: str, alpha: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    adapted = adapt(tower("timm"), config(name), head=torch.nn.Linear(32, 3)).eval()
    moved(adapted)
    with torch.no_grad(), interpolated(adapted, alpha) as model:
        expected = model(pixels())
    save_at(adapted, alpha, tmp_path / "at")
    again = load_adapter(tower("timm"), tmp_path / "at")
    with torch.no_grad():
        assert torch.allclose(again(pixels()), expected, atol=2e-5)
    with pytest.raises(UserError, match="exists and is not empty"):
        save_at(adapted, alpha, tmp_path / "at")


def test_a_learnable_scale_is_scaled_and_prompts_are_refused(tmp_path: Path) -> None:
    adapted = adapt(tower("timm"), {"method": "pfeiffer", "rank": 4, "scale": "learnable"}, classes=3).eval()
    moved(adapted)
    with torch.no_grad(), interpolated(adapted, 0.5, head="keep") as model:
        expected = model(pixels())
    save_at(adapted, 0.5, tmp_path / "at", keep_head=True)
    with torch.no_grad():
        assert torch.allclose(load_adapter(tower("timm"), tmp_path / "at")(pixels()), expected, atol=2e-5)
    with raises_naming(UserError, "head", "alpha 0"):
        save_at(adapted, 0.5, tmp_path / "other")
    with raises_naming(UserError, "difffit", "0.5"):
        save_at(adapt(tower("timm"), "difffit", classes=3), 0.5, tmp_path / "same", keep_head=True)
    with raises_naming(UserError, "vpt_deep"):
        save_at(adapt(tower("timm"), "vpt-deep", classes=3), 0.5, tmp_path / "prompts", keep_head=True)


def test_the_rule() -> None:
    alphas = [0.0, 0.5, 1.0]
    # sqrt(.8 x .2 / 100) = .04
    assert smallest_near_best(alphas, [0.75, 0.77, 0.8], 100) == (0.5, pytest.approx(0.04))
    assert smallest_near_best(alphas, [0.75, 0.75, 0.8], 100)[0] == 1.0
    assert smallest_near_best(alphas, [1.0, 1.0, 0.9], 100) == (0.0, 0.0)


@pytest.fixture(scope="module")
def trained(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear probe, and full tuning that starts from its head."""
    folder = tmp_path_factory.mktemp("wise")
    stripes(folder / "own.npz", splits=(12, 6, 10))
    arrays = dict(np.load(folder / "own.npz"))
    kept = arrays["labels"] != "low"
    dark = {name: value[kept] for name, value in arrays.items()}
    dark["images"] = 255 - dark["images"]
    dark["labels"] = np.where(np.arange(kept.sum()) % 7 == 0, "strange", dark["labels"])
    np.savez(folder / "negative.npz", **dark)
    common = ("--backbone", backbone, "--collection", folder / "own.npz", "--device", "cpu", "--quiet", "--json")
    probe = run("train", *common, "--method", "linear", "--epochs", 20, "--out", folder / "linear",
                "training.learning_rate=0.05")  # fmt: skip
    assert probe.exit_code == 0, (probe.output, probe.exception)
    full = run("train", *common, "--method", "full", "--epochs", 8, "--out", folder / "full", "training.batch_size=12",
               "--head-from", folder / "linear")  # fmt: skip
    assert full.exit_code == 0, (full.output, full.exception)
    return folder


def wise(folder: Path, *more: object) -> dict[str, Any]:
    shifted = f"negative={folder / 'negative.npz'}"
    done = run("wise", folder / "full", "--data", folder / "own.npz", "--shifted", shifted, "--points", 3, "--device",
               "cpu", "--quiet", "--json", *more)  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_curve_and_the_model_at_an_alpha(trained: Path, tmp_path: Path) -> None:
    said = wise(trained, "--out", tmp_path / "run", "--adapter-out", tmp_path / "robust", "--at", 0.5)
    assert said["alphas"] == [0.0, 0.5, 1.0]
    assert said["head"] == "interpolated with the one that it started from"
    sets = {one["key"]: one for one in said["sets"]}
    assert [(key, one["n"], one["classes"]) for key, one in sets.items()] == [
        ("validation", 18, 3), ("test", 30, 3), ("shifted-negative", sets["shifted-negative"]["n"], 2),
    ]  # fmt: skip
    assert sets["shifted-negative"]["left_out"] == 20 - sets["shifted-negative"]["n"] > 0
    probe = json.loads((trained / "linear" / "result.json").read_text())["evaluation"]["table"]
    rows = {row["data"]: row["values"]["adapted"]["value"] for row in probe if "each class" not in row["question"]}
    # At 0 it is the network that came with the probe's head; at 1 what full tuning was measured with.
    assert sets["test"]["accuracy"][0]["value"] == pytest.approx(rows["test"])
    assert sets["validation"]["accuracy"][0]["value"] == pytest.approx(rows["validation"])
    full = json.loads((trained / "full" / "result.json").read_text())["evaluation"]["table"]
    assert sets["test"]["accuracy"][2]["value"] == pytest.approx(
        next(row["values"]["adapted"]["value"] for row in full if row["data"] == "test")
    )
    values = [one["value"] for one in sets["validation"]["accuracy"]]
    assert said["recommended"]["alpha"] == smallest_near_best(said["alphas"], values, 18)[0]
    assert said["saved"] == {"alpha": 0.5, "path": str(tmp_path / "robust")}
    assert (tmp_path / "robust" / "adapter.json").is_file()
    page = Path(said["paths"]["report"]).read_text(encoding="utf-8")
    for words in ("recommended", "Shifted against own test images", "it peeks", "are left out"):
        assert words in page
    assert build_page(json.loads((tmp_path / "run" / "result.json").read_text()), tmp_path / "run").title
    again = wise(trained, "--out", tmp_path / "again", "--head", "keep")
    assert again["head"] == "the tuned one"
    assert again["sets"][1]["accuracy"][2] == said["sets"][1]["accuracy"][2]


def test_words_and_mistakes(trained: Path, tmp_path: Path, backbone: Path) -> None:
    own = trained / "own.npz"
    said = run("wise", trained / "linear", "--data", own, "--points", 2, "--device", "cpu", "--out", tmp_path / "a")
    assert said.exit_code == 0, (said.output, said.exception)
    assert "Method: linear: the branch is multiplied by alpha · Head: the tuned one" in said.output
    assert ", recommended" in said.output
    for arguments, sentence in (
        (("--at", 0.5), "--at has no effect without --adapter-out"),
        (("--validation", "test"), "split 'test'"),
        (("--validation", "validaton"), "Did you mean 'validation'"),
        (
            ("--shifted", "x=missing.npz"),
            "--shifted 'x=missing.npz': no such file or folder; write PATH, PATH:FIELD",
        ),
    ):
        done = run("wise", trained / "full", "--data", own, "--device", "cpu", "--out", tmp_path / "b", *arguments)
        assert done.exit_code != 0
        assert sentence in done.output + str(done.exception), arguments
    odd = tmp_path / "odd.npz"
    arrays = dict(np.load(own))
    arrays["labels"] = np.where(arrays["labels"] == "top", "lowest", "else")
    np.savez(odd, **arrays)
    done = run("wise", trained / "full", "--data", own, "--shifted", f"odd={odd}", "--device", "cpu", "--out", tmp_path)
    assert "shifted set 'odd': none of its classes (else, ...) is one of the adapter's" in done.output + str(
        done.exception
    )
    done = run("wise", trained / "full", "--data", odd, "--device", "cpu", "--out", tmp_path / "c")
    assert "class 'low' has no image in odd.npz. Did you mean 'lowest'?" in done.output + str(done.exception)
    done = run("wise", tmp_path, "--data", own, "--device", "cpu")
    assert "adapter.json" in done.output + str(done.exception)
    import timm
    from timm.models._hub import save_for_hf

    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 0}
    small = timm.create_model("vit_tiny_patch16_224", **shape)
    save_for_hf(small, str(tmp_path / "small"), model_args=shape, safe_serialization=True)
    done = run("wise", trained / "full", "--data", own, "--backbone", tmp_path / "small", "--device", "cpu")
    assert "width 32; this backbone has 16" in done.output + str(done.exception)


def test_splits_that_were_trained_on_are_refused(trained: Path, tmp_path: Path) -> None:
    own, common = trained / "own.npz", ("--device", "cpu", "--quiet", "--json")
    info = json.loads((trained / "full" / "adapter" / "adapter.json").read_text(encoding="utf-8"))["info"]
    assert info["trained_on"] == [{"data": "own.npz", "splits": ["train"]}]
    backbone = info["backbone"]["source"]
    both = run("train", "--backbone", backbone, "--collection", own, *common, "--method", "linear", "--epochs", 1,
               "--out", tmp_path / "both", "data.train=[train,validation]")  # fmt: skip
    assert both.exit_code == 0, (both.output, both.exception)
    from_both = run("train", "--backbone", backbone, "--collection", own, *common, "--method", "bitfit", "--epochs", 1,
                    "--out", tmp_path / "head", "--head-from", tmp_path / "both")  # fmt: skip
    assert from_both.exit_code == 0, (from_both.output, from_both.exception)
    for adapter, options, sentence in (
        (tmp_path / "both", (), "split 'validation' of own.npz was trained on"),
        (tmp_path / "head", (), "split 'validation' of own.npz was trained on"),
        (trained / "full", ("--validation", "train"), "split 'train' of own.npz was trained on"),
        (trained / "full", ("--test", "train"), "split 'train' of own.npz was trained on"),
    ):
        done = run("wise", adapter, "--data", own, "--points", 2, "--out", tmp_path / "refused", *common, *options)
        assert done.exit_code != 0
        assert isinstance(done.exception, UserError)
        assert sentence in str(done.exception)
        assert not (tmp_path / "refused").exists()
    # Other data may have a split of that name; an adapter of an earlier version does not say.
    configure(quiet=False)
    other = tmp_path / "other.npz"
    other.write_bytes(own.read_bytes())
    done = run("wise", tmp_path / "both", "--data", other, "--points", 2, "--device", "cpu", "--out", tmp_path / "a")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "trained on the split 'validation' of own.npz; other.npz is taken for other images" in done.output
    said = json.loads((tmp_path / "both" / "adapter" / "adapter.json").read_text(encoding="utf-8"))
    del said["info"]["trained_on"]
    (tmp_path / "both" / "adapter" / "adapter.json").write_text(json.dumps(said), encoding="utf-8")
    done = run("wise", tmp_path / "both", "--data", own, "--points", 2, "--device", "cpu", "--out", tmp_path / "b")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "does not say which splits it was trained on" in done.output


def test_a_head_of_other_classes_is_refused(trained: Path) -> None:
    assert isinstance(read_head(trained / "linear" / "adapter", ["low", "middle", "top"]), torch.nn.Linear)
    with raises_naming(UserError, "left"):
        read_head(trained / "linear" / "adapter", ["left", "middle", "top"])
    with pytest.raises(UserError, match="they are in another order, or more"):
        read_head(trained / "linear" / "adapter", ["middle", "low", "top"])
