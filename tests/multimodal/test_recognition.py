"""Photographs are answered by what recognizes things; generated scenes by the model, exactly as before."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from click.testing import CliRunner
from PIL import Image

from foveate.cli.verbs.ask import command
from foveate.language.forbidden_words import INVENTED_WORDS
from foveate.multimodal.answers import LANGUAGE_MODEL, Answer
from foveate.multimodal.ask import Mllm
from foveate.multimodal.opening import open_mllm
from foveate.multimodal.picture_check import MIN_PLAINNESS, PictureCheck, load_picture_check
from foveate.multimodal.prepare import encode_sample
from foveate.multimodal.recognition import (
    SOURCE,
    UNDECIDED,
    UNKNOWN,
    UNRECOGNIZED,
    Request,
    add_article,
    read_request,
    write_caption,
)
from foveate.records.boxes import Box, PixelBox
from foveate.records.samples import photographs
from foveate.vision.recognition import Thing, load_names, normalize_phrase
from foveate_labs.worlds.scenes import draw_scene

CAT = Image.fromarray(skimage.data.cat())


@pytest.fixture(scope="module")
def mini() -> Mllm:
    model = open_mllm("mini")
    assert isinstance(model, Mllm)
    return model


def scene_file(index: int) -> bytes:
    buffer = io.BytesIO()
    draw_scene(seed=5, split="test", index=index).image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_photograph_of_a_cat(mini: Mllm) -> None:
    answer = mini.ask(CAT, "What is in the image?")
    assert answer.source == SOURCE
    assert re.match(r"probably: an? .*\(\.\d\d\)", answer.text), answer.text
    assert len(answer.boxes) == len(answer.phrases) == len(answer.box_scores) == len(answer.images)
    where = mini.ask(CAT, "Can you find the cat, please?")
    assert where.source == SOURCE
    (box,) = where.boxes
    assert 0 <= box.x1 < box.x2 <= CAT.width
    assert 0 <= box.y1 < box.y2 <= CAT.height
    assert mini.ask(CAT, "Do you see a cat?").text.startswith("yes, probably")
    assert mini.ask(CAT, "Is there an airplane?").text.startswith("no, probably not")
    assert mini.ask(CAT, "Where is the airplane?").text == "not found"
    assert mini.locate(CAT, "an airplane").reason.startswith("its best match scores")


def test_every_other_question_is_refused_with_a_remedy(mini: Mllm) -> None:
    for question in ("How many cats are there?", "What color is the cat?", "Why?", "What is left of the cat?"):
        answer = mini.ask(CAT, question)
        assert (answer.text, answer.source) == (UNKNOWN, SOURCE)
    assert "--model OWNER/NAME" in UNKNOWN
    # One of several images is enough: nothing here compares images.
    assert mini.ask([CAT, scene_file(0)], "Do both images show a cat?").text == UNKNOWN


def test_every_way_of_asking_has_the_stage(mini: Mllm) -> None:
    question = "What is in the image?"
    expected = mini.ask(CAT, question)
    assert "".join(mini.stream(CAT, question)) == expected.text
    chat = mini.chat(CAT)
    assert chat.ask(question) == chat.ask(question) == expected
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 2
    mixed = mini.ask_all([(scene_file(0), question), (CAT, question), (scene_file(1), question)])
    assert [answer.source for answer in mixed] == [LANGUAGE_MODEL, SOURCE, LANGUAGE_MODEL]
    ferret = open_mllm("mini-ferret")
    assert isinstance(ferret, Mllm)
    answer = ferret.ask(CAT, "Is there a deer in the image? If so, where is it?")
    assert answer.text.startswith("no, probably not")
    assert "not found" not in answer.text


def test_answers_about_scenes_are_those_of_the_model_alone(mini: Mllm) -> None:
    questions = [
        (scene_file(index), question)
        for index in (0, 2, 3, 4)
        for question in ("What is in the image?", "Where is the cat?", "Is there a dog?")
    ]
    answers, alone = mini.ask_all(questions), Mllm(mini.loaded).ask_all(questions)
    assert answers == alone
    assert {answer.source for answer in answers} == {LANGUAGE_MODEL}
    # Where the invented words are allowed, the images are generated ones.
    assert mini.allow_training_words().pictures is None


def test_no_invented_word_reaches_a_user(mini: Mllm) -> None:
    pattern = re.compile(rf"\b({'|'.join(INVENTED_WORDS)})\b", re.IGNORECASE)
    for image in (CAT, Image.fromarray(skimage.data.coffee()), Image.new("RGB", (64, 64), "red")):
        for question in ("What is in the image?", "Name the thing.", "Describe the image.", "What is it doing?"):
            assert not pattern.search(mini.ask(image, question).text)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (1, 1)),
        Image.new("RGB", (5, 500), "white"),
        Image.new("L", (300, 200), 128),
        Image.new("RGBA", (64, 64), (0, 0, 0, 0)),
    ],
)
def test_pictures_of_nothing(mini: Mllm, image: Image.Image) -> None:
    for question in ("What is in the image?", "Where is the cat?", "Is there a cat?", "Describe it."):
        answer = mini.ask(image, question)
        assert answer.finished
        for box in answer.boxes if answer.source == SOURCE else ():
            assert 0 <= box.x1 < box.x2 <= image.width
            assert 0 <= box.y1 < box.y2 <= image.height
    assert mini.ask(Image.new("L", (300, 200), 128), "What is in the image?").text == UNRECOGNIZED


def test_options_are_decided_by_what_is_recognized(mini: Mllm) -> None:
    question, names = "What is in the image?", ["airplane", "cat", "banana"]
    choice = mini.decide(CAT, question, names)
    assert (choice.source, choice.refusal) == (SOURCE, "")
    assert sum(choice.probabilities) == pytest.approx(1)
    assert choice.probabilities.index(max(choice.probabilities)) == 1
    either = mini.choose(CAT, "Is it an airplane or a cat?", ["airplane", "cat"])
    assert either[1] > either[0]
    region = mini.choose(CAT, "What is <1>?", ["banana", "cat"], regions=[PixelBox(20, 10, 430, 290)])
    assert region[1] > region[0]
    no, yes = mini.choose(CAT, "Is there a cat?", ["no", "Yes"])
    assert yes > no
    # Neither names of things nor yes and no, or of things that the image does not show.
    questions = [
        ("What color is the cat?", ["orange", "lemon"]),
        ("What is in the image?", ["red", "blue"]),
        ("What is in the image?", ["airplane", "banana"]),
        ("What is it doing?", ["yes", "no"]),
    ]
    for asked, options in questions:
        choice = mini.decide(CAT, asked, options)
        assert (choice.source, choice.refusal, choice.probabilities) == (SOURCE, UNDECIDED, (0.5, 0.5)), asked
    scene = mini.decide(scene_file(0), question, names)
    # Recognition scores no letters, and the shipped models were never trained on any.
    assert (choice.mass, choice.scored_by) == (None, "")
    assert (scene.source, scene.scored_by) == (LANGUAGE_MODEL, "texts")
    assert scene.mass is not None
    assert 0 < scene.mass < 1e-4
    assert scene.probabilities == pytest.approx(mini.choose(scene_file(0), question, names), abs=1e-4)


def test_a_region_is_named(mini: Mllm) -> None:
    answer = mini.ask(CAT, "What is <1>?", regions=[PixelBox(20, 10, 430, 290)])
    assert answer.source == SOURCE
    assert answer.text.startswith("probably: ") or answer.text == UNRECOGNIZED
    tiny = mini.ask(CAT, "What is <1>?", regions=[PixelBox(20, 10, 22, 12)])
    assert tiny.text.startswith("I cannot name so small a region")


def test_the_check_measures_the_distance_from_what_it_was_fitted_to() -> None:
    generator = torch.Generator().manual_seed(0)
    near_BD = torch.randn(400, 24, generator=generator) * torch.linspace(0.2, 2, 24) + 3
    check = PictureCheck.fit(near_BD, directions=4)
    near_B = check.measure(near_BD)
    assert abs(float(near_B.mean()) - 1) < 0.1
    # Length says nothing: a darker picture is no other picture.
    torch.testing.assert_close(check.measure(5 * near_BD), near_B)
    assert float(check.measure(-near_BD).min()) > float(near_B.max())
    limited = check.choose_limit(near_BD, share=0.9)
    assert float((limited.measure(near_BD) > 1).float().mean()) == pytest.approx(0.1, abs=0.01)
    # The nearer of two kinds counts.
    other = PictureCheck.fit(-near_BD, directions=4)
    both = PictureCheck([*limited.kinds, *other.kinds])
    assert float(both.measure(-near_BD).mean()) < 1.1
    torch.testing.assert_close(both.measure(near_BD), limited.measure(near_BD))


def test_plain_grounds_are_told_from_what_is_pasted_on_them() -> None:
    generator = torch.Generator().manual_seed(1)
    plain_PD = torch.randn(200, 24, generator=generator) + 3
    scenes_BD = plain_PD + torch.cat([torch.full((200, 1), 4.0), torch.zeros(200, 23)], dim=1)
    check = PictureCheck.fit(scenes_BD, directions=4)
    # Without plain pictures nothing counts as one.
    assert not (check.measure_plainness(plain_PD) > MIN_PLAINNESS).any()
    fitted = check.fit_plain(scenes_BD, plain_PD)
    plain_P, scene_B = fitted.measure_plainness(plain_PD), fitted.measure_plainness(5 * scenes_BD)
    assert float((plain_P > 0).float().mean()) > 0.9
    assert float((scene_B < 0).float().mean()) > 0.9
    torch.testing.assert_close(fitted.measure(plain_PD), check.measure(plain_PD))


def test_the_shipped_limit_separates_scenes_from_photographs(mini: Mllm) -> None:
    check = load_picture_check()

    def is_unlike(image: Image.Image | bytes) -> bool:
        vector_D = encode_sample(mini.loaded, [image])[1][0].vector_D
        assert vector_D is not None
        return bool(check.are_unlike(vector_D[None])[0])

    scenes = [is_unlike(scene_file(index)) for index in range(12)]
    assert sum(scenes) <= 1
    # Scenes have parts of them as grounds.
    assert [name for name, photograph in photographs().items() if not is_unlike(photograph)] == []


@pytest.mark.parametrize(
    ("question", "request_"),
    [
        ("What is in the image?", Request("what")),
        ("Can you tell me what this is?", Request("what")),
        ("what's in this picture", Request("what")),
        ("Name the thing.", Request("what")),
        ("Where's the dog?", Request("where", "dog")),
        ("Could you please locate the owl in this photo?", Request("where", "owl")),
        ("Can you give me a box around the waffle?", Request("where", "waffle")),
        ("Show me the bus", Request("where", "bus")),
        ("Do you see any dogs in here?", Request("is there", "dog")),
        ("Is there a deer in the image? If so, where is it?", Request("is there", "deer")),
        ("Does the picture show a cat? Answer briefly.", Request("is there", "cat")),
        ("Describe the image in a sentence.", Request("describe")),
        ("How many dogs are there?", Request("")),
        ("Is the dog left of the cat?", Request("")),
        ("On which side is the dog: left or right?", Request("")),
        ("What is the dog doing?", Request("")),
        ("???", Request("")),
        ("where is " + "very " * 500 + "big dog", Request("where", "dog")),
        ("where is " + "what " * 500 + "dog", Request("")),
        ("Where is the man in a red shirt?", Request("where", "man")),
        ("Is it a cat or a dog?", Request("what")),
        ("Is there anything?", Request("what")),
        ("bounding box, otter", Request("where", "otter")),
    ],
)
def test_forms_of_questions(question: str, request_: Request) -> None:
    assert read_request(question) == request_


def test_names_under_their_hypernyms() -> None:
    graph = load_names()
    text, nodes, classes = graph.find_nodes("two big brown dogs")
    assert text == "dog"
    assert graph.members_NC[nodes].any(axis=0).sum() > 100
    assert [graph.detector[number] for number in classes] == ["dog"]
    assert graph.find_nodes("giraffe")[2] == [graph.detector.index("giraffe")]
    assert graph.find_nodes("blorf") == ("", [], [])
    # A vehicle may be a bus, a bus is not any vehicle.
    buses, vehicles = (set(graph.find_nodes(word)[2]) for word in ("bus", "vehicle"))
    assert buses < vehicles
    # Spread over breeds, a dog is a dog; on one of them, it is that one.
    dogs = graph.members_NC[nodes].any(axis=0)
    spread = graph.choose_name(graph.members_NC @ (0.9 * dogs / dogs.sum()), 0.5)
    assert spread is not None
    assert graph.names[spread] == "dog"
    single = np.zeros(1000)
    single[int(np.flatnonzero(dogs)[0])] = 0.9
    certain = graph.choose_name(graph.members_NC @ single, 0.5)
    assert certain == int(np.flatnonzero(dogs)[0])
    assert graph.choose_name(graph.members_NC @ np.full(1000, 1e-6), 0.5) is None
    assert graph.is_related("dog", "animal")
    assert not graph.is_related("dog", "cat")
    assert normalize_phrase("The red cars on the road!") == "red cars"


def test_captions_state_what_was_recognized() -> None:
    things = [Thing("macaw", 0.97, Box(0.6, 0.3, 0.9, 0.6), "parrot"), Thing("bench", 0.5)]
    assert write_caption("ssc", things) == "This is probably a macaw, a kind of parrot."
    assert write_caption("dsc", things).endswith("It is on the right. There is probably also a bench.")
    assert "score of .97" in write_caption("dsc_plus", things)
    assert 'alt-text says "A bird"' in write_caption("afc", things, alt="A bird")
    herd = [Thing("horse", 0.9, Box(0.4, 0.4, 0.6, 0.6)), Thing("horse", 0.8), Thing("cow", 0.7), Thing("cow", 0.6)]
    assert write_caption("dsc", herd).endswith("There is probably also another horse and a cow.")
    assert [add_article(name) for name in ("otter", "unicorn", "scissors")] == ["an otter", "a unicorn", "scissors"]


def test_the_command_blames_the_picture(tmp_path: Path) -> None:
    photo = CAT.resize((450, 300))
    photo.save(tmp_path / "cat.png")
    arguments = [str(tmp_path / "cat.png"), "Do you see a cat?", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert "unlike the generated scenes" in result.stderr
    assert "--model OWNER/NAME" in result.stderr
    assert "was not trained on such a question" not in result.stderr
    page = next((tmp_path / "run").glob("*.html")).read_text()
    assert "450 × 300 px" in page
    assert "unlike the generated scenes" in page
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored["exchanges"][0]["source"] == SOURCE
    (tmp_path / "scene.png").write_bytes(scene_file(0))
    for options, chosen in ((["cat", "dog"], "cat"), (["red", "blue"], UNDECIDED)):
        flags = [flag for option in options for flag in ("--option", option)]
        run = ["--out", str(tmp_path / chosen[:3])]
        asked = CliRunner().invoke(command, [str(tmp_path / "cat.png"), "What is it?", *flags, *run, "--json"])
        content = json.loads(asked.stdout)
        assert (content["text"], content["source"]) == (chosen, SOURCE)
        assert len(content["probabilities"]) == (2 if chosen == "cat" else 0)
        plain = CliRunner().invoke(command, [str(tmp_path / "cat.png"), "What is it?", *flags])
        assert plain.stdout.splitlines()[0].endswith(chosen)
    asked = CliRunner().invoke(command, [str(tmp_path / "scene.png"), "What is in the image?", "--json"])
    assert json.loads(asked.stdout)["source"] == LANGUAGE_MODEL
    assert "unlike" not in asked.stderr


def test_an_answer_is_the_language_models_unless_it_says_otherwise() -> None:
    assert Answer("yes").source == LANGUAGE_MODEL
