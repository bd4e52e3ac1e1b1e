"""`foveate mllm plan`: costs from headers, options of presets and recipes, images that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.mllm.plan import PlanResult, plan_images, resolve_options
from foveate.multimodal.assemble import AssemblyOptions
from foveate.vision.tiling import PRESETS
from naming import raises_naming


def save(folder: Path, name: str, size: tuple[int, int], mode: str = "RGB", **options: Any) -> Path:
    path = folder / name
    Image.new(mode, size[::-1]).save(path, **options)
    return path


def run(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["mllm", "plan", *map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_mm15_from_the_header_alone(tmp_path: Path) -> None:
    path = save(tmp_path, "a.png", (480, 640))
    # The pixels are cut off: only the header is read.
    path.write_bytes(path.read_bytes()[:60])
    image = plan_images([path], AssemblyOptions()).images[0]
    assert (image.size, image.grid, image.resized, image.offset) == ((480, 640), (2, 3), (1344, 1792), (0, 112))
    assert [(view.row, view.column) for view in image.views] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (0, 0)]
    assert image.views[3].indicator == "(0,2,1)"
    assert (image.tokens, image.megapixels, image.scale) == (1008, pytest.approx(7 * 672**2 / 1e6), 2.8)


@pytest.mark.parametrize(
    ("preset", "grid", "views", "tokens"),
    [
        ("mm15", [2, 3], 7, 1008),
        ("mm15-static", [2, 2], 5, 720),
        ("llava-next", [2, 2], 5, 2340),
        ("ferret-v2", [2, 2], 5, 2880),
        ("idefics3", [3, 4], 13, 13 * 169),
        ("smolvlm", [3, 4], 13, 13 * 64),
        ("internvl", [3, 4], 13, 13 * 256),
        ("cohere2", [1, 2], 3, 3 * 256),
    ],
)
def test_presets(tmp_path: Path, preset: str, grid: list[int], views: int, tokens: int) -> None:
    # llava-next's count is that of the stored case of transformers.
    result = run(save(tmp_path, "a.png", (480, 640)), "--preset", preset)
    assert preset in PRESETS
    assert (result["images"][0]["grid"], result["num_views"], result["num_tokens"]) == (grid, views, tokens)


def test_the_limit_of_split_images_is_that_of_mm15_alone(tmp_path: Path) -> None:
    paths = [save(tmp_path, f"{name}.png", (4000, 3000)) for name in "abc"]
    assert run(*paths)["num_tokens"] == 3 * 144
    assert run(*paths, "--preset", "idefics3")["num_tokens"] == 3 * 13 * 169


def test_options_override_a_preset(tmp_path: Path) -> None:
    path = save(tmp_path, "a.png", (2000, 300))
    result = run(
        path, "--min-tiles", 1, "--max-tiles", 16, "--tile", 224, "--overview", "before", "--indicator", "seps"
    )
    assert result["images"][0]["views"][:2] == [
        {"row": 0, "column": 0, "indicator": ":"},
        {"row": 1, "column": 1, "indicator": ""},
    ]
    assert run(path, "--preset", "llava-next", "--grids", "3x1,1x3")["images"][0]["grid"] == [3, 1]


def test_several_images_are_one_sample(tmp_path: Path) -> None:
    paths = [save(tmp_path, f"{number}.png", (480, 640)) for number in range(3)]
    two, three = run(*paths[:2]), run(*paths)
    assert (two["split"], two["num_views"], two["images"][1]["views"][0]["indicator"]) == (True, 14, "(1,1,1)")
    assert (three["split"], three["num_views"], three["num_tokens"]) == (False, 3, 432)
    assert run(*paths, "--max-split-images", 3)["num_views"] == 21
    text = CliRunner().invoke(cli, ["mllm", "plan", *map(str, paths)]).stdout
    assert all(part in text for part in ("Views: 3", "Visual tokens: 432", "max_split_images (2)"))


def test_recipes(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model:\n  assembly:\n    tokens_per_view: 49\n    tiling: {tile: 224, max_tiles: 4}\n")
    path = save(tmp_path, "a.png", (480, 640))
    assert run(path, "--recipe", recipe)["num_tokens"] == 5 * 49
    assert run(path, "--recipe", recipe, "--tile", 448)["images"][0]["tile"] == 448
    recipe.write_text("model: {}\n")
    with raises_naming(UserError, "model.assembly", recipe):
        resolve_options({}, recipe=str(recipe))
    with raises_naming(UserError, "--preset", "smolvlm"):
        resolve_options({"preset": "smolvlm"}, recipe=str(recipe))
    with raises_naming(UserError, "grids", "eq1"):
        resolve_options({"tiling": {"grids": ("2x2",)}})


def test_odd_images(tmp_path: Path) -> None:
    long = plan_images([save(tmp_path, "long.png", (10, 40_000))], AssemblyOptions()).images[0]
    assert (long.grid, long.resized) == ((1, 9), (2, 6048))
    pixel = plan_images([save(tmp_path, "pixel.gif", (1, 1))], AssemblyOptions()).images[0]
    assert pixel.grid == (2, 2)
    assert plan_images([save(tmp_path, "cmyk.jpg", (30, 40), "CMYK")], AssemblyOptions()).images[0].size == (30, 40)
    frames = [Image.new("L", (40, 30), level) for level in (0, 99, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert "3 frames" in plan_images([tmp_path / "moving.gif"], AssemblyOptions()).images[0].note
    turned = Image.Exif()
    turned[0x0112] = 6
    assert plan_images([save(tmp_path, "turned.jpg", (30, 40), exif=turned)], AssemblyOptions()).images[0].size == (
        40,
        30,
    )


def test_files_that_are_no_image_are_named(tmp_path: Path) -> None:
    for name, content in (("empty.png", b""), ("page.jpg", b"<!doctype html>"), ("cut.png", b"\x89PNG\r\n\x1a\nxx")):
        (tmp_path / name).write_bytes(content)
        with raises_naming(UserError, name):
            plan_images([tmp_path / name], AssemblyOptions())
    with raises_naming(UserError, "absent.png"):
        plan_images([tmp_path / "absent.png"], AssemblyOptions())
    with raises_naming(UserError, str(tmp_path)):
        plan_images([tmp_path], AssemblyOptions())


def test_a_page_shows_tiles_in_order(tmp_path: Path) -> None:
    paths = [save(tmp_path, "a<b>.png", (480, 640)), save(tmp_path, "long.png", (30, 4000))]
    result = run(*paths, "--page", "--out", tmp_path / "run")
    page = Path(result["paths"]["report"]).read_text(encoding="utf-8")
    assert page.count('class="tiling"') == 4
    assert "a&lt;b&gt;.png" in page
    assert "<b>.png" not in page
    assert PlanResult.model_validate(json.loads((tmp_path / "run" / "result.json").read_text())).num_views == 14
    assert not (tmp_path / "runs").exists()
