"""`foveate index` and `foveate search` from end to end, and the one sentence of each mistake."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from command_line import Run
from PIL import Image

import tiny
from foveate.core.recipes import load
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import build_model
from foveate.records.collection import Collection
from foveate.vision.localizer.folder import save_model


@pytest.fixture(scope="module")
def place(tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verbs")
    shutil.copytree(tiny_collection, root / "shapes")
    save_model(build_model(tiny.recipe()).eval(), root / "model")
    return root


@pytest.fixture(scope="module")
def index(place: Path) -> Path:
    from foveate.search.index import build_index

    build_index(place / "model", place / "shapes", place / "index")
    return place / "index"


@pytest.fixture(scope="module")
def image(place: Path) -> Path:
    collection = Collection.open(place / "shapes")
    path = place / "asked.png"
    path.write_bytes(collection.image_bytes(collection.find_row("test-01")))
    return path


def test_index_and_search(foveate: Run, place: Path, tmp_path: Path) -> None:
    dry = foveate("index", place / "model", place / "shapes", "--out", "mine", "--dry-run")
    assert "32 images to embed with 58 regions" in dry.out
    assert not (tmp_path / "mine").exists()
    made = foveate("index", place / "model", place / "shapes", "--out", "mine", "--json", "--quiet")
    assert made.code == 0, made.err
    assert made.json["counts"] == {"images": 32, "regions": 58, "unreadable": 0}
    assert made.json["paths"] == {"index": "mine"}
    # The model is an option; as the first argument, as in earlier releases, it is the same.
    again = foveate("index", place / "shapes", "--model", place / "model", "--out", "mine", "--json", "--quiet")
    assert (again.json["embedded"], again.json["counts"]) == (0, made.json["counts"])
    found = foveate("search", "mine", "a red disc", "--count", "4")
    assert found.code == 0, found.err
    assert len(re.findall(r"^ +\d+  [+−]\d\.\d{3}  \S+", found.out, re.MULTILINE)) == 4
    page = (tmp_path / "runs" / "search" / "a-red-disc" / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 4
    assert 'src="http' not in page
    assert foveate("search", "mine", "A red disc!", "--count", "1").code == 0
    assert (tmp_path / "runs" / "search" / "a-red-disc-2" / "report.html").is_file()


def test_a_plain_folder_and_a_ready_model(foveate: Run, tmp_path: Path) -> None:
    from vision.foreign import save_open_clip

    save_open_clip(tmp_path / "clip")
    (tmp_path / "photos").mkdir()
    for name in ("red", "green"):
        Image.new("RGB", (40, 30), name).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "cut.png").write_bytes((tmp_path / "photos" / "red.png").read_bytes()[:60])
    indexed = foveate("index", "clip", "photos")
    assert indexed.code == 0, indexed.err
    assert "photos: 2 images by reference, 2 new, 1 left out" in indexed.out
    assert "left out: cut.png: " in indexed.out
    content = json.loads((tmp_path / "photos-index" / "index.json").read_text(encoding="utf-8"))["floor"]
    refused = f"so are {1 - content['letters_above']:.0%} of random letters and {content['names_below']:.0%} of random"
    assert f"below {content['z']['both']:.2f} are called not found: {refused} names" in indexed.out
    collect, regions, pretrain = (
        shlex.split(line) for line in indexed.out.splitlines() if line.startswith("  foveate")
    )
    assert collect[1:] == ["collect", "photos", "--out", "photos-collection", "--reference"]
    assert regions[1:] == ["regions", "photos-collection"]
    assert pretrain[1:6] == ["pretrain", "cloc-from-clip", "initial=clip", "--collection", "photos-collection"]
    recipe = load(PretrainRecipe, "cloc-from-clip", pretrain[6:])
    assert (recipe.training.batch_size, recipe.data.captions) == (1, {"alt": 1.0})
    assert foveate("search", "photos-index", "red", "--count", "1").code == 0
    located = foveate("locate", "clip", "photos/red.png", "a red field")
    assert "never learned places" in located.out


def test_a_box_in_an_image(foveate: Run, index: Path, image: Path) -> None:
    arguments = ("search", index, "a disc", "--image", image, "--negative", "blue", "--weight", "box=0.5", "--json")
    by_fraction = foveate(*arguments, "--box", "0,0,0.5,1").json
    assert by_fraction["query"]["weights"] == {"text": 1, "box": 0.5, "negative": 1}
    assert by_fraction["query"]["box"] == [0, 0, 0.5, 1]
    collection = Collection.open(index.parent / "shapes")
    row = collection.find_row("test-01")
    width, height = (int(collection.index[name][row]) for name in ("width", "height"))
    by_pixel = foveate(*arguments, "--box", f"0,0,{width / 2},{height}", "--pixels").json
    assert by_pixel["results"] == by_fraction["results"]
    stored = json.loads((Path("runs") / "search" / "a-disc-2" / "result.json").read_text(encoding="utf-8"))
    assert stored["results"] == by_pixel["results"]


def test_an_image_that_has_gone_bad_is_said(foveate: Run, place: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(place / "shapes", tmp_path / "shapes"))
    foveate("index", place / "model", copy, "--out", "mine", "--quiet")
    for tar in (copy / "images").glob("*.tar"):
        tar.unlink()
    found = foveate("search", "mine", "a red disc", "--count", "2", "--json")
    assert found.code == 0, found.err
    assert all("is missing" in hit["problem"] for hit in found.json["results"]["hits"])
    assert "is missing" in (tmp_path / "runs" / "search" / "a-red-disc" / "report.html").read_text(encoding="utf-8")


def test_mistakes(foveate: Run, index: Path, image: Path, place: Path, tmp_path: Path) -> None:
    other = save_model(build_model(tiny.recipe(training={"seed": 5})).eval(), tmp_path / "other")
    for words, sentence in (
        ((index,), "The query is empty"),
        ((index, "red", "--box", "0,0,1,1"), "query, box"),
        ((index, "--image", image, "--box", "0,0,1"), "allowed are four numbers"),
        ((index, "--image", image, "--box", "0,0,30,30"), "give --pixels where they are pixels"),
        ((index, "--image", image, "--box", "0,0,9999,9", "--pixels"), "corners must lie in [0, 1]"),
        ((index, "--image", image, "--box", "0.5,0,0.2,1"), "x2 must be greater than x1"),
        ((index, "--image", image, "--box", "nan,0,0.2,1"), "finite"),
        ((index, "red", "--pixels"), "give --box too"),
        ((index, "red", "--weight", "text"), "allowed is PART=NUMBER"),
        ((index, "red", "--weight", "word=2"), "'word'"),
        ((index, "red", "--model", other), "another model"),
        ((place, "red"), "not an index"),
        ((index, "--image", "none.jpg"), "none.jpg: cannot be read"),
    ):
        assert sentence in foveate("search", *words).sentence
    for words, sentence in (
        ((other, place / "shapes", "--out", index), "was made with another model"),
        ((place / "model", place / "shapes", "--out", index, "--regions", "grid"), "was made with --regions auto"),
        ((place / "model", place / "model"), "no images"),
        ((place / "model", place / "none"), "none"),
        ((place / "shapes", place / "shapes", "--out", "x"), "config.json"),
    ):
        assert sentence in foveate("index", *words).sentence
    wrong = foveate("index", place / "model", place / "shapes", "--regions", "box")
    assert wrong.code == 2
    assert "Did you mean 'boxes'" in wrong.err


def test_interactive_answers_line_by_line(foveate: Run, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "a red disc\n\n" + "blue\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    ended = foveate("search", index, "green", "--interactive", "--json", "--count", "2", "--kind", "images")
    answers = [json.loads(line) for line in ended.out.splitlines()]
    assert [answer["query"] for answer in answers] == ["green", "a red disc", "blue"]
    assert all(len(answer["hits"]) == 2 for answer in answers)
    assert {hit["kind"] for answer in answers for hit in answer["hits"]} == {"images"}
    assert not Path("runs").exists()
    monkeypatch.setattr("sys.stdin", io.StringIO("red\nblue\n"))
    # The negative text cancels the first query out; the second is still answered.
    ended = foveate("search", index, "--interactive", "--negative", "red", "--count", "1")
    assert "cancel out" in ended.err
    assert re.search(r"^blue: 1 hits in \d+ ms$", ended.out, re.MULTILINE)
    assert foveate("search", index, "--interactive", "--out", "x").code == 2


def test_paths_of_referenced_files(foveate: Run, place: Path, tmp_path: Path) -> None:
    images = tmp_path / "photos"
    images.mkdir()
    for number in range(3):
        tiny.draw([], size=(40 + number, 30), seed=number).save(images / f"redBoat{number}.png")
    (images / "redBoat1.txt").write_text("A boat.\nde=Ein Boot.\n")
    assert foveate("collect", images, "--out", "mine", "--reference", "--quiet").code == 0
    assert foveate("index", place / "model", "mine", "--regions", "none", "--quiet").code == 0
    ended = foveate("search", "mine-index", "red boat 2", "--json")
    best = ended.json["results"]["hits"][0]
    assert best["path"] == str(images / "redBoat2.png")
    assert best["text"] > 0.4
    page = Path(ended.json["paths"]["report"]).read_text(encoding="utf-8")
    assert (images / "redBoat2.png").as_uri() in page
    record = Collection.open("mine")[best["key"]]
    assert record.path == best["path"]
    assert record.open().size == (42, 30)
    assert "photos/redBoat1.png  A boat. de=Ein Boot.\n" in foveate("search", "mine-index", "red boat 1").out


def test_hostile_words(foveate: Run, index: Path) -> None:
    for words in ("<script>alert(1)</script>", "🔴 赤い丸", "x" * 20_000, "{{ 7*7 }}"):
        assert foveate("search", index, words, "--count", "1").code in (0, 3)


def test_not_found(foveate: Run, index: Path, image: Path, place: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(index, tmp_path / "mine"))
    content = json.loads((mine / "index.json").read_text())

    def set_floor(z: float, letters_cosine: float) -> None:
        floor = content["floor"] | {"z": {"both": z}, "letters_cosine": letters_cosine}
        (mine / "index.json").write_text(json.dumps(content | {"floor": floor}))

    set_floor(-99, 2)
    ended = foveate("search", mine, "лодка", "--count", "1")
    assert (ended.code, "Not found" in ended.out) == (0, False), ended.err
    set_floor(99, 2)
    ended = foveate("search", mine, "a red disc", "--count", "2")
    assert (ended.code, "\nNot found: " in f"\n{ended.out}") == (3, True)
    assert "floor 99.00" in ended.out
    # A script that the text tower never saw: the words are named, and the nearest are printed all the same.
    set_floor(-99, -2)
    ended = foveate("search", mine, "лодка", "--count", "2", "--json")
    assert (ended.code, ended.json["has_match"], ended.json["unknown_words"]) == (3, False, ["лодка"])
    assert ended.json["floor"]["letters_above"] == content["floor"]["letters_above"]
    assert len(ended.json["results"]["hits"]) == 2
    assert "Not found" in Path(ended.json["paths"]["report"]).read_text(encoding="utf-8")
    ended = foveate("locate", image, "zzkq", "--model", place / "model", "--json")
    assert ended.code == (0 if ended.json["has_match"] else 3)
    page = Path(ended.json["paths"]["report"]).read_text(encoding="utf-8")
    assert ("Not found: " in page) == (not ended.json["has_match"])
    assert "Made by" in page


def test_a_model_that_is_named_twice_is_refused_with_the_line(foveate: Run) -> None:
    ended = foveate("locate", "bridge", "photo.jpg", "a dog", "--model", "mini")
    assert ended.code == 2
    assert "(got 'bridge' and 'mini'); expected foveate locate IMAGE PHRASE --model mini" in ended.err
