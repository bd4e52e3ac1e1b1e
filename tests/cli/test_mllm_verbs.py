"""`foveate mllm preview`, `train` and `evaluate`, and `foveate ask`, from recipe to answer."""

from __future__ import annotations

import html
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import tiny_mllm
from foveate.cli.verbs.ask import RegionsCommand, _chat, command
from foveate.core.files import read_json, write_json_atomically
from foveate.core.paths import DATA
from foveate.language.packing import PackedTexts
from foveate.mllm.preview import token_text
from foveate.mllm.train import prepare_training
from foveate.multimodal.answers import Answer
from foveate.multimodal.ask import Mllm
from foveate.multimodal.opening import SHIPPED
from foveate.multimodal.results import AskResult
from foveate.multimodal.settings import AskSettings
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.conversations import Conversation, Turn, add_conversations
from foveate.records.shapes import Point, Stroke, enclosing_box
from foveate.training.loader import Loader
from foveate_labs.worlds.scenes import draw_scene


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mllm.make_asked_collection(tmp_path_factory.mktemp("asked") / "shapes")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_mllm.make_recipe().model_dump(mode="json")), encoding="utf-8")
    return path


def test_a_model_is_trained_evaluated_and_asked(foveate: Any, collection: Path, recipe: Path, tmp_path: Path) -> None:
    trained = foveate("mllm", "train", recipe, "--collection", collection, "--out", tmp_path / "run", "--json").json
    model = trained["paths"]["model"]
    assert [stage["name"] for stage in trained["stages"]] == ["alignment", "instruction"]
    assert "How it learned" in Path(trained["paths"]["report"]).read_text(encoding="utf-8")

    arguments = ("--suite", "scenes", "--data", collection, "--out", tmp_path / "evaluated", "--limit", 12, "--json")
    evaluated = foveate("mllm", "evaluate", model, *arguments).json
    assert evaluated["questions"] == 12
    assert {column["key"] for column in evaluated["columns"]} == {"image", "no_image", "another_image"}
    assert "Questions and answers" in Path(evaluated["paths"]["report"]).read_text(encoding="utf-8")

    image = tmp_path / "image.png"
    Image.new("RGB", (80, 60), "red").save(image)
    drawn = tmp_path / "drawn.png"
    question = ("ask", image, "Where is the red disc?", "--model", model, "--max-tokens", 8)
    answer = foveate(*question, "--image-out", drawn, "--json").json
    assert Image.open(drawn).size == (80, 60)
    assert answer["tokens"] <= 8
    assert "lite0 + pooled + llama" in answer["description"]
    asked = foveate(*question, "--out", tmp_path / "asked", "--json").json
    assert {**asked, "paths": 0, "seconds": 0, "seconds_to_open": 0} == {
        **answer, "paths": 0, "seconds": 0, "seconds_to_open": 0,
    }  # fmt: skip
    page = Path(asked["paths"]["report"]).read_text(encoding="utf-8")
    assert "Where is the red disc?" in page
    assert page.count('class="box box-default"') == len(answer["boxes"])
    # Streamed, the same words.
    assert foveate(*question).out.strip() == answer["text"]


def test_a_calibrated_model_is_not_given_its_earlier_scores(foveate: Any, collection: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "mini", tmp_path / "mini"))
    options = ("--suite", "scenes", "--data", collection, "--limit", 2, "--out", "answers")
    arguments = ("mllm", "evaluate", folder, *options)
    assert foveate(*arguments, "--json").json["questions"] == 2
    config = read_json(folder / "config.json")
    write_json_atomically(folder / "config.json", config | {"min_box_score": config["min_box_score"] + 1})
    assert "answers holds a run of another recipe" in foveate(*arguments).sentence


def test_a_preview_shows_the_batch_that_training_loads(
    foveate: Any, collection: Path, recipe: Path, tmp_path: Path
) -> None:
    arguments = ("mllm", "preview", recipe, "--collection", collection, "--json")
    shown = foveate(*arguments, "--step", 2, "--samples", 3, "--out", tmp_path / "preview").json
    with Collection.open(collection) as opened:
        training = prepare_training(tiny_mllm.make_recipe(), opened, tmp_path / "run")
        stage = training.recipe.stages[1]
        dataset = training.samples(stage)
        loader = Loader(dataset, rows=dataset.rows, batch_size=4, seed=training.loader_seed(stage), workers=0)
        batch = next(loader.batches(1, 2))
    texts, tokenizer = PackedTexts(*(batch[name] for name in PackedTexts._fields)), training.prompts.tokenizer
    assert (shown["stage"], shown["batch"], len(shown["samples"])) == ("instruction", 4, 3)
    assert shown["lengths"] == (texts.text_BT > 0).sum(dim=1).tolist()
    assert shown["learned_share"] == pytest.approx(float(texts.learned_BT.sum()) / sum(shown["lengths"]))
    assert shown["padding_share"] == pytest.approx(1 - sum(shown["lengths"]) / texts.ids_BT.numel())
    boxes = batch["region_boxes_R4"].tolist()
    for row, sample in enumerate(shown["samples"]):
        tokens = [token for conversation in sample["conversations"] for token in conversation["tokens"]]
        length = shown["lengths"][row]
        assert [token["learned"] for token in tokens] == texts.learned_BT[row, :length].tolist()
        ids = texts.ids_BT[row, :length].tolist()
        assert [token["text"] for token in tokens] == [token_text(tokenizer, id) for id in ids]
        assert [token["region"] for token in tokens if token["region"]] == list(range(1, len(sample["regions"]) + 1))
        for region in sample["regions"]:
            assert region["box"] == pytest.approx(boxes.pop(0), abs=1e-6)
        for conversation in sample["conversations"]:
            reads = [conversation[f"reads_{name}"] for name in ("images", "itself", "others")]
            assert reads == [4 * len(sample["views"]), len(conversation["tokens"]), 0]
    page = Path(shown["paths"]["report"]).read_text(encoding="utf-8")
    assert 'href="#box-1-1"' in page
    assert 'id="box-1-1"' in page

    other = foveate(*arguments, "--step", 2, "--seed", 7, "--out", tmp_path / "other").json
    assert [s["views"] for s in other["samples"]] != [s["views"] for s in shown["samples"]]


def test_a_preview_draws_tiles_as_they_are_read(foveate: Any, collection: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "tiled.yaml"
    recipe.write_text(yaml.safe_dump(tiny_mllm.make_tiled_recipe().model_dump(mode="json")), encoding="utf-8")
    shown = foveate("mllm", "preview", recipe, "--collection", collection, "--json").json
    for row, sample in enumerate(shown["samples"]):
        labels = [view["label"] for view in sample["views"]]
        assert "overview" in labels
        assert "row 1, column 1" in labels
        assert any(view["before"] for view in sample["views"]), "tiles have indicators"
        # Visual tokens of all views and the tokens between them: each text reads them all.
        assert sample["visual"] == shown["visual"][row] > 4 * len(labels)
        assert {conversation["reads_images"] for conversation in sample["conversations"]} == {sample["visual"]}
        for view in sample["views"]:
            with Image.open(Path(shown["paths"]["run"]) / view["file"]) as image:
                assert image.size == (64, 64)


def test_a_preview_lists_what_is_left_out(foveate: Any, tmp_path: Path) -> None:
    path = tiny_mllm.make_asked_collection(tmp_path / "shapes")
    text_alone = Conversation("text", (), (Turn("user", "What is one and one?"), Turn("assistant", "two")), "text")
    add_conversations(path, [text_alone])
    recipe = tmp_path / "recipe.yaml"
    content = tiny_mllm.make_recipe().model_dump(mode="json")
    content["stages"][1] |= {"groups": ["refer-ground"], "max_conversations": 1}
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    left_out = foveate("mllm", "preview", recipe, "--collection", path, "--json").json["left_out"]
    reasons = {entry["reason"].split(" ")[0]: entry["count"] for entry in left_out}
    assert reasons["a"] > 1  # the text alone and the other groups
    assert reasons["max_conversations"] >= 1
    # Too few positions for any conversation: each is listed, and then nothing is left to show.
    content["model"]["language"]["max_position_embeddings"] = 9
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert "9" in foveate("mllm", "preview", recipe, "--collection", path).sentence
    assert "alignment" in foveate("mllm", "preview", recipe, "--collection", path, "--stage", "alignmnt").sentence
    aligned = foveate("mllm", "preview", recipe, "--collection", path, "--stage", "alignment", "--json").json
    assert aligned["conversations"] == 0
    assert aligned["names"] > 0


def test_a_dry_run_prices_all_stages_and_writes_nothing(foveate: Any, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    priced = foveate("mllm", "train", recipe, "--out", run, "--dry-run", "--images", 2, "--devices", 4, "--json").json
    assert [(stage["name"], stage["devices"], stage["image_tokens"]) for stage in priced["stages"]] == [
        ("alignment", 4, 8),
        ("instruction", 4, 8),
    ]
    assert not run.exists()
    # Samples and device are not assumed where they are there.
    refused = foveate("mllm", "train", recipe, "--collection", tmp_path, "--dry-run", "--images", 2)
    assert refused.code == 2
    assert "--images" in refused.err
    assert "--collection" in refused.err


def test_what_is_asked_by_default_is_shipped() -> None:
    assert AskSettings().model in SHIPPED


def test_a_chat_leaves_a_page_of_all_its_questions(
    foveate: Any, collection: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foveate("mllm", "train", recipe, "--collection", collection, "--out", tmp_path / "run", "--quiet")
    images = [tmp_path / "first.png", tmp_path / "second.png"]
    for image in images:
        Image.new("RGB", (80, 60), "red").save(image)
    monkeypatch.setattr("sys.stdin", io.StringIO("Is it red?\nWhat is <1>?\n\n"))
    options = ("--model", tmp_path / "run" / "model", "--box", "8,6,40,30", "--chat", "--out", tmp_path / "asked")
    foveate("ask", *images, "What is <1>?", *options, "--max-tokens", 4)
    result = AskResult.model_validate_json((tmp_path / "asked" / "result.json").read_text(encoding="utf-8"))
    # The third question names a region that it does not have: it ends no conversation.
    assert [exchange.question for exchange in result.exchanges] == ["What is <1>?", "Is it red?"]
    assert result.exchanges[0].regions == [(8, 6, 40, 30)]
    assert result.exchanges[0].region_images == [1], "the last image in front of it"
    assert [image.size for image in result.images] == [(60, 80), (60, 80)]
    assert "Is it red?" in (tmp_path / "asked" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("interrupted", ["prompt", "answer"])
def test_ctrl_c_in_a_chat_keeps_what_was_answered(interrupted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Chat:
        def ask(self, text: str, **options: object) -> Answer:
            if text == "answer":
                raise KeyboardInterrupt
            return Answer(f"{text}!")

    def read(prompt: str) -> str:
        line = next(lines)
        if line == "prompt":
            raise KeyboardInterrupt
        return line

    lines = iter(["second", interrupted])
    monkeypatch.setattr("builtins.input", read)
    exchanges = _chat(Chat(), "first", [], 8, ground=False, num_images=1, find_nearest=lambda text, read_as, source: [])
    assert [exchange.text for exchange in exchanges] == ["first!", "second!"]


@pytest.mark.parametrize(
    ("option", "others"),
    [
        ("--json", ("--chat",)),
        ("--image-out", ("out.png", "--chat")),
        ("--coco-out", ("out.json", "--chat")),
        ("--coco-out", ("out.json", "--option", "yes", "--option", "no")),
        ("--ground", ("--option", "yes", "--option", "no")),
        ("--max-tokens", ("9", "--option", "yes", "--option", "no")),
        ("--unit", ("0-1",)),
        ("--unit", ("0-1", "--mask", "mask.png")),
        ("--region-prompt", ("draw",)),
    ],
)
def test_options_without_effect_are_refused(foveate: Any, option: str, others: tuple[str, ...]) -> None:
    ended = foveate("ask", "image.png", "What is it?", option, *others)
    assert ended.code == 2
    assert option in ended.err


def test_a_region_outside_the_image_is_named(foveate: Any, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    Image.new("RGB", (80, 60), "red").save(image)
    assert "region 1" in foveate("ask", image, "What is <1>?", "--box", "1,2,300,40").sentence


@pytest.mark.parametrize(
    ("model", "named"), [("{image}", "image.png"), ("minni", "'mini'"), ("{folder}", "config.json")]
)
def test_what_is_no_model_is_named(foveate: Any, tmp_path: Path, model: str, named: str) -> None:
    image = tmp_path / "image.png"
    Image.new("RGB", (80, 60), "red").save(image)
    assert named in foveate("ask", image, "What?", "--model", model.format(image=image, folder=tmp_path)).sentence


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("{image}", "What is <1>?"), "<1>"),
        (("{image}", "What is <3>?", "--box", "1,2,30,40", "--point", "3,4"), "<3>"),
        (("{image}", "What is <1>?", "--box", "1,2,30,40", "--point", "3,4"), "region 2"),
        (("{image}", "What is <1>?", "--box", "1,2,3"), "--box"),
        (("{image}", "What is <1>?", "--box", "9,2,3,4"), "--box"),
        (("{image}", "What is <1>?", "--point", "nan,4"), "--point"),
        (("{image}", "What is <1>?", "--stroke", "{image}"), "image.png"),
        (("{image}", "What is <1>?", "--mask", "{image}.json"), "image.png.json"),
        (("{text}", "What is <1>?", "--box", "0,0,1,1", "--unit", "0-1"), "image.txt"),
        (("{image}", "What?", "--option", "yes"), "'yes'"),
        (("{image}", "<image><image> What?"), "2 <image>"),
        (("no-such-file.png", "What is it?"), "no-such-file.png"),
        (("What is it?",), "IMAGE"),
        (("{image}", "What?", "--image-out", "answer.xyz"), ".xyz"),
        (("{image}", "What?", "--image-out", "answer.psd"), ".psd"),
        (("{image}", "What?", "--image-out", "{image}"), "--image-out"),
        (("{image}", "What?", "--coco-out", "{image}"), "--coco-out"),
        (("{image}", "What?", "--coco-out", "{folder}"), "--coco-out"),
        (("{image}", "What?", "--coco-out", "drawn.png", "--image-out", "drawn.png"), "--coco-out"),
    ],
)
def test_a_mistake_gives_one_sentence_before_a_model_is_opened(
    foveate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], named: str
) -> None:
    monkeypatch.setattr("foveate.multimodal.opening.open_mllm", None)
    image, text = tmp_path / "image.png", tmp_path / "image.txt"
    Image.new("RGB", (80, 60), "red").save(image)
    text.write_text("no image")
    filled = [argument.format(image=image, text=text, folder=tmp_path) for argument in arguments]
    assert named in foveate("ask", *filled).sentence


def test_options_for_regions_are_noted_in_their_order() -> None:
    assert isinstance(command, RegionsCommand)
    args = ["image.png", "<1> <2> <3>?", "--point", "1,2", "--ground", "--box", "1,2,3,4", "--point", "5,6"]
    context = command.make_context("ask", args)
    assert context.meta["foveate.regions"] == ["point", "box", "point"]


def test_regions_keep_the_order_of_their_options_and_are_converted_to_pixels(
    foveate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options of several kinds, mixed: `<2>` is the second of all, whatever its kind."""
    asked: list[tuple[str, Any]] = []

    class Model:
        def stream(self, images: Any, question: str, *, regions: Any, max_tokens: int) -> Any:
            asked.append((question, regions))
            yield "a disc"
            return Answer("a disc")

        def describe(self) -> str:
            return "a table"

    monkeypatch.setattr("foveate.multimodal.opening.open_mllm", lambda *_, **__: Model())
    image, stroke, mask = tmp_path / "image.png", tmp_path / "stroke.json", tmp_path / "mask.png"
    Image.new("RGB", (80, 60), "red").save(image)
    stroke.write_text("[[0.5, 0.5], [0.75, 1]]", encoding="utf-8")
    drawn = Image.new("L", (80, 60))
    drawn.paste(255, (10, 20, 30, 40))
    drawn.save(mask)
    regions = ("--point", "0.5,0.25", "--mask", mask, "--box", "0,0,0.5,0.5", "--stroke", stroke, "--point", "1,1")
    ended = foveate("ask", image, "<1> <2> <3> <4> <5>?", *regions, "--unit", "0-1")
    assert ended.out.strip() == "a disc"
    ((_, shapes),) = asked
    assert shapes[0] == Point(40, 15)
    assert enclosing_box(shapes[1]) == PixelBox(10, 20, 30, 40)
    assert shapes[2:] == [PixelBox(0, 0, 40, 30), Stroke((Point(40, 30), Point(60, 60))), Point(80, 60)]


def test_a_phrase_is_located_by_a_multimodal_model(foveate: Any, tmp_path: Path) -> None:
    image, scene = tmp_path / "image.png", draw_scene(seed=7, split="validation", index=3)
    scene.image.save(image)
    phrase = scene.regions[1].phrase
    ended = foveate("locate", "mini", image, phrase, "--out", tmp_path / "run", "--json")
    assert ended.json["question"] == f"Where is the {phrase}?"
    (box,) = ended.json["boxes"]
    assert 0 <= box[0] < box[2] <= 224
    assert 0 <= box[1] < box[3] <= 224
    assert f"Where is the {phrase}?" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    blank = tmp_path / "blank.png"
    Image.new("RGB", (80, 60), "red").save(blank)
    absent = foveate("locate", "mini", blank, phrase, "--out", tmp_path / "absent", "--json").json
    assert absent["boxes"] == []
    (score,) = absent["rejected"]
    assert f"not found: its best match scores {score:.2f}" in foveate("ask", blank, f"Where is the {phrase}?").out
    assert (absent["has_match"], absent["reason"]) == (False, f"its best match scores {score:.2f}")
    assert (ended.json["has_match"], ended.json["reason"], ended.code) == (True, "", 0)
    refused = foveate("locate", "mini", image, "a red disc", "--rule", "head")
    assert refused.code == 2
    assert "--rule" in refused.err


def test_an_answer_in_words_finds_no_phrase(foveate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, run = tmp_path / "image.png", tmp_path / "run"
    Image.new("RGB", (80, 60), "red").save(image)
    monkeypatch.setattr(Mllm, "locate", lambda *_: Answer("<b>no</b>", tokens=1))
    line = "not found: the model answered '<b>no</b>' and gave no box"
    told = foveate("locate", "mini", image, "a disc", "--out", run)
    assert (told.code, told.out.splitlines()[0]) == (3, line)
    page = html.unescape((run / "report.html").read_text(encoding="utf-8"))
    assert f"Not found: {line.partition(': ')[2]}." in page
    told = foveate("locate", "mini", image, "a disc", "--out", run, "--json")
    assert told.code == 3
    assert (told.json["has_match"], told.json["reason"]) == (False, line.partition(": ")[2])
    assert foveate("ask", image, "Where is the disc?").code == 0


@pytest.mark.parametrize("verb", ["ask", "locate"])
def test_a_run_folder_that_is_a_file_is_refused_before_a_model_is_opened(
    foveate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr("foveate.multimodal.opening.open_mllm", lambda *_, **__: pytest.fail("opened"))
    image, file = tmp_path / "image.png", tmp_path / "file"
    Image.new("RGB", (80, 60), "red").save(image)
    file.write_text("")
    question = ("ask", image, "Where is the disc?") if verb == "ask" else ("locate", "mini", image, "a disc")
    refused = foveate(*question, "--out", file)
    assert refused.code == 1
    assert "--out" in refused.err


def test_the_shipped_model_names_the_request_nearest_to_a_question_that_it_cannot_know(
    foveate: Any, tmp_path: Path
) -> None:
    image = tmp_path / "image.png"
    draw_scene(seed=0, split="test", index=1).image.save(image)
    unknown = foveate("ask", image, "What is in the image?")
    assert unknown.code == 0
    assert "mini" in unknown.err
    request = "Write a short caption, 8 to 11 tokens."
    assert request in unknown.err
    ended = foveate("ask", image, request, "--json")
    assert ended.json["nearest_requests"] == []
    assert request not in ended.err
    assert len(ended.json["text"].split()) > 3


def test_options_and_boxes_of_the_shipped_model(foveate: Any, tmp_path: Path) -> None:
    """The likelier option comes first with its share; of several images each is drawn."""
    images = [tmp_path / "first.png", tmp_path / "second.png"]
    for index, image in enumerate(images):
        draw_scene(seed=0, split="test", index=index).image.save(image)
    ended = foveate("ask", images[0], "Is there a star?", "--option", "yes", "--option", "no", "--json").json
    assert sum(ended["probabilities"]) == pytest.approx(1)
    assert ended["text"] == ended["options"][ended["probabilities"].index(max(ended["probabilities"]))]
    # The shipped model was never trained on letters.
    assert (ended["scored_by"], 0 < ended["mass"] < 1e-4) == ("texts", True)
    page = foveate(
        "ask", images[0], "Is there a star?", "--option", "yes", "--option", "no", "--out", tmp_path / "asked"
    )
    lines = page.out.splitlines()
    assert "letters have" in lines[2]
    assert "texts" in lines[2]
    assert f"{ended['mass']:.2g}" in (tmp_path / "asked/report.html").read_text()
    shown = foveate("ask", *images, "Where is the baseball cap?", "--image-out", tmp_path / "out.png", "--ground")
    assert shown.code == 0, shown.err
    assert (tmp_path / "out-1.png").is_file()
    assert (tmp_path / "out-2.png").is_file()
    assert "in image" in shown.out


def test_boxes_of_an_answer_are_a_coco_file(foveate: Any, tmp_path: Path) -> None:
    """The importer reads the file, and each box has its phrase as category."""
    image, out = tmp_path / "scene.png", tmp_path / "annotations" / "boxes.json"
    draw_scene(seed=0, split="test", index=0).image.save(image)
    out.parent.mkdir()
    ended = foveate("ask", image, "Where is the baseball cap?", "--ground", "--coco-out", out, "--json").json
    content = json.loads(out.read_text(encoding="utf-8"))
    assert len(content["annotations"]) == len(ended["boxes"]) > 0
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert [names[each["category_id"]] for each in content["annotations"]] == [
        phrase or "(no phrase)" for phrase in ended["phrases"]
    ]
    for each, (x1, y1, x2, y2) in zip(content["annotations"], ended["boxes"], strict=True):
        assert each["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    assert content["info"]["unboxed"] == ended["unboxed"]
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (224, 224)
