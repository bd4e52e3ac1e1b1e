"""Options of models of transformers: their letters with the end behind, and their texts where letters say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_foreign import QUESTION, draw, open_varied

from foveate.core.errors import UserError
from foveate.multimodal.foreign import open_foreign
from foveate.multimodal.foreign_turns import score_letters, score_texts
from multimodal.foreign_models import BUILDERS, save
from naming import raises_naming


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llava", tmp_path_factory.mktemp("llava"))


@pytest.mark.parametrize("family", BUILDERS)
def test_texts_have_the_likelihood_with_which_generate_writes_them(family: str, tmp_path: Path) -> None:
    model, image = open_foreign(str(save(family, tmp_path / family))), draw(50, 40)
    inputs = model._inputs([image], [("user", QUESTION)])
    start, options = inputs["input_ids"].shape[1], ["red disc", "blue", "no big disc"]
    scores = score_texts(model, [image], QUESTION, options)
    for (_, ids_T), logs_T in zip(model.encode_answers([image], QUESTION, options), scores, strict=True):

        def force(ids_BT: torch.Tensor, logits_BV: torch.Tensor, forced_T: torch.Tensor = ids_T) -> torch.Tensor:
            only_BV = torch.full_like(logits_BV, -torch.inf)
            only_BV[:, forced_T[ids_BT.shape[1] - start]] = 0
            return only_BV

        output: Any = model.model.generate(
            **inputs, max_new_tokens=len(ids_T), do_sample=False, logits_processor=[force], output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        assert output.sequences[0, start:].tolist() == ids_T.tolist()
        theirs_TV = torch.cat(output.logits).log_softmax(dim=-1)
        theirs_T = theirs_TV.gather(1, ids_T[:, None])[:, 0]
        torch.testing.assert_close(logs_T, theirs_T, rtol=1e-3, atol=1e-3)
    assert sum(model.decide(image, QUESTION, options).probabilities) == pytest.approx(1)


@pytest.mark.parametrize("family", ["kosmos-2", "paligemma"])
def test_answers_of_families_without_turns_end(family: str, tmp_path: Path) -> None:
    model, image = open_foreign(str(save(family, tmp_path / family))), draw(50, 40)
    ids = model.processor.tokenizer.convert_tokens_to_ids
    encoded = [ids_T.tolist() for _, ids_T in model.encode_answers([image], QUESTION, ["red disc", "A"])]
    assert encoded == [[ids("red"), ids("disc"), ids("</s>")], [ids("A"), ids("</s>")]]
    # One token of the letter, and the end behind it.
    assert [len(logs_T) for logs_T in score_letters(model, [image], QUESTION, ["red", "blue"])] == [2, 2]
    for turns in (["user", "assistant", "user"], ["system", "user"], ["user", "user"]):
        with raises_naming(UserError, "single questions"):
            model.write_prompt([(role, "red") for role in turns], 1)


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
