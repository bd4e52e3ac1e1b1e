"""Options by their likelihood, and boxes of what an answer mentions."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from test_multimodal_model import loaded, settings
from test_tiled_model import load as load_tiled

from foveate.core.errors import UserError
from foveate.language.packing import Tokens, pack_texts
from foveate.multimodal.answer_writer import AnswerWriter, PointedBox
from foveate.multimodal.answers import AskableModel, find_runs, pair_phrases
from foveate.multimodal.ask import Mllm
from foveate.multimodal.phrase_maps import PhraseMatch
from foveate.multimodal.prepare import Question, prepare_questions, request_boxes
from foveate.multimodal.questions import ask_where
from foveate.multimodal.referring import RegionPrompts
from foveate.multimodal.views import ViewLayout
from foveate.records.boxes import PixelBox
from foveate.records.region_prompts import GROUNDING_REQUEST
from naming import raises_naming

IMAGES = [np.random.default_rng(seed).integers(0, 256, (50, 64, 3), dtype=np.uint8) for seed in range(3)]
OPTIONS = ["yes", "no", "a red disc and a blue square"]


def likelihood(model: Mllm, question: Question, option: str) -> float:
    """Log-likelihood of an answer by a pass of the whole sequence for each of its tokens."""
    loaded_model = model.loaded
    visual, (pending,) = prepare_questions(model.loaded, [question])
    ids, total = list(pending.written.tokens.ids), 0.0
    regions = RegionPrompts(
        torch.tensor(np.array([box for _, box in pending.written.regions]), dtype=torch.float32).view(-1, 4),
        torch.tensor([image for image, _ in pending.written.regions], dtype=torch.long),
    )
    answer = [*loaded_model.tokenizer.encode(f" {option}"), loaded_model.prompts.chat.end]
    for token in answer:
        texts = pack_texts([[Tokens(ids, [False] * len(ids))]], pad=0)
        state = loaded_model.model.hidden_states(
            visual,
            torch.tensor([pending.views], dtype=torch.long),
            texts,
            regions,
            ViewLayout.create([pending.layout], in_text=[pending.in_text]),
        )[0, -1]
        total += float(loaded_model.model.logits(state).double().log_softmax(dim=-1)[token])
        ids.append(token)
    return total


@pytest.mark.parametrize("tiled", [False, True])
def test_probabilities_are_those_of_each_answer_alone(tiled: bool) -> None:
    model = Mllm(load_tiled() if tiled else loaded())
    region = [] if tiled else [PixelBox(3, 4, 40, 44)]
    questions = [
        Question(IMAGES[0], "Is there a red disc?"),
        Question(IMAGES[1:], "Is <1> red?" if region else "Is it red?", region),
        Question([], "Is it red?"),
        Question(IMAGES[1:], "In <image> and in <image>, is there a red disc?"),
    ]
    choices = [OPTIONS, OPTIONS[:2], OPTIONS[::-1], OPTIONS[:2]]
    together = model.choose_all(questions, choices)
    for question, options, shares in zip(questions, choices, together, strict=True):
        expected = torch.tensor([likelihood(model, question, option) for option in options]).softmax(dim=0)
        assert shares == pytest.approx(expected.tolist(), abs=1e-4)
        assert shares == pytest.approx(model.choose(question[0], question[1], options, regions=question[2]), abs=1e-5)
    assert together[0][2] < 0.01, "the sum favors short answers"
    assert model.choose(IMAGES[0], "Is there a red disc?", OPTIONS, per_token=True)[2] > 0.1


def test_a_model_answers_and_chooses_as_suites_ask_it() -> None:
    model: AskableModel = Mllm(loaded())
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(buffer, "png")
    request = ([buffer.getvalue()], "Is <region> red?", [PixelBox(3, 4, 40, 44)])
    (answer,) = model.ask_all([request], max_tokens=2)
    assert answer.text == Mllm(loaded()).ask(IMAGES[0], request[1], regions=request[2], max_tokens=2).text
    assert sum(model.choose_all([request], [OPTIONS])[0]) == pytest.approx(1)


def test_a_letter_is_chosen_where_the_model_answers_by_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Mllm(loaded(language={**settings().language, "max_position_embeddings": 400}))
    question, region = "Is <1> red?", PixelBox(3, 4, 40, 44)
    options = ["yes", "it is", "no"]
    lettered = (
        "Is <region> red?\nA. yes\nB. it is\nC. no\nAnswer with the option's letter from the given choices directly."
    )
    shares_K = torch.tensor(
        [likelihood(model, Question(IMAGES[0], lettered, [region]), letter) for letter in "ABC"]
    ).exp()
    monkeypatch.setattr("foveate.multimodal.choose.MIN_LETTER_MASS", float(shares_K.sum()) * 0.9)
    letters = model.decide(IMAGES[0], question, options, regions=[region])
    assert (letters.mass, letters.scored_by) == (pytest.approx(float(shares_K.sum()), rel=1e-3), "letters")
    assert letters.probabilities == pytest.approx((shares_K / shares_K.sum()).tolist(), abs=1e-4)
    monkeypatch.setattr("foveate.multimodal.choose.MIN_LETTER_MASS", float(shares_K.sum()) * 1.1)
    texts = model.decide(IMAGES[0], question, options, regions=[region])
    assert (texts.mass, texts.scored_by) == (letters.mass, "texts")
    assert texts.probabilities == pytest.approx(model.choose(IMAGES[0], question, options, regions=[region]), abs=1e-5)
    # The name of a region in an option is text: no second region is meant.
    assert len(model.decide(IMAGES[0], question, ["<1>", "<2>"], regions=[region]).probabilities) == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "none"),
        (["yes"], "'yes'"),
        (["yes", "yes "], "'yes'"),
        (["yes", " "], "option 2"),
        (["<region>"], "option 1"),
    ],
)
def test_options_that_cannot_be_compared_are_refused(options: list[str], named: str) -> None:
    with raises_naming(UserError, "option", named):
        Mllm(loaded()).choose(IMAGES[0], "Is it red?", options)


def test_an_option_that_does_not_fit_is_refused_with_its_length() -> None:
    with raises_naming(UserError, "question", 96):
        Mllm(loaded()).choose(IMAGES[0], "Is it red?", ["yes", "no " * 100])


def test_names_of_an_answer_are_located_and_paired_with_their_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that the decoder points at keeps its box; another one gets the head's; a box without a name is told."""
    one = loaded()
    model = Mllm(one)
    encode, region = one.tokenizer.encode, one.prompts.region_id
    visual, (pending,) = prepare_questions(model.loaded, [Question(IMAGES[0], "What is there?")])
    (disc,), (square,) = encode(" red disc"), encode(" blue square")
    assert one.name_ids == {disc, square}
    pending.answer = [region, *encode(". There is a"), disc, *encode(" at"), region, *encode(" and a"), square]
    pending.boxes = [PointedBox(0, [0.0, 0.0, 0.5, 0.5], 1.0), PointedBox(0, [0.5, 0.5, 1.0, 1.0], 2.0)]
    located: list[torch.Tensor] = []

    def locate_among(_: object, views_K: torch.Tensor, phrase_E: torch.Tensor) -> PhraseMatch:
        located.append(phrase_E)
        return PhraseMatch(0, torch.tensor([0.25, 0.25, 0.75, 0.75]), 3.0)

    monkeypatch.setattr(one.model, "locate_among", locate_among)
    writer = AnswerWriter(one, visual, [pending])
    answer = writer.answer(0, ground=True)
    assert len(answer.boxes) == 3
    assert answer.phrases == ("", "There is a red disc at", "a blue square")
    assert answer.text.count("[") == 3
    assert answer.text.startswith("[0, 0, 32, 25]. There is a red disc at [32, 25, 64, 50] and a blue square [")
    (phrase_E,) = located
    torch.testing.assert_close(phrase_E, one.model.embeddings_VE[square] - one.model.center_E)
    assert len(writer.answer(0).boxes) == 2, "without grounding only what the decoder points at"


def test_grounding_by_the_head_costs_no_pass_of_the_language_model() -> None:
    model = Mllm(loaded())
    plain, grounded = (
        model.ask_all([(image, "Where is the red disc?") for image in IMAGES], ground=ground, max_tokens=9)
        for ground in (False, True)
    )
    assert [answer.tokens for answer in plain] == [answer.tokens for answer in grounded]
    assert model.ask(IMAGES[1], "Where is the red disc?", ground=True, max_tokens=9) == grounded[1]
    chat = model.chat(IMAGES[1])
    assert chat.ask("Where is the red disc?", ground=True, max_tokens=9) == grounded[1]


def test_a_model_without_names_is_asked_for_boxes_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Mllm(load_tiled())
    monkeypatch.setattr(type(model.loaded), "name_ids", frozenset())
    assert request_boxes(model.loaded, "What is there?", ground=True) == f"What is there? {GROUNDING_REQUEST}"
    assert request_boxes(model.loaded, "What is there?", ground=False) == "What is there?"


def test_phrases_and_boxes_of_a_text_are_paired_and_the_rest_is_told() -> None:
    phrases, unboxed = pair_phrases("Yes. A man [1, 2, 30, 40] and his dog [5, 6, 70, 80]. [1, 1, 2, 2] A cat.")
    assert phrases[:2] == ("A man", "his dog")
    assert phrases[2] == ""
    assert unboxed == ("A cat",)


def test_runs_of_names_are_phrases() -> None:
    assert find_runs([1, 7, 8, 2, 8, 7], {7, 8}) == [(1, 3), (4, 6)]
    assert find_runs([], {7}) == []


def test_a_phrase_is_asked_for_in_the_words_of_training() -> None:
    assert ask_where("a red boat.") == ask_where("The red boat") == "Where is the red boat?"
    with raises_naming(UserError, "phrase"):
        ask_where("  ")
