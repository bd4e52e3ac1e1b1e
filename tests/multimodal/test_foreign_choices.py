"""Options of models of transformers: their letters with the end behind, and their texts where letters say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_foreign import QUESTION, draw, open_varied

from foveate.multimodal.foreign import open_foreign
from multimodal.foreign_models import save


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llava", tmp_path_factory.mktemp("llava"))


@pytest.mark.parametrize("ends_turns", [False, True])
def test_letters_are_scored_with_their_end(ends_turns: bool, llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_varied(llava)
    image, options = draw(40, 40), ["a red disc", "blue", "three"]
    if ends_turns:
        # As most templates do; no model writes what stands behind the end mark.
        ending = "{% if message['role'] == 'assistant' %}</s> : {% endif %}{% endfor %}{% if add_generation"
        head, tail = model.processor.chat_template.split("{% endfor %}{% if add_generation")
        model.processor.chat_template = f"{head}{ending}{tail}"
    # The same question as a user would write it.
    lettered = (
        f"{QUESTION} A. a red disc B. blue C. three Answer with the option's letter from the given choices directly."
    )
    ids = model.processor.tokenizer.convert_tokens_to_ids
    expected = []
    for letter in "ABC":
        inputs = model._inputs([image], [("user", lettered)])
        for name, value in (("input_ids", ids(letter)), ("attention_mask", 1)):
            inputs[name] = torch.cat([inputs[name], torch.tensor([[value]])], dim=1)
        with torch.no_grad():
            logs_TV = model.model(**inputs).logits[0, -2:].double().log_softmax(dim=-1)
        expected.append(float(logs_TV[0, ids(letter)] + logs_TV[1, ids("</s>")]))
    shares_K = torch.tensor(expected, dtype=torch.float64).exp()
    monkeypatch.setattr("foveate.multimodal.choose.MIN_LETTER_MASS", float(shares_K.sum()) * 0.99)
    letters = model.decide(image, QUESTION, options)
    assert (letters.mass, letters.scored_by) == (pytest.approx(float(shares_K.sum()), rel=1e-3), "letters")
    assert letters.probabilities == pytest.approx((shares_K / shares_K.sum()).tolist(), abs=1e-4)
    assert letters.letter == "ABC"[int(shares_K.argmax())]
    # Below the floor, texts decide; the mass stays what it is.
    monkeypatch.setattr("foveate.multimodal.choose.MIN_LETTER_MASS", float(shares_K.sum()) * 1.01)
    texts = model.decide(image, QUESTION, options)
    assert (texts.mass, texts.scored_by) == (letters.mass, "texts")
    assert texts.probabilities == pytest.approx(model.choose(image, QUESTION, options), abs=1e-6)
    assert texts.probabilities != letters.probabilities


def test_texts_are_scored_where_letters_cannot_be(llava: Path) -> None:
    model, image = open_foreign(str(llava)), draw(40, 40)
    # The tokenizer has the letters A to C; all others are one unknown token.
    for count in (5, 27):
        options = [" ".join(["red"] * number) for number in range(1, count + 1)]
        choice = model.decide(image, QUESTION, options)
        assert (choice.mass, choice.scored_by, len(choice.probabilities)) == (None, "texts", count)
