"""Every verb as a user types it: results in words and as JSON, pages written, mistakes answered in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Run
from processes import environment

import foveate as package
import tiny


def test_no_verb_wrong_verb_and_version(foveate: Run) -> None:
    helped = foveate("--help")
    assert helped.code == 0
    for verb in ("collect", "evaluate", "inspect", "locate", "pretrain", "recipes", "tour"):
        assert f"\n  {verb} " in helped.out
    assert package.__version__ in foveate("--version").out
    assert foveate().code in (0, 2)
    wrong = foveate("pertrain")
    assert wrong.code == 2
    assert "unknown command 'pertrain'" in wrong.err
    assert "Did you mean 'pretrain'?" in wrong.err
    assert foveate("pretrain", "--no-such-option").code == 2


def test_only_options_that_help_shows_are_suggested(foveate: Run) -> None:
    wrong = foveate("species", "train", "--recip", "x")
    assert wrong.code == 2
    assert "No such option '--recip'" in wrong.err
    assert "--recipe" not in wrong.err, "an old name"
    assert "'--collection'" in foveate("species", "train", "--colection", "x").err


@pytest.mark.parametrize("command", ["pretrain", "mllm train", "adapt train", "adapt compare", "species train"])
def test_an_override_in_front_of_the_recipe_is_named(foveate: Run, command: str) -> None:
    wrong = foveate(*command.split(), "data.field=x", "r.yaml", "training.steps=3")
    assert wrong.code == 2
    assert "RECIPE is 'data.field=x', an override; expected the recipe first" in wrong.err
    assert f"foveate {command} r.yaml data.field=x" in " ".join(wrong.err.split())


def test_an_override_is_no_recipe(foveate: Run) -> None:
    assert "foveate pretrain RECIPE data.field=x" in foveate("pretrain", "data.field=x").err


def test_completion_lists_values_without_torch() -> None:
    code = (
        "import sys; from foveate.cli.main import main\ntry: main([])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    question = {"_FOVEATE_COMPLETE": "bash_complete", "COMP_WORDS": "foveate search index --kind ", "COMP_CWORD": "4"}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment() | question, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["plain,images", "plain,regions", "plain,both"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("study nosuch", "unknown study 'nosuch'"),
        ("audit empty", "empty is not a collection"),
        ("search empty dog", "not an index"),
        ("cache empty", "empty: is neither a collection"),
        ("caption empty --format haiku", "expected one of afc, dsc, dsc_plus, ssc"),
    ],
)
def test_a_mistyped_name_does_not_wait_for_torch(line: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    # A module that is None cannot be imported.
    code = f"import sys; sys.modules['torch'] = None; from foveate.cli.main import main; main({line.split()!r})"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1, ended.stderr
    assert sentence in ended.stderr
    assert "(got (" not in ended.stderr


@pytest.mark.parametrize("verb", ["embed", "features"])
def test_a_mistake_names_the_command_once(foveate: Run, verb: str) -> None:
    given = ("digits", "--split", "even", "--clients", "2", "--clusters", "3", "--set", "local_epohcs=3", "--dry-run")
    ended = foveate("federated", verb, *(one for one in given if verb != "embed" or one not in ("--clusters", "3")))
    assert ended.code == 1
    assert ended.err.startswith(f"foveate: federated {verb}: ")


def test_recipes_list_show_and_copy(foveate: Run, tmp_path: Path) -> None:
    listed = foveate("recipes")
    assert listed.code == 0
    assert "tour-clip " in listed.out
    assert set(foveate("recipes", "--json").json["recipes"]) >= {"tour", "tour-clip", "tour-roi"}
    shown = foveate("recipes", "tour")
    assert shown.out.startswith("# foveate pretrain tour ")
    assert foveate("recipes", "tour", "--json").json["text"].strip() == shown.out.strip()
    copied = foveate("recipes", "tour", "--out", "mine.yaml")
    assert copied.code == 0
    assert (tmp_path / "mine.yaml").read_text().strip() == shown.out.strip()
    assert "mine.yaml: exists already" in foveate("recipes", "tour-roi", "--out", "mine.yaml").sentence
    assert (tmp_path / "mine.yaml").read_text().strip() == shown.out.strip()
    assert "name the recipe to copy" in foveate("recipes", "--out", "x.yaml").sentence
    assert "Did you mean 'tour-roi'?" in foveate("recipes", "tour-rio").sentence


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of 12 good images with texts, and three that cannot be taken."""
    folder = tmp_path / "my-folder"
    folder.mkdir()
    for number, color in enumerate(tiny.COLORS):
        for shape in tiny.SHAPES:
            name = f"{color} {shape}"
            box = tiny.PixelBox(4 + 3 * number, 6, 40, 44)
            image = tiny.draw([(name, box)], size=(64, 56), seed=number)
            (folder / f"{color}-{shape}.png").write_bytes(tiny.image_bytes(image))
            (folder / f"{color}-{shape}.txt").write_text(f"a {name}")
    whole = (folder / "red-disc.png").read_bytes()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "words.jpg").write_bytes(b"this is no image")
    return folder


def test_collect_and_inspect(foveate: Run, images: Path, tmp_path: Path) -> None:
    told = foveate("collect", images, "--out", "mine", "--license", "CC0-1.0")
    assert told.code == 0, told.err
    assert "collection: mine" in told.out
    again = foveate("collect", images, "--out", "mine", "--json")
    assert again.json["paths"] == {"collection": "mine"}
    assert sum(again.json["splits"].values()) == 12, "nothing twice"
    first = foveate("collect", images, "--out", "other", "--split", "train=0.5,test=0.5", "--json").json
    assert set(first["splits"]) <= {"train", "test"}

    inspected = foveate("inspect", "mine", "--out", "look", "--samples", "5", "--json")
    assert inspected.code == 0, inspected.err
    assert inspected.json["summary"]["images"] == 12
    assert sum(row["count"] for row in inspected.json["quarantine"]) == 3
    assert len(inspected.json["samples"]) == 5
    page = Path(inspected.json["paths"]["report"])
    assert "<html" in page.read_text(encoding="utf-8")
    assert json.loads((tmp_path / "look" / "result.json").read_text())["kind"] == "inspect"
    words = foveate("inspect", "mine", "--out", "look-2", "--samples", "0")
    assert words.code == 0
    assert "images: 12" in words.out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("collect", "no-such-folder", "--out", "x"), "no-such-folder"),
        (("collect", "clipartt", "--out", "x"), "Did you mean 'clipart'?"),
        (("collect", "my-folder", "--out", "x", "--split", "train:1"), "write it as train=0.8"),
        (("collect", "my-folder", "--out", "x", "--split", "train=0.5"), "sum must be 1"),
        (("collect", "my-folder", "--out", "my-folder"), "choose a new folder"),
        (("inspect", "my-folder"), "my-folder"),
        (("inspect", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_with_collections(foveate: Run, images: Path, arguments: tuple[str, ...], part: str) -> None:
    assert part in foveate(*arguments).sentence


def test_pretrain_dry_run(foveate: Run, recipe_file: Path, tiny_collection: Path, tmp_path: Path) -> None:
    told = foveate("pretrain", recipe_file, "training.steps=50", "--collection", tiny_collection, "--dry-run")
    assert told.code == 0, told.err
    assert "50 steps of" in told.out
    assert "epochs: 25" in told.out, "16 of 18 images have a text"
    priced = foveate("pretrain", recipe_file, "--collection", tiny_collection, "--dry-run", "--json").json
    assert priced["parameters"] > 1e6
    assert priced["tokens_per_image"] == 16
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"
    shipped = foveate("pretrain", "tour", "--collection", tiny_collection, "--dry-run", "--json")
    assert shipped.json["tokens_per_image"] == 196


def test_pretrain_evaluate_and_locate(foveate: Run, recipe_file: Path, tiny_collection: Path, tmp_path: Path) -> None:
    common = ("--collection", tiny_collection, "--device", "cpu")
    told = foveate("pretrain", recipe_file, *common, "--out", "run", "--steps", "3", "--seed", "4")
    assert told.code == 0, told.err
    assert "Steps: 3 · Time: " in told.out
    assert "Images: 16 ·" in told.out, "16 of 18 images have a text"
    assert "report: run/report.html" in told.out
    assert "training: 3/3" in told.err
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["recipe"]["training"]["seed"] == 4
    assert saved["command"][0] == "foveate"

    measured = foveate("evaluate", "run/model", *common, "--classes", "category", "--limit", "8", "--crops", "--json")
    assert measured.code == 0, measured.err
    assert measured.json["images"] == 8
    assert {row["question"] for row in measured.json["table"]} >= {"where is it: IoU at least .5"}
    assert Path("run/evaluation/report.html").is_file()
    for table in ("regions", "retrieval", "classification"):
        assert Path(f"run/evaluation/samples/{table}.parquet").is_file()

    Path("image.png").write_bytes(tiny.image_bytes(tiny.draw([], size=(300, 100), seed=1)))
    found = foveate("locate", "run/model", "image.png", "a red disc", "--device", "cpu", "--json")
    # An untrained model may find it or not.
    assert found.code == (0 if found.json["has_match"] else 3), found.err
    assert set(found.json["boxes"]) == {"head", "candidates", "center", "random"}
    assert (found.json["width"], found.json["height"]) == (300, 100)
    assert found.json["default"] == saved["locate_rule"]
    assert Path(found.json["paths"]["report"]).is_file()
    words = foveate("locate", "run/model", "image.png", "a red disc", "--rule", "candidates", "--device", "cpu")
    assert words.code == found.code
    (answer,) = (line for line in words.out.splitlines() if line.endswith("<- selected"))
    assert answer.startswith("candidates ")
    assert "px 75 25 225 75" in words.out, "the center box in pixels of the image"


def test_models_beside_one_another_have_evaluations_of_their_own(
    foveate: Run, trained: Path, tiny_collection: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "model", tmp_path / "first")
    done = foveate("evaluate", "first", "--collection", tiny_collection, "--limit", "2", "--device", "cpu", "--json")
    assert done.code == 0, done.err
    assert done.json["paths"]["report"] == "first-evaluation/report.html"


def test_quiet_and_json_print_nothing_else(foveate: Run, recipe_file: Path, tiny_collection: Path) -> None:
    done = foveate(
        "pretrain", recipe_file, "--collection", tiny_collection, "--steps", "2", "--no-evaluation", "--json",
        "--quiet", "--device", "cpu", "--out", "run",
    )  # fmt: skip
    assert done.json["status"] == "finished"
    assert done.json["evaluation"] is None
    assert done.err == ""


def mistakes(recipe: Path, collection: Path, run: Path) -> dict[str, tuple[tuple[object, ...], str]]:
    pretrain = ("pretrain", recipe, "--collection", collection)
    locate = ("locate", run / "model")
    return {
        "unknown recipe": (("pretrain", "tuor", "--collection", collection), "Did you mean 'tour'?"),
        "misspelt override": ((*pretrain, "regions.grounding_wieght=3"), "Did you mean 'grounding_weight'?"),
        "wrong value": ((*pretrain, "training.steps=many"), "field 'training.steps'"),
        "unknown encoder": ((*pretrain, "image_encoder={kind: lite1}"), "Did you mean 'lite0'?"),
        "unknown option of an encoder": ((*pretrain, "image_encoder.modle=x"), "Did you mean 'model'?"),
        "missing collection": (("pretrain", recipe, "--collection", "no-such"), "no-such"),
        "unknown split": ((*pretrain, "data.split=trian"), "trian"),
        "unknown texts": ((*pretrain, "data.captions={poem: 1.0, alt: 0, title: 0}"), "poem"),
        "no such device": ((*pretrain, "--device", "gpu"), "device"),
        "run folder is a file": ((*pretrain, "--out", recipe), "is a file"),
        "a run and no model": (("evaluate", run, "--collection", collection), f"Did you mean '{run / 'model'}'?"),
        "no such model": (("evaluate", "no-such", "--collection", collection), "no such folder"),
        "no such split": (("evaluate", run / "model", "--collection", collection, "--split", "tset"), "tset"),
        "no place in a template": (
            ("evaluate", run / "model", "--collection", collection, "--template", "a photo"),
            "write {} where the class name goes",
        ),
        "no such label": (("evaluate", run / "model", "--collection", collection, "--classes", "catgory"), "catgory"),
        "no such image": ((*locate, "no-such.jpg", "a dog"), "no-such.jpg: cannot be read"),
        "unreadable image": ((*locate, recipe, "a dog"), "the image cannot be read"),
        "empty phrase": ((*locate, collection.parent / "ok.png", " "), "phrase"),
        "model of locate": (("locate", run, collection.parent / "ok.png", "a dog"), "Did you mean"),
    }


MISTAKES = sorted(mistakes(Path("r"), Path("c"), Path("m")))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(foveate: Run, recipe_file: Path, tiny_collection: Path, trained: Path, mistake: str) -> None:
    (tiny_collection.parent / "ok.png").write_bytes(tiny.image_bytes(tiny.draw([], size=(64, 64), seed=1)))
    arguments, part = mistakes(recipe_file, tiny_collection, trained)[mistake]
    assert part in foveate(*arguments).sentence


def test_a_process_ends_with_one_line(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "foveate", "pretrain", "tuor", "--collection", "x"]
    done = subprocess.run(arguments, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "Did you mean 'tour'?" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output_is_named(unbuffered: str) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        process = subprocess.run(  # noqa: PLW1510
            [sys.executable, "-m", "foveate", "recipes"],
            # An empty value counts as not set: the interpreter then flushes once more at its end.
            env={**environment(), "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert process.returncode == 1
    assert process.stderr.startswith("foveate: standard output: ")
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_mistake(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-m", "foveate", "recipes"],
        env={**environment(), "PYTHONUNBUFFERED": unbuffered},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, "")
