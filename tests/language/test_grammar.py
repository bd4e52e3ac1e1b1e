"""Schemas of answers: which would take too long, and masks over the logits of a batch. Answers: tests/serve."""

from __future__ import annotations

import json
import time
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch

from foveate.core.errors import UserError
from foveate.language.decoding import score_token
from foveate.language.grammar import ANY_OBJECT, GrammarCompiler, find_costly, hold_to_grammars
from foveate.language.tokenizer import write_token
from naming import raises_naming

PATTERNS = [{"type": "string", "pattern": f".*{letter}.*"} for letter in "abcdefghi"]


@pytest.fixture(scope="module")
def backend() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(files("foveate") / "data" / "mini" / "tokenizer.json"))


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "object"}, ""),
        ({"enum": ["x" * 65_536]}, "65,5"),
        ({"items": [{"multipleOf": 0.01}, {"multipleOf": 5}]}, ""),
        ({"items": [{"multipleOf": 999_983}]}, "999983"),
        ({"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "991, 997"),
        ({"multipleOf": 1e-9}, "1e-09"),
        ({"multipleOf": 0}, ""),
        ({"allOf": PATTERNS[:8]}, ""),
        ({"allOf": PATTERNS}, "9 patterns"),
        ({"$ref": "#/a", "pattern": "a", "items": PATTERNS}, "10 patterns"),
        ({"anyOf": PATTERNS}, ""),
    ],
)
def test_costly_schemas_are_named(schema: Any, text: str) -> None:
    problem = find_costly(json.dumps(schema))
    assert bool(problem) == bool(text)
    assert text in problem


def test_what_is_not_costly_is_compiled_at_once(backend: tokenizers.Tokenizer) -> None:
    pytest.importorskip("llguidance")
    compiler = GrammarCompiler(backend, size=3072, end=[1], name="mini")
    wide = {"type": "object", "properties": {f"k{number}": {"type": "string"} for number in range(1500)}}
    for schema in (wide, {"type": "integer", "multipleOf": 997}, {"enum": [f"v{number}" for number in range(7000)]}):
        begin = time.monotonic()
        compiler.check(json.dumps(schema))
        assert time.monotonic() - begin < 5


def test_a_token_that_the_grammar_does_not_allow_is_no_answer(backend: tokenizers.Tokenizer) -> None:
    pytest.importorskip("llguidance")
    compiler = GrammarCompiler(backend, size=3072, end=[1], name="mini")
    grammar = compiler.start(ANY_OBJECT)
    allowed = grammar.mask(torch.zeros(3072)).isfinite().nonzero()[:, 0].tolist()
    assert backend.token_to_id("{") in allowed
    assert all(write_token(backend, id).startswith("{") for id in allowed)
    with raises_naming(UserError, "response_format", "schema"):
        grammar.accept(backend.token_to_id("he"))


class Only:
    """Lets one token come."""

    def __init__(self, token: int) -> None:
        self.token = token

    def mask(self, logits_V: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(len(logits_V)) == self.token, logits_V, -torch.inf)


def test_a_grammar_goes_before_forbidden_words() -> None:
    logits_BV = torch.tensor([[1.0, 2.0, 3.0]] * 3)
    without_BV = logits_BV.clone()
    without_BV[:, 1] = -torch.inf
    grammars: Any = [None, Only(1), Only(2)]
    held_BV = hold_to_grammars(grammars, logits_BV, without_BV)
    assert torch.equal(held_BV[0], without_BV[0])
    assert held_BV.argmax(dim=1).tolist() == [2, 1, 2]
    assert held_BV[1:].isfinite().sum() == 2
    assert hold_to_grammars([None] * 3, logits_BV, without_BV) is without_BV


def test_scores_of_a_token_leave_out_what_cannot_be_written() -> None:
    logs_V = np.log(np.array([0.1, 0.6, 0.3, 1e-300], dtype=np.float64)).astype(np.float32)
    logs_V[3] = -np.inf
    score = score_token(logs_V, 2, 4)
    assert [id for id, _ in score.likeliest] == [1, 2, 0]
    assert score.logprob == dict(score.likeliest)[2]
    assert score_token(logs_V, 2, 0).likeliest == ()


def test_tokens_are_written_with_their_blank(backend: tokenizers.Tokenizer) -> None:
    texts = [write_token(backend, backend.token_to_id(token)) for token in ("he", "Ġthe", "<end>", "{")]
    assert texts == ["he", " the", "<end>", "{"]
