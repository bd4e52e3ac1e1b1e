"""When nothing is found: the floor of an index and of an image, and words that a text tower does not know."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import foveate
import tiny
from foveate.pretrain.train import build_model
from foveate.records.builtin.families import load_concepts
from foveate.search import calibration as module
from foveate.search import locate as locate_module
from foveate.search.calibration import (
    combine_spreads,
    draw_letters,
    find_unknown_words,
    mean_direction,
    score_texts,
    split_query,
)
from foveate.search.index import build_index
from foveate.search.index_folder import RANDOM_LETTERS, Description, read_vectors
from foveate.search.query import Query
from foveate.search.search import UNKNOWN
from foveate.vision.localizer.folder import save_model
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.minilm import MiniLMEncoder


@pytest.fixture(scope="module")
def index(tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("floor")
    model = save_model(build_model(tiny.recipe()).eval(), root / "model")
    build_index(model, tiny_collection, root / "index")
    return root / "index"


def test_a_share_of_random_letters_scores_above_the_floor(index: Path) -> None:
    description = Description.read(index)
    floor = description.floor
    assert floor is not None
    assert set(floor.z) == {"images", "regions", "both"}
    assert floor.z["both"] >= max(floor.z["images"], floor.z["regions"])
    assert floor.letters_above == pytest.approx(module.FALSE_ALARMS, abs=2 / len(draw_letters()))
    # The same numbers as those of a search.
    opened = foveate.open_index(index)
    z_Q = score_texts(index, description, read_vectors(index / RANDOM_LETTERS))["both"]
    for text, z in list(zip(draw_letters(), z_Q, strict=True))[:5]:
        best = max(hit.z or 0 for hit in opened.search(text, text_weight=0))
        assert best == pytest.approx(z, abs=1e-4)


def test_a_verdict_is_of_texts_alone_and_words_of_captions_count(index: Path) -> None:
    opened = foveate.open_index(index)
    text = "a red disc"
    hits = opened.search(text)
    inner = opened.index
    assert inner.description.floor is not None
    # A tower that knows nothing, and a floor that nothing reaches.
    inner.description = replace(
        inner.description, floor=replace(inner.description.floor, z={"both": 1e9}, letters_cosine=-2.0)
    )
    verdict = opened.judge(text, hits)
    assert (verdict.has_match, verdict.floor) == (False, 1e9)
    # Every word is in a caption.
    assert verdict.unknown_words == ()
    assert opened.judge(text, []) == replace(verdict, reason="there are no hits")
    nonsense = opened.judge("zzkq лодка", opened.search("zzkq лодка"))
    assert (nonsense.reason, nonsense.unknown_words) == (UNKNOWN, ("zzkq", "лодка"))
    image = inner.image_bytes(hits[0])
    assert isinstance(image, bytes)
    assert inner.judge(Query(text=text, image=image), hits, opened.model.network).has_match
    inner.description = replace(inner.description, floor=None)
    assert opened.judge("zzkq", hits).has_match


def test_an_index_without_a_floor_is_completed_without_embedding_images(index: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(index, tmp_path / "old"))
    content = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps({name: value for name, value in content.items() if name != "floor"}))
    (copy / RANDOM_LETTERS).unlink()
    assert Description.read(copy).floor is None
    _, plan = build_index(content["model"]["path"], Path(content["collection"]["path"]), copy)
    assert len(plan.todo) == 0
    assert Description.read(copy).floor == Description.read(index).floor


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the 3 Asdfgh of a boat", ["asdfgh", "boat"]),
        ("a", []),
        ("IMG_0231", ["img"]),
        ("犬", ["犬"]),
        ("красная лодка, лодка", ["красная", "лодка"]),
    ],
)
def test_words_of_a_query(text: str, words: list[str]) -> None:
    assert split_query(text) == words


@pytest.mark.parametrize("knows_russian", [True, False])
def test_a_word_is_compared_with_random_letters_of_its_script(
    knows_russian: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"boat", "dog"} | ({"лодка"} if knows_russian else set())

    def embed(_: object, texts: Sequence[str]) -> torch.Tensor:
        """Known words are unlike one another; all else is alike within its script."""
        rows = [hash(text) % 7 if text in known else 7 + text.isascii() for text in texts]
        return F.one_hot(torch.tensor(rows), 9).float()

    monkeypatch.setattr(module, "embed_phrases", embed)
    letters_E = mean_direction(embed(None, draw_letters()).numpy())
    unknown = find_unknown_words(["boat", "qwrt", "лодка", "dog"], None, letters_E, 0.5)  # type: ignore[arg-type]
    assert unknown == (["qwrt"] if knows_russian else ["qwrt", "лодка"])


def test_minilm_knows_words_and_no_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the cosine that 2 % of names exceed, most keyboard rows and no everyday word are unknown."""
    encoder = MiniLMEncoder()
    monkeypatch.setattr(module, "embed_phrases", lambda _, texts: encoder.frozen_features(list(texts)))
    letters_E = mean_direction(encoder.frozen_features(draw_letters()).numpy())
    names = [name for name in load_concepts() if name.isalpha()][::4]
    max_cosine = float(np.quantile(encoder.frozen_features(names).numpy() @ letters_E, 0.98))
    everyday = "boat dog house flower guitar bicycle mountain breakfast doctor umbrella".split()
    letters = "asdfgh qwerty zxcvbnm hgfdsa poiuyt mnbvcx kjsdhf wrtpsd xzqvk bnmjhg".split()
    foreign = "лодка собака σκύλος βάρκα कुत्ता قارب".split()
    unknown = find_unknown_words([*everyday, *letters, *foreign], None, letters_E, max_cosine)  # type: ignore[arg-type]
    assert not set(unknown) & set(everyday)
    assert len(set(unknown) & set(letters)) >= 6
    assert set(foreign) <= set(unknown)


def test_a_verdict_embeds_nothing_after_its_search(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[str]] = []

    def embed(model: LocalizingModel, texts: Sequence[str]) -> torch.Tensor:
        batches.append(list(texts))
        return embed_phrases(model, texts)

    opened = foveate.open_index(index)
    monkeypatch.setattr(module, "embed_phrases", embed)
    opened.judge("a wug blicket", opened.search("a wug blicket"))
    assert batches == [["a wug blicket", "wug", "blicket"]]
    opened.judge("the blicket", opened.search("the blicket"))
    assert batches[1:] == [["the blicket"]]


def test_locate_finds_nothing_below_the_floor_of_the_image(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = foveate.open_index(index)
    data = opened.index.image_bytes(opened.search("a red disc", count=1)[0])
    assert isinstance(data, bytes)
    located = opened.model.locate(data, "a red disc")
    assert located.floor is not None
    assert -1 <= located.floor <= 1
    monkeypatch.setattr(locate_module, "_measure_floor", lambda *_: (2.0, [(False, ())]))
    assert not opened.model.locate(data, "a red disc").has_match
    monkeypatch.setattr(locate_module, "_measure_floor", lambda *_: (-2.0, [(True, ())]))
    assert not opened.model.locate(data, "a red disc").has_match
    monkeypatch.setattr(locate_module, "_measure_floor", lambda *_: (-2.0, [(False, ("disc",))]))
    assert opened.model.locate(data, "a red disc").has_match


def test_the_spread_of_a_sum_has_the_squares_of_its_factors() -> None:
    spreads = {"text": {"image": (0.1, 0.03)}, "image": {"image": (0.2, 0.04)}}
    spread = combine_spreads(spreads, {"text": 2.0, "image": -0.5})["image"]
    assert spread.mean == pytest.approx(2 * 0.1 - 0.5 * 0.2)
    assert spread.std == pytest.approx(np.hypot(2 * 0.03, 0.5 * 0.04))
