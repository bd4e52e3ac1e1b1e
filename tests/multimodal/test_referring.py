"""Regions as vectors in a multimodal model: what enters where, at any resolution, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.language.chat import Chat
from foveate.language.packing import pack_texts
from foveate.language.vocabulary import train_tokenizer, wrap_tokenizer
from foveate.multimodal.answer_writer import AnswerWriter, PointedBox
from foveate.multimodal.ask import Mllm
from foveate.multimodal.build import build_model
from foveate.multimodal.folder import LoadedModel, load_model, save_model
from foveate.multimodal.prepare import Question, prepare_questions
from foveate.multimodal.prompts import create_prompts
from foveate.multimodal.referring import RegionPrompts, place_points
from foveate.multimodal.settings import MultimodalSettings
from foveate.multimodal.views import ViewLayout
from foveate.records.boxes import PixelBox
from foveate.records.conversations import Conversation, Turn
from foveate.records.geometry import Placement, View
from foveate.records.shapes import Mask, Point, Shape, Stroke, encode_mask
from naming import raises_naming

TEXTS = ["What is this in the image?", "What is it beside?", "a red disc at [10, 20, 300, 400]", "(0,1,2):,<n>"]
SIZE = (100, 150)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
SAMPLER = {"kind": "sampler", "anchors": [8, 4], "neighbors": [4, 4]}
TILES = {
    "connector": {"kind": "cabstractor", "num_tokens": 4, "depth": 1, "hidden_width": 16},
    "assembly": {
        "tiling": {"rule": "llava", "tile": 64, "grids": ["1x1", "2x1", "1x2", "2x2"], "overview": "before"},
        "tokens_per_view": 4,
    },
}
WHOLE_MASK = np.zeros(SIZE, dtype=bool)
WHOLE_MASK[20:60, 30:90] = True
SHAPES: tuple[Shape, ...] = (
    PixelBox(30, 20, 90, 60),
    Point(60, 40),
    Stroke((Point(35, 25), Point(85, 55))),
    Mask(SIZE, tuple(encode_mask(WHOLE_MASK)["counts"])),
)


def load(**changes: Any) -> tuple[LoadedModel, str]:
    trained = train_tokenizer([f" {text}" for text in TEXTS], size=300)
    tokenizer = wrap_tokenizer(trained, source="test")
    content = {
        "tower": {"kind": "lite0", "width": 32, "embed_dim": 8, "image_size": 64, "position": "none"},
        "connector": {"kind": "pooled", "side": 2},
        "language": {
            "model_type": "llama",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 256,
        },
        "regions": "hybrid",
        "region_encoder": SAMPLER,
        "region_points": 32,
        "max_images": 2,
        **changes,
    }
    settings = validate(MultimodalSettings, content, where="test")
    model = build_model(settings, vocabulary=tokenizer.size, region_id=tokenizer.special["<region>"])
    prompts = create_prompts(Chat(tokenizer, "words"), settings)
    return LoadedModel(model.eval().requires_grad_(False), prompts, tokenizer, {}), trained.to_str()


def embed_question(model: Mllm, text: str, regions: tuple[Shape, ...]) -> tuple[torch.Tensor, list[int]]:
    """The embeddings of a question's text, and its ids."""
    visual, (pending,) = prepare_questions(model.loaded, [Question(IMAGE, text, regions)])
    prompts = RegionPrompts.create(pending.written.regions, pending.written.points)
    ids = pending.written.tokens.ids
    layout = ViewLayout.create([pending.layout])
    views = torch.tensor([pending.views])
    return model.loaded.model.embed(torch.tensor([ids]), visual, views, prompts, layout)[0], ids


@pytest.mark.parametrize("changes", [{}, TILES], ids=["one view", "tiles"])
def test_each_region_overwrites_its_token_and_nothing_else(changes: dict[str, Any]) -> None:
    loaded, _ = load(**changes)
    model, region = Mllm(loaded), loaded.prompts.region_id
    text = "What is <region> beside <region>?"
    first, ids = embed_question(model, text, SHAPES[:2])
    turned, other_ids = embed_question(model, text, SHAPES[1::-1])
    tokens = [number for number, id in enumerate(ids) if id == region]
    turned_tokens = [number for number, id in enumerate(other_ids) if id == region]
    assert len(tokens) == 2
    # Coordinates stand in front of each token as text.
    assert "[200, 200, 600, 600]" in loaded.tokenizer.decode(ids)
    torch.testing.assert_close(first[tokens], turned[turned_tokens[::-1]])
    assert not torch.allclose(first[tokens[0]], first[tokens[1]], atol=1e-4)
    table = loaded.model.embeddings_VE
    others = [number for number in range(len(ids)) if number not in tokens]
    assert torch.equal(first[others], table[torch.tensor(ids)[others]])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"regions": "tokens"},
        {"region_encoder": {"kind": "mean"}},
        {"region_encoder": {"kind": "roi"}, "region_norm": False},
        {"region_encoder": None},
        TILES,
        {**TILES, "regions": "tokens"},
    ],
    ids=["sampler", "tokens", "mean", "roi", "patches", "tiles", "tiles, tokens"],
)
def test_one_step_of_training_saved_loaded_and_asked(changes: dict[str, Any], tmp_path: Path) -> None:
    loaded, tokenizer_json = load(**changes)
    model = loaded.model.train()
    model.requires_grad_(True)
    asked = Mllm(loaded)
    visual, pending = prepare_questions(
        asked.loaded, [Question(IMAGE, "What is <region>?", [shape]) for shape in SHAPES]
    )
    views = torch.tensor([question.views for question in pending])
    texts = pack_texts([[question.written.tokens] for question in pending], pad=loaded.tokenizer.pad)
    regions = RegionPrompts.create(
        [region for question in pending for region in question.written.regions],
        [points for question in pending for points in question.written.points],
    )
    layout = ViewLayout.create([question.layout for question in pending])
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.is_leaf], lr=0.1)
    states = model.hidden_states(visual, views, texts, regions, layout)
    F.cross_entropy(model.logits(states[:, -1]), torch.arange(len(pending)) + 20).backward()
    if model.region_reader is not None:
        gradients = [value.grad for value in model.region_reader.parameters()]
        assert all(gradient is not None and gradient.any() for gradient in gradients)
    optimizer.step()
    model.eval().requires_grad_(False)
    save_model(
        tmp_path / "model",
        settings=model.settings,
        weights=model.state_dict(),
        tokenizer_json=tokenizer_json,
        preprocess=model.tower.preprocess.to_dict(),
        card="test",
    )
    again = Mllm(load_model(tmp_path / "model"))
    for shape in SHAPES:
        first, second = (each.ask(IMAGE, "What is <region>?", regions=[shape], max_tokens=4) for each in (asked, again))
        assert first == second
        ours, _ = embed_question(again, "What is <region>?", (shape,))
        assert torch.isfinite(ours).all()


def test_a_batch_without_regions_gives_the_encoder_a_zero_gradient() -> None:
    loaded, _ = load()
    model = loaded.model.train()
    model.requires_grad_(True)
    visual, (pending,) = prepare_questions(loaded, [Question(IMAGE, "What is it?")])
    texts = pack_texts([[pending.written.tokens]], pad=loaded.tokenizer.pad)
    model.hidden_states(visual, torch.tensor([pending.views]), texts).sum().backward()
    assert model.region_reader is not None
    gradients = [value.grad for value in model.region_reader.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_regions_are_read_where_they_lie_at_any_resolution() -> None:
    """Only the tiles and the overview under a region move its vector."""
    loaded, _ = load(**TILES)
    model = Mllm(loaded)
    reader = loaded.model.region_reader
    assert reader is not None
    visual, (pending,) = prepare_questions(
        model.loaded, [Question(IMAGE, "What is <region>?", [PixelBox(2, 2, 30, 20)])]
    )
    assert len(pending.views) == 5
    prompts = RegionPrompts.create(pending.written.regions, pending.written.points)
    arguments = (torch.tensor([pending.views]), torch.zeros(1, 5, dtype=torch.long), torch.tensor([0]), prompts)
    before = reader.read_prompts(visual.tower_VLD, *arguments)
    for view, changes in ((0, True), (1, True), (2, False), (3, False), (4, False)):
        tokens = visual.tower_VLD.clone()
        tokens[view] += torch.randn(tokens.shape[1:], generator=torch.Generator().manual_seed(view))
        assert torch.allclose(reader.read_prompts(tokens, *arguments), before) != changes


@pytest.mark.parametrize("changes", [{}, {"region_map": "connector"}], ids=["tower", "connector"])
def test_a_mean_region_starts_where_a_model_without_encoder_reads_it(changes: dict[str, Any]) -> None:
    loaded, _ = load(region_mean=True, region_norm=False, region_points=512, **changes)
    model, reader = loaded.model, loaded.model.region_reader
    assert reader is not None
    visual, pending = prepare_questions(loaded, [Question(IMAGE, "What is <region>?", [shape]) for shape in SHAPES])
    views = torch.tensor([question.views for question in pending])
    boxes = torch.tensor(np.array([question.written.regions[0][1] for question in pending]), dtype=torch.float32)
    prompts = RegionPrompts.create(
        [region for question in pending for region in question.written.regions],
        [points for question in pending for points in question.written.points],
    )
    rows = torch.arange(len(SHAPES))
    starts = reader.read_prompts(visual.tower_VLD, views, torch.zeros_like(views), rows, prompts)
    expected = model.region_means(visual, boxes, views[:, 0])
    # The box, and the mask that is the same box, from 512 of its points, which lie on the upper left corners of pixels:
    # half a pixel of this image moves the mean by up to 0.03, whatever the number of points.
    torch.testing.assert_close(starts[[0, 3]], expected[[0, 3]], atol=0.04, rtol=0)
    torch.testing.assert_close(reader.read_views(visual.tower_VLD, boxes, views[:, 0]), expected, atol=0.1, rtol=0)
    torch.nn.init.normal_(reader.encoder.last_layer.weight)
    moved = reader.read_prompts(visual.tower_VLD, views, torch.zeros_like(views), rows, prompts)
    assert not torch.allclose(moved, starts, atol=0.1)


def test_a_mean_region_of_tiles_is_as_long_as_tokens() -> None:
    assembly = TILES["assembly"] | {"tokens_per_view": 16}
    loaded, _ = load(region_mean=True, region_norm=False, connector={"kind": "mlp"}, assembly=assembly)
    reader = loaded.model.region_reader
    assert reader is not None
    visual, (pending,) = prepare_questions(loaded, [Question(IMAGE, "What is <region>?", SHAPES[:1])])
    assert len(pending.views) > 1
    tokens = torch.ones_like(visual.tower_VLD)
    prompts = RegionPrompts.create(pending.written.regions, pending.written.points)
    zeros = torch.zeros(1, len(pending.views), dtype=torch.long)
    start = reader.read_prompts(tokens, torch.tensor([pending.views]), zeros, torch.tensor([0]), prompts)
    torch.testing.assert_close(start, torch.ones_like(start))


def test_points_follow_the_placement() -> None:
    for flip in (False, True):
        placement = View(flip=flip).fit(150, 100, 64)
        drawn = place_points(PixelBox(0, 0, 15, 10), placement, 200)
        (box,), _ = placement.to_input(np.array([[0, 0, 0.1, 0.1]]))
        assert (drawn.points_N2 >= box[:2] - 1e-6).all()
        assert (drawn.points_N2 <= box[2:] + 1e-6).all()
        assert drawn.size == (100, 150)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"regions": "text"}, "region_encoder"),
        ({"region_encoder": {**SAMPLER, "num_points": 9}}, "region_points"),
        ({**TILES, "box_head": True}, "box_head"),
        ({**TILES, "frame": "canvas"}, "frame"),
        ({**TILES, "region_encoder": None}, "regions"),
        ({"region_encoder": {"kind": "samplr"}}, "sampler"),
        ({"region_encoder": {"kind": "roi", "side": 2}}, "region_encoder"),
        ({"region_mean": True}, "region_norm"),
        ({"region_mean": True, "region_norm": False, "region_encoder": None}, "region_mean"),
        ({**TILES, "region_mean": True, "region_norm": False}, "region_mean"),
        ({"region_fusion": "bilinear"}, "region_fusion"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], named: str) -> None:
    with raises_naming(UserError, named):
        load(**changes)


def test_with_hybrid_regions_and_a_head_a_box_stands_in_front_of_its_digits() -> None:
    loaded, _ = load(box_head=True, phrase_maps=True)
    tokenizer, region = loaded.tokenizer, loaded.prompts.region_id
    box = PixelBox(15, 10, 60, 50)
    turns = Turn("user", "What is this?"), Turn("assistant", "a red disc at <region>.", (box,))
    placement = View().fit(150, 100, (64, 64))
    written = loaded.prompts.write_conversation(Conversation("1", ("a",), turns), [placement])
    ids = written.tokens.ids
    at = ids.index(region)
    assert written.tokens.learned[at]
    assert len(written.regions) == 1
    assert tokenizer.decode(ids[at + 1 :]).startswith("[100, 100, 400, 500].")
    answers = []
    for text in ("[100, 100, 400, 500].", " and it."):
        visual, (pending,) = prepare_questions(loaded, [Question(IMAGE, "What is it?")])
        pending.answer = [*tokenizer.encode(" a red disc at"), region, *tokenizer.encode(text)]
        pending.boxes = [PointedBox(0, [0.2, 0.2, 0.5, 0.5], 1.0)]
        answers.append(AnswerWriter(loaded, visual, [pending]).answer(0))
    (located, said), (alone, missing) = ((answer.boxes, answer.digits) for answer in answers)
    assert located == alone
    assert missing == (None,)
    corners = [(said[0].x1, said[0].y1, said[0].x2, said[0].y2)] if said[0] else []
    np.testing.assert_allclose(corners, [(15, 10, 60, 50)], atol=0.2)
    assert answers[0].text.startswith("a red disc at [")
    assert answers[0].text.endswith("].")
    assert answers[0].phrases[0].endswith("a red disc at")


def test_points_follow_a_crop_that_begins_at_neither_edge() -> None:
    # Columns 60 to 160 and rows 10 to 60 fill an input of 100 x 50 pixels without a change of scale.
    placement = Placement(200, 100, (60, 10, 160, 60), False, (50, 100))
    drawn = place_points(PixelBox(80, 20, 90, 40), placement, 200)
    np.testing.assert_allclose(drawn.points_N2.min(axis=0), (0.2, 0.2), atol=0.03)
    np.testing.assert_allclose(drawn.points_N2.max(axis=0), (0.3, 0.6), atol=0.03)
