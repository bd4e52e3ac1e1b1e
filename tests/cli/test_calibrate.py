"""`foveate calibrate` from the command line: saved logits, a model with its data, bad input, the page."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from foveate.cli.main import main
from foveate.records.writer import CollectionWriter
from foveate.training.logit_files import read_logits, write_logits

GOLDENS = Path(__file__).parents[1] / "goldens" / "calibration"
NAMES = ["ant", "bee", "cat", "dog"]
COLORS = [(220, 40, 40), (40, 180, 60), (50, 80, 220), (230, 210, 40)]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code: Any = 0
    try:
        main([str(one) for one in arguments])
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return int(code), captured.out, captured.err


@pytest.fixture(scope="module")
def glyph_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored glyph logits as files that a user would have."""
    folder = tmp_path_factory.mktemp("logits")
    with np.load(GOLDENS / "glyph.npz", allow_pickle=False) as file:
        arrays = dict(file)
    names = list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    for name, key in (("after", "glyph_ft"), ("before", "glyph_pre")):
        write_logits(
            folder / f"{name}.npz", logits=arrays[f"{key}/logits"], labels=arrays[f"{key}/labels"], class_names=names,
            features=arrays[f"{key}/features"],
        )  # fmt: skip
    write_logits(
        folder / "train.npz", logits=arrays["glyph_ft/train_logits"], labels=arrays["glyph_ft/train_labels"],
        class_names=names,
    )  # fmt: skip
    for number in range(3):
        write_logits(
            folder / f"pseudo-{number}.npz", logits=arrays[f"pcv_run{number}/logits_all_columns"],
            labels=arrays["pcv_labels"], class_names=names, seen=arrays[f"pcv_run{number}/S"],
            absent=arrays[f"pcv_run{number}/U"], source_logits=arrays["pcv_source_logits"],
        )  # fmt: skip
    (folder / "seen.txt").write_text("\n".join(names[number] for number in arrays["glyph_ft/S"]) + "\n")
    return folder


def expected_alg() -> float:
    cases = json.loads((GOLDENS / "glyph.json").read_text())["cases"]
    return float(next(case for case in cases if case["case"] == "glyph_ft")["alg_training_data"]["gamma"])


def test_logits_by_both_methods(
    glyph_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(glyph_files)
    pseudo = [part for number in range(3) for part in ("--pseudo", f"pseudo-{number}.npz")]
    arguments = ["calibrate", "after.npz", "--training", "train.npz", "--before", "before.npz", *pseudo]
    arguments += ["--classes-seen", "@seen.txt", "--method", "all", "--out", str(tmp_path / "run")]
    arguments += ["--checkpoint", str(GOLDENS / "glyph_pretrained.safetensors")]
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert "fine-tuned" in out
    assert "+ gamma* (peeks)" in out
    assert "the level of the absent classes is 3.8 too low" in out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["gammas"]["alg"]["gamma"] == pytest.approx(expected_alg(), abs=1e-6)
    rows = {row["key"]: row for row in result["rows"]}
    assert list(rows) == ["before", "after", "alg", "best_gap", "pcv", "star"]
    assert result["gamma"] == result["gammas"]["best_gap"]["gamma"]
    assert rows["after"]["accuracies"]["U/Y"] == pytest.approx(15.0793650)
    assert rows["after"]["ausuc"] == pytest.approx(0.2911312673)
    assert out.rstrip().splitlines()[-1].startswith("report: ")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "gamma* (peeks)" in page
    assert "AUSUC" in page
    assert "<svg" in page
    bias = load_file(tmp_path / "run" / "calibrated.safetensors")["head.bias"]
    plain = load_file(GOLDENS / "glyph_pretrained.safetensors")["head.bias"]
    absent = [i for i, name in enumerate("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") if name in result["classes"]["absent"]]
    np.testing.assert_allclose((bias - plain)[absent], result["gamma"], rtol=1e-5)
    # The same command again ends the same.
    code, again, _ = run(capsys, *arguments, "--json")
    assert code == 0
    assert json.loads(again)["gamma"] == result["gamma"]


@pytest.fixture
def pushed_down(tmp_path: Path) -> Path:
    """Files of eight classes, four seen: the mean other seen logit is pushed below the absent ones, the best is not.

    ALG is then negative, though the absent classes are too low; the best gap is positive.
    """
    random = np.random.default_rng(0)
    names = list("abcdefgh")

    def outputs(labels: np.ndarray) -> np.ndarray:
        logits = -6 + 0.3 * random.standard_normal((len(labels), 8))
        logits[:, 4:] = -3 + random.standard_normal((len(labels), 4))
        rows = np.arange(len(labels))
        confused = (labels + 1) % 4
        logits[rows, confused] = 2 + random.standard_normal(len(labels))
        seen = labels < 4
        logits[rows[seen], labels[seen]] = 6.0
        logits[rows[~seen], labels[~seen]] = 1.0
        return logits

    for name, classes in (("train", 4), ("test", 8)):
        labels = np.arange(400) % classes
        write_logits(tmp_path / f"{name}.npz", logits=outputs(labels), labels=labels, class_names=names)
    head = {"head.weight": torch.zeros(8, 2), "head.bias": torch.zeros(8)}
    save_file(head, tmp_path / "tuned.safetensors")
    return tmp_path


def test_a_gamma_that_lowers_accuracy_is_reported_first_and_not_written(
    pushed_down: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", pushed_down / "test.npz", "--training", pushed_down / "train.npz"]
    arguments += ["--classes-seen", "a,b,c,d", "--checkpoint", pushed_down / "tuned.safetensors"]
    target = pushed_down / "calibrated.safetensors"
    harmful = [*arguments, "--method", "alg", "--out", pushed_down / "alg", "--checkpoint-out", target]
    code, out, _ = run(capsys, *harmful)
    assert code == 1
    assert not target.exists()
    first = out.splitlines()[0]
    result = json.loads((pushed_down / "alg" / "result.json").read_text())
    rows = {row["key"]: row["accuracies"]["Y/Y"] for row in result["rows"]}
    assert result["gamma"] < 0
    assert rows["alg"] < rows["after"]
    assert first == result["harm"]
    for word in ("ALG", "Y/Y", f"{rows['after']:.1f}", f"{rows['alg']:.1f}", "without --method"):
        assert word in first
    assert "--force" in out
    assert result["harm"] in (pushed_down / "alg" / "report.html").read_text()
    code, out, _ = run(capsys, *harmful, "--json")
    assert (code, json.loads(out)["checkpoint"]) == (1, "")
    code, out, _ = run(capsys, *harmful, "--force")
    assert code == 0
    np.testing.assert_allclose(load_file(target)["head.bias"][4:], result["gamma"], rtol=1e-6)
    # All free estimates together: another one helps, is used, and is written without being forced.
    code, out, _ = run(capsys, *arguments, "--out", pushed_down / "default")
    result = json.loads((pushed_down / "default" / "result.json").read_text())
    assert (code, result["harm"], result["method"]) == (0, "", "best_gap")
    rows = {row["key"]: row["accuracies"] for row in result["rows"]}
    assert rows["best_gap"]["Y/Y"] > rows["after"]["Y/Y"] > rows["alg"]["Y/Y"]
    sentence = next(line for line in out.splitlines() if "with gamma" in line)
    absent = {key: row["U/Y"] for key, row in rows.items()}
    assert f"{absent['after']:.1f} % right" in sentence
    assert f"{absent['best_gap']:.1f} % with gamma" in sentence
    assert "4 of 8 classes are seen" in out


def test_tables_need_no_list_of_seen_classes(pushed_down: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "test"):
        file = read_logits(pushed_down / f"{name}.npz")
        rows = [
            ",".join([*map(repr, row.tolist()), file.class_names[k]])
            for row, k in zip(file.logits, file.labels, strict=True)
        ]
        (pushed_down / f"{name}.csv").write_text("\n".join([",".join([*file.class_names, "label"]), *rows]) + "\n")
    gammas = []
    for suffix, more in ((".npz", ("--classes-seen", "0-3")), (".csv", ())):
        files = (pushed_down / f"test{suffix}", "--training", pushed_down / f"train{suffix}")
        code, out, err = run(capsys, "calibrate", *files, *more, "--out", pushed_down / suffix[1:], "--json")
        assert code == 0, err
        gammas.append(json.loads(out)["gamma"])
    assert gammas[0] == pytest.approx(gammas[1], abs=1e-12)
    assert any("train.csv" in note for note in json.loads(out)["notes"])
    code, _, err = run(capsys, "calibrate", pushed_down / "test.csv", "--out", pushed_down / "none")
    assert code == 1
    assert "--classes-seen" in err


def test_training_logits_alone_give_gamma(
    glyph_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(
        capsys,
        "calibrate",
        glyph_files / "train.npz",
        "--classes-seen",
        f"@{glyph_files / 'seen.txt'}",
        "--out",
        tmp_path / "r",
    )
    assert code == 0
    assert f"ALG estimates gamma {expected_alg():+.2f}" in out
    assert "used as the fine-tuning data" in out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of four colors, and a tiny network of timm as if pre-trained and as if fine-tuned on two."""
    import timm

    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    with CollectionWriter(folder / "images", name="colors", license="CC0-1.0", source="test") as writer:
        for split, count in (("train", 12), ("test", 6)):
            for number in range(count * 4):
                label = number % 4
                noisy = np.array(COLORS[label]) + random.normal(0, 60, (32, 32, 3))
                buffer = io.BytesIO()
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
                labels = {"animal": NAMES[label]} if number else {"other": "x"}
                writer.add(f"{split}-{number:03d}", buffer.getvalue(), labels=labels, split=split)
        writer.add("few-0", buffer.getvalue(), labels={"animal": "ant"}, split="few")
    torch.manual_seed(0)
    arguments = {"img_size": 32, "depth": 1}
    model = timm.create_model("test_vit", pretrained=False, num_classes=4, **arguments)
    config = {
        "architecture": "test_vit", "num_classes": 4, "label_names": NAMES, "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "classifier": "head"},
    }  # fmt: skip
    for name, shift in (("before", 0.0), ("after", -2.0)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        state = {key: value.clone() for key, value in model.state_dict().items()}
        state["head.bias"][2:] += shift
        save_file(state, folder / name / "model.safetensors")
    return folder


def on_model(world: Path, *more: object) -> list[object]:
    return [
        "calibrate", world / "after", "--before", world / "before", "--collection", world / "images", "--labels",
        "animal", "--classes-seen", "ant,bee", "--epochs", "2", "--batch-size", "8", "--pseudo-splits", "2", *more,
    ]  # fmt: skip


def test_a_model_with_its_data(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys, *on_model(world, "--out", tmp_path / "run", "--threshold", "none", "--method", "all", "--force")
    )
    assert code == 0, err
    assert "1 images of the split 'train' have no label 'animal' and were left out" in out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["gammas"]["pcv"]["each"]) == 2
    assert "a pseudo run was fine-tuned on 1 class only" in out
    assert result["head"]["U"]["update_norm"] == 0, "only the bias was changed"
    assert result["rows"][0]["ncm"]["U/U"] is not None
    for name in ("training", "test", "before"):
        read_logits(tmp_path / "run" / f"{name}.npz")
    run_file = read_logits(tmp_path / "run" / "pseudo-0.npz")
    assert set(np.unique(run_file.labels).tolist()) == {0, 1}, "no sample of an absent class"
    folded = load_file(tmp_path / "run" / "calibrated" / "model.safetensors")
    plain = load_file(world / "after" / "model.safetensors")
    for name, value in plain.items():
        assert torch.equal(value, folded[name]) or name == "head.bias"
    np.testing.assert_allclose((folded["head.bias"] - plain["head.bias"]).numpy()[2:], result["gamma"], rtol=1e-4)
    # Repeated, it reads the pseudo runs instead of training again; with other settings it refuses the folder.
    before = (tmp_path / "run" / "pseudo-0.npz").stat().st_mtime_ns
    code, again, err = run(
        capsys, *on_model(world, "--out", tmp_path / "run", "--threshold", "none", "--json", "--force")
    )
    assert code == 0
    # --threshold and --pseudo-splits belong to PCV: given without --method, they choose it.
    assert json.loads(again)["gamma"] == pytest.approx(result["gammas"]["pcv"]["gamma"])
    assert (tmp_path / "run" / "pseudo-0.npz").stat().st_mtime_ns == before
    assert "fine-tuning on" not in err
    code, _, err = run(capsys, *on_model(world, "--out", tmp_path / "run", "--learning-rate", "0.5"))
    assert code == 1
    assert "holds a run of another recipe" in err


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("of_model", [True, False])
def test_a_run_of_another_kind_is_not_replaced(
    finished: bool, of_model: bool, world: Path, glyph_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"recipe.yaml": "method: {method: lora}\n", "run.json": "{}"}
    files |= {"result.json": '{"kind": "adapt"}'} if finished else {"metrics.jsonl": '{"step": 1}\n'}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    source = on_model(world) if of_model else ["calibrate", glyph_files / "after.npz", "--classes-seen", "0,1"]
    code, _, err = run(capsys, *source, "--out", tmp_path)
    assert code == 1
    assert f"{tmp_path} holds a run of another kind" in err
    assert "result.json" in err or "recipe.yaml" in err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_logits_are_calibrated_where_a_model_was(
    glyph_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in docs/how-to/calibrate.md, whose commands share the default folder."""
    for name, text in {
        "recipe.yaml": "fine_tuning: {}\n",
        "run.json": "{}",
        "result.json": '{"kind": "calibrate"}',
    }.items():
        (tmp_path / name).write_text(text)
    arguments = ["calibrate", glyph_files / "after.npz", "--training", glyph_files / "train.npz"]
    code, _, err = run(capsys, *arguments, "--classes-seen", f"@{glyph_files / 'seen.txt'}", "--out", tmp_path)
    assert code == 0, err
    assert not (tmp_path / "recipe.yaml").exists()


def test_pseudo_runs_are_augmented_as_told(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for name, more in (
        ("plain", []),
        ("varied", ["--crop", "0.5", "--flip", "0.5", "--color", "0.3", "--gray", "0.2"]),
    ):
        code, _, err = run(
            capsys,
            *on_model(
                world, "--out", tmp_path / name, "--threshold", "none", "--learning-rate", "0.1", "--force", *more
            ),
        )
        assert code == 0, err
        found.append(read_logits(tmp_path / name / "pseudo-0.npz"))
    assert not np.array_equal(found[0].logits, found[1].logits)
    assert found[0].source_logits is not None
    np.testing.assert_array_equal(found[0].source_logits, found[1].source_logits)
    recipe = (tmp_path / "varied" / "pseudo-0" / "recipe.yaml").read_text()
    assert '"augmentation":{"crop":0.5,"flip":0.5,"color":0.3,"gray":0.2,"randaugment":0,"erasing":0.0}' in recipe


def test_dry_run_counts(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *on_model(world, "--out", tmp_path / "run", "--dry-run"))
    assert code == 0
    assert "2 fine-tunings on about 11 images each, 4 steps of 8 samples in all" in out
    assert not (tmp_path / "run").exists()


def broken_model(world: Path, tmp_path: Path, change: Any) -> Path:
    folder = tmp_path / "broken"
    shutil.copytree(world / "after", folder)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    return folder


def test_bad_checkpoints(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def extra(state: dict[str, torch.Tensor]) -> None:
        state["adapter.weight"] = torch.zeros(2)

    def lost(state: dict[str, torch.Tensor]) -> None:
        del state["norm.weight"]

    def wide(state: dict[str, torch.Tensor]) -> None:
        state["head.weight"] = torch.zeros(4, 5)

    def burst(state: dict[str, torch.Tensor]) -> None:
        state["norm.weight"] = torch.full_like(state["norm.weight"], float("nan"))

    for number, (change, words) in enumerate(
        (
            (extra, "adapter.weight"),
            (lost, "missing ['norm.weight']"),
            (wide, "'head.weight' has shape"),
            (burst, "tensor 'norm.weight' holds NaN or infinity"),
        )
    ):
        folder = broken_model(world, tmp_path / str(number), change)
        for place in (1, 3):  # the fine-tuned and the pre-trained model
            arguments = on_model(world, "--out", tmp_path / f"run-{number}-{place}", "--pseudo-splits", "1")
            arguments[place] = folder
            code, _, err = run(capsys, *arguments)
            assert code == 1
            assert words in err
            assert "Traceback" not in err


def test_bad_checkpoints_beside_logits(glyph_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = load_file(GOLDENS / "glyph_pretrained.safetensors")
    arguments = ["calibrate", glyph_files / "train.npz", "--classes-seen", f"@{glyph_files / 'seen.txt'}"]
    for number, (head, words) in enumerate(
        (
            ({}, "no classifier found"),
            ({"head.weight": whole["head.weight"]}, "classifier 'head' has no bias"),
            ({"head.weight": torch.zeros(3, 4), "head.bias": torch.zeros(3)}, "gamma was found for 36 classes"),
        )
    ):
        path = tmp_path / f"{number}.safetensors"
        save_file({**{name: value for name, value in whole.items() if "head" not in name}, **head}, path)
        code, _, err = run(capsys, *arguments, "--checkpoint", path, "--out", tmp_path / "run")
        assert (code, "Traceback" in err) == (1, False)
        assert words in err


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--classes-seen", "cow"], 1, "'cow' is not a class"),
        (["--classes-seen", "ant"], 1, "class 0 is named twice"),
        (["--classes-absent", "bee"], 1, "seen and absent classes overlap in 1 (1)"),
        (["--labels", "animl"], 1, "Did you mean 'animal'"),
        (["--labels", "other"], 1, "1 values are not classes of the model, first 'x'"),
        (["--test-split", "tset"], 1, "Did you mean 'test'"),
        (["--train-split", "few"], 1, "1 seen classes have no image in the split 'few', first 'bee'"),
        (["--training", "x.npz"], 2, "--training has no effect where SOURCE is a folder"),
        (["--method", "alg"], 2, "--pseudo-splits has no effect with --method alg"),
        (["--variant", "official"], 2, "No such option"),
        (["--pseudo", "x.npz"], 2, "--pseudo-splits has no effect where pseudo runs are given with --pseudo"),
        (["--flip", "2"], 2, "0<=x<=1"),
        (["--learning-rate", "0"], 2, "0"),
    ],
)
def test_bad_input_for_a_model(
    more: list[str], code: int, words: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got, _, err = run(capsys, *on_model(world, "--out", tmp_path / "run", *more))
    assert (got, "Traceback" in err) == (code, False)
    assert words in err


def test_pcv_wants_the_pretrained_model(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["calibrate", world / "after", "--collection", world / "images", "--labels", "animal"]
    arguments += ["--classes-seen", "ant,bee", "--out", tmp_path / "run"]
    for more in (("--method", "pcv"), ("--method", "all"), ("--epochs", "3")):
        code, _, err = run(capsys, *arguments, *more)
        assert code == 1
        assert "--before" in err
    code, out, _ = run(capsys, *arguments, "--out", tmp_path / "free")
    assert code == 0
    assert {"ALG", "best gap"} <= {line.split("  ")[0] for line in out.splitlines()}
    code, _, err = run(capsys, "calibrate", world / "after", "--collection", world / "images", "--labels", "animal")
    assert (code, "--classes-seen" in err) == (2, True)
    code, _, err = run(capsys, "calibrate", world / "after", "--classes-seen", "ant")
    assert code == 2
    assert "give --collection DIR and --labels FIELD" in err


def test_pseudo_runs_must_be_of_the_model_s_classes(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", world / "after", "--collection", world / "images", "--labels", "animal"]
    arguments += ["--classes-seen", "ant,bee", "--threshold", "none", "--out", tmp_path / "run"]
    labels = np.array([0, 1] * 20)
    logits = np.eye(4)[labels] + 0.3 * np.random.default_rng(0).standard_normal((40, 4))
    for name, names, words in (
        ("whole", NAMES, ""),
        ("turned", ["bee", "ant", *NAMES[2:]], f"turned.npz: class 0 is 'bee'; in {world / 'after'} it is 'ant'"),
        ("wide", [*NAMES, "eel"], f"wide.npz has 5 columns; {world / 'after'} has 4"),
    ):
        width = ((0, 0), (0, len(names) - 4))
        path = tmp_path / f"{name}.npz"
        write_logits(path, logits=np.pad(logits, width), labels=labels, class_names=names, seen=[0], absent=[1])
        code, _, err = run(capsys, *arguments, "--pseudo", path)
        assert (code, "Traceback" in err) == (1 if words else 0, False), (name, err)
        assert words in err


def change_logits(path: Path, target: Path, **changes: Any) -> Path:
    with np.load(path, allow_pickle=False) as file:
        arrays = {**dict(file), **changes}
    return write_logits(target, **arrays)


def test_bad_logits(glyph_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, train = glyph_files / "after.npz", glyph_files / "train.npz"
    seen = f"@{glyph_files / 'seen.txt'}"
    logits = read_logits(file).logits.copy()
    logits[17, 3] = np.nan
    few = read_logits(train)
    kept = few.labels != few.labels[0]

    def refused(words: str, *arguments: object, code: int = 1) -> None:
        got, _, err = run(capsys, "calibrate", *arguments, "--out", tmp_path / "run")
        assert (got, "Traceback" in err) == (code, False), err
        assert words in err

    bad = change_logits(file, tmp_path / "nan.npz", logits=logits)
    refused(
        f"{bad}: logits: 1 values are NaN or infinite, the first in row 17; repair",
        bad,
        "--training",
        train,
        "--classes-seen",
        seen,
    )
    logits[[30, 21, 40, 25]] = np.nan
    more = change_logits(file, tmp_path / "more.npz", logits=logits)
    refused("the first in row 17, then 21, 25, ...; repair", more, "--training", train, "--classes-seen", seen)
    spoiled = {name: tmp_path / f"{name}.npz" for name in ("train", "before", "pseudo-0")}
    for name, target in spoiled.items():
        values = read_logits(glyph_files / f"{name}.npz").logits.copy()
        values[5] = np.inf
        change_logits(glyph_files / f"{name}.npz", target, logits=values)
    found = "36 values are NaN or infinite, the first in row 5; repair"
    halves = f"{spoiled['pseudo-0']}: logits: 18 values are NaN or infinite, the first in row 5; repair"
    said = f"{spoiled['train']}: logits: {found}"
    refused(said, file, "--training", spoiled["train"], "--classes-seen", seen)
    said = f"{spoiled['before']}: logits: {found}"
    refused(said, file, "--training", train, "--before", spoiled["before"], "--classes-seen", seen)
    refused(halves, file, "--pseudo", spoiled["pseudo-0"], "--threshold", "none", "--classes-seen", seen)
    names = (glyph_files / "seen.txt").read_text().split()
    odd = np.flatnonzero(few.labels == few.class_names.index(names[0]))
    count, row = len(odd), odd[0]
    said = f"{train}: {count} labels are not seen classes, first '{names[0]}' in row {row}"
    refused(said, file, "--training", train, "--classes-seen", ",".join(names[1:]))
    said = f"{glyph_files / 'sen.txt'}: no such file of class names. Did you mean 'seen.txt'?"
    refused(said, file, "--training", train, "--classes-seen", f"@{glyph_files / 'sen.txt'}")
    refused(
        "is not a seen class", file, "--pseudo", glyph_files / "pseudo-0.npz", "--classes-seen", ",".join(names[1:])
    )
    refused("overlap in 1", file, "--training", train, "--classes-seen", seen, "--classes-absent", names[0])
    refused("give their logits with --training FILE", file, "--classes-seen", seen)
    refused("needs at least one absent class", file, "--training", train, "--classes-seen", "0-35")
    lacking = change_logits(train, tmp_path / "few.npz", logits=few.logits[kept], labels=few.labels[kept])
    refused(
        "1 seen classes have no sample in the fine-tuning data", file, "--training", lacking, "--classes-seen", seen
    )
    refused(
        "1 seen classes have no sample in the fine-tuning data, first 'A'",
        file,
        "--training",
        train,
        "--classes-seen",
        "A",
    )
    narrow = change_logits(
        train,
        tmp_path / "narrow.npz",
        logits=few.logits[:, :35],
        labels=few.labels % 35,
        class_names=few.class_names[:35],
    )
    refused("35 columns", file, "--training", narrow, "--classes-seen", seen)
    renamed = change_logits(train, tmp_path / "renamed.npz", class_names=["zero", *few.class_names[1:]])
    refused("class 0 is 'zero'; in", file, "--training", renamed, "--classes-seen", seen)
    other = change_logits(file, tmp_path / "other.npz", labels=(read_logits(file).labels + 1) % 36)
    refused("its labels differ from those of", file, "--training", train, "--before", other, "--classes-seen", seen)
    refused("needs the arrays 'seen' and 'absent'", file, "--pseudo", train, "--classes-seen", seen)
    refused("nothing.txt: no such file of class names\n", file, "--classes-seen", "@nothing.txt")
    refused("cannot be read as a text file", file, "--classes-seen", f"@{tmp_path}")
    refused(
        "--checkpoint-out says where",
        file,
        "--training",
        train,
        "--classes-seen",
        seen,
        "--checkpoint-out",
        tmp_path / "x",
        code=2,
    )
    refused("--epochs has no effect", file, "--classes-seen", seen, "--epochs", "3", code=2)
    refused("no such file", tmp_path / "nothing.npz", "--classes-seen", seen)
