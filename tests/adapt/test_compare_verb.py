"""`foveate adapt compare` through the command line, its page, and tasks of VTAB-1K from their lists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from adapt.compared import HALF, stripes
from adapt.test_adapt_train import backbone as backbone  # noqa: PLC0414 - a fixture
from foveate.adapt.compare.recipe import parse_tasks
from foveate.adapt.compare.run import _accuracy, _spread_between
from foveate.adapt.data import load_images
from foveate.adapt.folder import load_adapter
from foveate.adapt.load_backbone import load_backbone, parse_backbone
from foveate.adapt.recipe import AdaptData
from foveate.adapt.results import ComparedLine, ComparedResult
from foveate.adapt.vtab import GROUPS, read_lists
from foveate.cli.verbs.adapt.commands import compare_command
from foveate.core.errors import UserError
from foveate.records.boxes import Box
from foveate.records.geometry import View
from foveate.report import numbers
from foveate.report.blocks import print_lines
from foveate.report.compared import Point, amount, cost_chart, matrix_chart
from foveate.report.pages.adapt import build_adapt_compare as build
from foveate.report.pages.adapt import columns, forests
from foveate.report.pages.adapt import compare_table as table


def run(*arguments: object) -> Result:
    return CliRunner().invoke(compare_command, [*map(str, arguments)], catch_exceptions=True)


@pytest.fixture(scope="module")
def done(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], tuple[object, ...]]:
    folder = tmp_path_factory.mktemp("compare")
    data = stripes(folder / "stripes.npz")
    arguments = (
        "--backbone", backbone, "--tasks", f"near/a={data}", "--tasks", f"far/b={data}",
        "--methods", "linear,bitfit,lora",
        "--epochs", 2, "--seeds", 2, "--save-adapters", "--peek", "--device", "cpu", "--quiet", "--out", folder / "run",
        "training.batch_size=9",
    )  # fmt: skip
    result = run(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return folder, json.loads(result.stdout.splitlines()[-1]), arguments


def test_a_comparison_its_page_and_its_adapters(done: tuple[Path, dict[str, Any], tuple[object, ...]]) -> None:
    folder, said, arguments = done
    assert [line["variant"] for line in said["lines"]] == ["linear", "bitfit", "lora"]
    assert set(said["lines"][0]["means"]) == {"near", "far", "mean of groups", "mean"}
    page = Path(said["paths"]["report"]).read_text(encoding="utf-8")
    for words in ("3 methods on 2 tasks", "Highest mean accuracy", "same answer", "lora, 2 seeds", "What was selected",
                  "No test image took part", "95 % t-interval over 2 seeds", "only bitfit", "all but linear",
                  "Best epoch on test (peeks)"):  # fmt: skip
        assert words in page, words
    stored = json.loads((folder / "run" / "result.json").read_text())
    shown = table(ComparedResult.model_validate(stored))
    assert {str(row[0]) for row in shown.rows} == {"linear", "bitfit", "lora"}
    assert [title for _, title in columns(ComparedResult.model_validate(stored))] == [
        "a", "b", "mean of groups", "mean of tasks",
    ]  # fmt: skip
    many = ComparedResult.model_validate(stored | {"tasks": stored["tasks"] * 3})
    assert [title for _, title in columns(many)] == ["near", "far", "mean of groups", "mean of tasks"]
    assert build(stored, folder / "run").title == "3 methods on 2 tasks"
    adapters = sorted(path.name for path in (folder / "run" / "adapters" / "a").iterdir())
    assert adapters == ["bitfit-seed0", "bitfit-seed1", "linear-seed0", "linear-seed1", "lora-seed0", "lora-seed1"]
    opened = load_backbone(parse_backbone(str(arguments[1])))
    again = load_adapter(opened.model, folder / "run" / "adapters" / "a" / "lora-seed1")
    # Chosen by validation images, then trained on both: these choose no alpha any more.
    assert again.info["default"]["trained_on"] == [{"data": "stripes.npz", "splits": ["train", "validation"]}]
    data = load_images(folder / "stripes.npz", AdaptData(), opened.preprocess)
    rows = data.rows("test")
    import torch

    with torch.no_grad():
        given = opened.preprocess.normalize(torch.stack([data.load(row, View()) for row in rows.tolist()]))
        logits = again(given).numpy()
    assert np.allclose(logits, np.load(folder / "run" / "logits" / "a" / "lora-seed1.npz")["logits"], atol=1e-5)


@pytest.mark.parametrize(("seeds", "words"), [([0.8, 0.8], "both seeds equal"), ([0.8] * 3, "all 3 seeds equal")])
def test_equal_seeds_give_no_interval(
    done: tuple[Path, dict[str, Any], tuple[object, ...]], tmp_path: Path, seeds: list[float], words: str
) -> None:
    found = _accuracy(seeds, {}, "a", "lora")
    assert found == {"value": 0.8, "low": None, "high": None, "n": len(seeds)}
    apart = _accuracy([*seeds, 0.7], {}, "a", "lora")
    assert apart["low"] < apart["value"] < apart["high"]
    stored = json.loads((done[0] / "run" / "result.json").read_text()) | {"seeds": len(seeds)}
    for line in stored["lines"]:
        line["tasks"]["a"] |= {**apart, "seeds": [*seeds[1:], 0.7]}
    told = "\n".join(print_lines(build(stored, tmp_path)))
    assert f"{numbers.percent(apart['value'])} ({numbers.interval(apart['low'], apart['high'])})" in told
    # As it is written now, and as it was before, with an interval of no width.
    for one in (found, {"value": 0.8, "low": 0.8, "high": 0.8}):
        stored["lines"][0]["tasks"]["a"] |= {**one, "seeds": seeds}
        result = ComparedResult.model_validate(stored)
        spans = {str(row[0]): row[1].note for row in table(result).rows}
        assert spans["linear"] == words
        assert spans["lora"] == numbers.interval(apart["low"], apart["high"])
        drawn = forests(result)[0]
        assert f"linear: 80, {words}" in drawn
        assert drawn.count(words) == 1
    stored["lines"][0]["tasks"]["a"] |= found
    assert f"80.0% ({words})" in "\n".join(print_lines(build(stored, tmp_path)))


def test_the_spread_is_that_of_the_published_methods() -> None:
    vtab = json.loads((Path(__file__).parents[1] / "goldens" / "petl" / "vtab1k_results.json").read_text())
    lines = [
        ComparedLine(
            variant=name,
            method=name,
            tasks={},
            means={"mean of groups": summary["last"]["mean_of_groups"], "mean": summary["last"]["mean_of_19"]},
        )
        for name, summary in vtab["summary"].items()
    ]
    assert len(lines) == 16
    spread = _spread_between(lines, grouped=True)
    assert spread is not None
    assert 100 * spread == pytest.approx(vtab["relative_std_percent_13_methods"]["last"]["mean_of_groups"], abs=6e-4)
    assert _spread_between(lines, grouped=False) != spread
    assert _spread_between([line for line in lines if line.method in ("linear", "lora")], grouped=True) is None


def test_one_seed_that_converged_has_an_interval_of_its_own_kind(
    done: tuple[Path, dict[str, Any], tuple[object, ...]],
) -> None:
    stored = json.loads((done[0] / "run" / "result.json").read_text())
    stored["lines"][0]["tasks"]["a"] |= {"value": 0.8, "low": 0.6, "high": 0.9, "seeds": [0.8], "failed": 1}
    shown = {str(row[0]): row[1].note for row in table(ComparedResult.model_validate(stored)).rows}
    assert shown["linear"] == "60.0–90.0, of one seed over images"
    alone = table(ComparedResult.model_validate(stored | {"seeds": 1}))
    assert next(row[1].note for row in alone.rows if str(row[0]) == "linear") == "60.0–90.0"


def test_the_same_again_in_words(done: tuple[Path, dict[str, Any], tuple[object, ...]]) -> None:
    _, said, arguments = done
    again = run(*arguments)
    assert again.exit_code == 0, (again.output, again.exception)
    assert "15 to test on, chance 33.3%; selected by the split validation, 9 images" in again.output
    told = said["tasks"][0]["ensembles"]
    together = next(line for line in again.output.splitlines() if line.startswith("all but linear"))
    assert f"{told['disagreement']:.1%}" in together.split()
    assert f"{told['ensemble']['logits']:.1%}" in together.split()
    assert "(peeks)" in again.output
    for line in said["lines"]:
        assert line["tasks"]["a"]["best_epoch"] >= line["tasks"]["a"]["value"]
    values = [line["tasks"]["a"]["value"] for line in said["lines"]]
    printed = next(line for line in again.output.splitlines() if line.startswith("linear "))
    assert f"{values[0]:.1%} (" in printed
    assert "report.html" in again.output.splitlines()[-1]


def test_a_price_and_mistakes(done: tuple[Path, dict[str, Any], tuple[object, ...]], tmp_path: Path) -> None:
    folder, _, arguments = done
    start = ("--backbone", arguments[1], "--tasks", folder / "stripes.npz", "--device", "cpu", "--quiet")
    priced = run(*start, "--grid", "vtab1k", "--methods", "lora,pfeiffer", "--dry-run", "--out", tmp_path / "never")
    assert priced.exit_code == 0, (priced.output, priced.exception)
    # 64 and 16 of 80, and one more of each.
    assert [int(count) for count in re.findall(r"(\d+) trainings, ", priced.output)] == [65, 17]
    assert "left out: 16 of pfeiffer, rank 64: allowed are 1 to 32, the width of this backbone" in priced.output
    assert not (tmp_path / "never").exists()
    small = run(*start, "--budget", "1%", "--methods", "linear", "--dry-run", "--json")
    assert json.loads(small.stdout.splitlines()[-1])["totals"]["trainings"] == 1
    for more, sentence in (
        (("--methods", "lroa"), "unknown method 'lroa'"),
        (("--grid", "vtab"), "Did you mean 'vtab1k'"),
        (("--max-hours", 0.0001, "--epochs", 1000), "raise --max-hours"),
        (("--budget", "lots"), "budget 'lots': write a number such as 100000"),
        (("--folds", 60), "60 folds need at least two images of each class and as many as folds"),
        (("shrae=0.5",), "Did you mean 'share'"),
        (("training.epohcs=0.5",), "Did you mean 'epochs'"),
        (("--tasks", f"x={folder / 'stripes.npz'}:kind"), "data.field 'kind' has no effect"),
        (("--tasks", folder / "stripes.npz"), "adapt compare: task 'stripes' is named twice; write NAME=PATH"),
    ):
        result = run(*start, "--out", tmp_path / "mistake", *more)
        assert result.exit_code != 0, more
        assert sentence in result.output + str(result.exception), (more, result.exception)


def lists(folder: Path, **changes: str) -> Path:
    """A task of VTAB-1K of six images of two colors."""
    (folder / "images").mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (40, 32), (200, 0, 0) if number % 2 else (0, 0, 200)).save(folder / "images" / f"{number}.png")
    texts = {"train800": "images/0.png 0\nimages/1.png 1\n", "val200": "images/2.png 0\nimages/3.png 1\n",
             "test": "images/4.png 0\nimages/5.png 1\n"} | changes  # fmt: skip
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_tasks_of_vtab_and_their_groups(tmp_path: Path) -> None:
    lists(tmp_path / "vtab-1k" / "dtd")
    lists(tmp_path / "vtab-1k" / "kitti")
    found = parse_tasks([str(tmp_path / "vtab-1k")])
    assert [(task.name, task.group) for task in found] == [("dtd", "natural"), ("kitti", "structured")]
    assert sum(map(len, GROUPS.values())) == 19
    data = load_images(tmp_path / "vtab-1k" / "dtd", AdaptData(), HALF)
    assert data.classes == ("0", "1")
    assert data.splits.tolist() == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    red, blue = (data.load(int(row), View()).float().mean(dim=(1, 2)) for row in data.rows("test")[::-1])
    assert red[0] > blue[0]
    assert blue[2] > red[2]
    shown, mirrored = data.load(0, View()), data.load(0, View(flip=True))
    assert shown.shape == (3, 32, 32)
    assert (shown[2] > 190).all()  # squashed: no padding above and below
    assert (mirrored == shown.flip(2)).all()
    assert data.size is not None
    assert data.size(0) == (40, 32)
    halves = Image.new("RGB", (40, 32), (0, 0, 200))
    halves.paste((200, 0, 0), (0, 0, 20, 32))
    halves.save(tmp_path / "vtab-1k" / "dtd" / data.keys[0])
    left = data.load(0, View(crop=Box(0, 0, 0.5, 1)))
    assert left.shape == (3, 32, 32)
    assert (left[0, :, :28] > 190).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"test": "images/4.png\n"}, "test.txt, line 1"),
        ({"val200": "images/2.png 0\nimages/1.png 1\n"}, "val200.txt, line 2: images/1.png is in train800.txt"),
        ({"test": "images/9.png 0\n"}, "images/9.png"),
    ],
)
def test_mistakes_of_lists(tmp_path: Path, changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_lists(lists(tmp_path / "task", **changes))


def test_charts() -> None:
    points = [Point("none", 0, 50.0, True), Point("small", 300, 70.0, True), Point("big", 2e6, 60.0, False)]
    drawn = cost_chart(points, title="t", x_label="numbers")
    assert "none 50.0 at 0; small 70.0 at 300; big 60.0 at 2M" in drawn
    assert drawn.count("<circle") == 3
    assert ">small</text>" in drawn
    assert ">big</text>" in drawn, "a beaten one is named where there is room"
    crowd = [*points, Point("near-big", 1.9e6, 60.4, False), Point("other", 2.2e6, 59.6, False)]
    assert (
        sum(f">{name}</text>" in cost_chart(crowd, title="t", x_label="") for name in ("big", "near-big", "other")) < 3
    )
    assert cost_chart([], title="t", x_label="") == ""
    matrix = matrix_chart(["<a>", "b"], [[1.0, 0.25], [0.25, 1.0]], title="alike")
    assert "&lt;a&gt;" in matrix
    assert ">25</text>" in matrix
    assert [amount(value) for value in (0, 940, 36_864, 1.2e6, 8.6e9)] == ["0", "940", "36.9k", "1.2M", "8.6G"]
