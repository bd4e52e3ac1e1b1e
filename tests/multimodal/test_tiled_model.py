"""Images as tiles: order and causality, tokens as planned, packed equals separate, coordinates in their frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.language.chat import Chat
from foveate.language.packing import Tokens, pack_texts
from foveate.language.vocabulary import train_tokenizer, wrap_tokenizer
from foveate.multimodal.answer_writer import AnswerWriter
from foveate.multimodal.ask import Mllm
from foveate.multimodal.build import build_model
from foveate.multimodal.folder import LoadedModel
from foveate.multimodal.frames import CoordinateFrame, move_regions
from foveate.multimodal.prepare import Question, encode_sample, prepare_questions
from foveate.multimodal.prompts import PromptWriter
from foveate.multimodal.settings import MultimodalSettings
from foveate.multimodal.views import ViewLayout, list_views
from foveate.records.boxes import PixelBox
from foveate.records.conversations import Conversation, Turn
from foveate.records.shapes import Point
from foveate.vision.canvas import boxes_in_view, render_input
from foveate.vision.tiling import ImageSize, plan_tiles
from naming import raises_naming

TEXTS = ["What is in the image?", "Where is the red disc?", "a red disc at [10, 20, 300, 400]", "(0,1,2):,<n>"]
TILE, TOKENS = 64, 4


def settings(**changes: Any) -> MultimodalSettings:
    assembly = {
        "tiling": {"tile": TILE, "min_tiles": 1, "max_tiles": 4, **changes.pop("tiling", {})},
        "tokens_per_view": TOKENS,
        "indicator": changes.pop("indicator", "index"),
    }
    content = {
        "tower": {"kind": "lite0", "width": 32, "embed_dim": 8, "image_size": TILE, "position": "none"},
        "connector": {"kind": "cabstractor", "num_tokens": TOKENS, "depth": 1, "hidden_width": 16},
        "language": {
            "model_type": "llama",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 256,
        },
        "assembly": assembly,
        "max_images": 4,
    }
    return validate(MultimodalSettings, {**content, **changes}, where="test")


def load(**changes: Any) -> LoadedModel:
    tokenizer = wrap_tokenizer(train_tokenizer([f" {text}" for text in TEXTS], size=300), source="test")
    checked = settings(**changes)
    model = build_model(checked, vocabulary=tokenizer.size, region_id=tokenizer.special["<region>"])
    prompts = PromptWriter(Chat(tokenizer, "words"), regions=checked.regions)
    return LoadedModel(model.eval().requires_grad_(False), prompts, tokenizer, {})


def images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize(("overview", "position"), [("after", -1), ("before", 0)])
def test_an_overview_reads_the_tiles_if_it_stands_behind_them(overview: str, position: int) -> None:
    loaded = load(tiling={"overview": overview, "min_tiles": 4})
    model, sample = loaded.model, loaded.model.plan((128, 128))
    layout = ViewLayout.create([list_views(sample, loaded.tokenizer.encode)])
    (image,) = images((128, 128))
    pixels_V3TT = render_input(model.tower.preprocess, Image.fromarray(image), sample.images[0])
    changed_V3TT = pixels_V3TT.clone()
    # One tile alone: what changes at the overview's tokens is what they attend to.
    tile = sample.images[0].views.index((2, 1))
    changed_V3TT[tile] = 255 - changed_V3TT[tile]
    states = []
    for pixels in (pixels_V3TT, changed_V3TT):
        prefix_1PE = model.prefix(model.see(pixels), torch.arange(5)[None], layout)
        states_PE = model.language_model.base_model(inputs_embeds=prefix_1PE).last_hidden_state[0]
        lengths = ((layout.before_BKI[0] >= 0).sum(dim=1) + TOKENS).tolist()
        assert sum(lengths) == len(states_PE)
        states.append(states_PE.split(lengths)[position][-TOKENS:])
    assert torch.equal(*states) == (overview == "before")
    if overview == "after":
        assert float((states[0] - states[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("indicator", ["index", "seps", "none"])
def test_the_tokens_of_a_prefix_are_those_of_its_plan(indicator: str) -> None:
    """Tiles + 1 views unless the grid is (1, 1); one view each for 3 images and more."""
    loaded = load(indicator=indicator)
    model = loaded.model
    for sizes, views in (
        ([(60, 60)], [1]),
        ([(64, 128)], [3]),
        ([(128, 128)], [5]),
        ([(64, 128), (200, 64)], [3, 5]),
        ([(128, 128)] * 3, [1, 1, 1]),
    ):
        sample = model.plan(*sizes)
        assert [len(plan.views) for plan in sample.images] == views
        visual, seen = encode_sample(loaded, images(*sizes))
        assert [len(image.views) for image in seen] == views
        assert visual.tokens_VTE.shape[:2].numel() == sample.num_image_tokens
        layout = ViewLayout.create([list_views(sample, loaded.tokenizer.encode)])
        views_1K = torch.arange(sum(views))[None]
        texts = [text for image in range(len(sizes)) for text in sample.list_indicators(image)]
        indicators = sum(len(loaded.tokenizer.encode(text)) for text in texts if text)
        assert indicator != "none" or indicators == 0
        assert model.prefix_lengths(views_1K, layout).tolist() == [sample.num_image_tokens + indicators]
        assert model.prefix(visual, views_1K, layout).shape[1] == sample.num_image_tokens + indicators


def test_indicators_stand_in_front_of_their_views() -> None:
    loaded = load()
    sample = loaded.model.plan((64, 128))
    visual, _ = encode_sample(loaded, images((64, 128)))
    layout = list_views(sample, loaded.tokenizer.encode)
    assert [loaded.tokenizer.decode(before) for _, before in layout] == ["(0,1,1)", "(0,1,2)", "(0,0,0)"]
    prefix_PE = loaded.model.prefix(visual, torch.arange(3)[None], ViewLayout.create([layout]))[0]
    table_VE, start = loaded.model.embeddings_VE, 0
    for view, (_, before) in enumerate(layout):
        torch.testing.assert_close(prefix_PE[start : start + len(before)], table_VE[before])
        start += len(before)
        expected_TE = loaded.model.visual_gain * visual.tokens_VTE[view]
        torch.testing.assert_close(prefix_PE[start : start + TOKENS], expected_TE)
        start += TOKENS


def test_a_packed_row_equals_one_sequence_per_conversation_behind_tiles() -> None:
    loaded = load()
    model = loaded.model
    samples = [model.plan((64, 128)), model.plan((60, 60), (128, 128)), model.plan((128, 64))]
    counts = [sum(len(plan.views) for plan in sample.images) for sample in samples]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (sum(counts), 3, TILE, TILE), generator=generator, dtype=torch.uint8)
    visual = model.see(pixels)
    views_BK, start = torch.full((3, max(counts)), -1), 0
    for row, count in enumerate(counts):
        views_BK[row, :count] = torch.arange(start, start + count)
        start += count
    layouts = [list_views(sample, loaded.tokenizer.encode) for sample in samples]
    rows = [[Tokens([15 + row, 16], [False] * 2), Tokens([19, 20 + row, 21], [False] * 3)] for row in range(3)]
    packed_BTE = model.hidden_states(visual, views_BK, pack_texts(rows, pad=0), layout=ViewLayout.create(layouts))
    for row, conversations in enumerate(rows):
        first = 0
        for tokens in conversations:
            views = views_BK[row][views_BK[row] >= 0][None]
            alone = model.hidden_states(
                visual, views, pack_texts([[tokens]], pad=0), layout=ViewLayout.create([layouts[row]])
            )[0]
            torch.testing.assert_close(packed_BTE[row, first : first + len(alone)], alone, atol=2e-5, rtol=1e-4)
            first += len(alone)


def test_an_answer_about_tiles_does_not_depend_on_its_batch() -> None:
    """The same image is split alone and not split among three."""
    model = Mllm(load())
    first, second, third = images((64, 128), (128, 128), (50, 64))
    questions = [
        Question(first, "Where is the red disc?"),
        Question([first, second], "What is in the image?"),
        Question([first, second, third], "What is in the image?"),
    ]
    together = model.ask_all(questions, max_tokens=6)
    assert together == [model.ask(*question[:2], max_tokens=6) for question in questions]
    chat = model.chat(first)
    assert chat.ask("Where is the red disc?", max_tokens=6) == together[0]
    chat.ask("What is in the image?", max_tokens=4)


@pytest.mark.parametrize("size", [(60, 200), (40, 40), (1, 90)])
@pytest.mark.parametrize("split", [True, False])
def test_regions_are_written_and_read_in_their_frame(size: tuple[int, int], split: bool) -> None:
    plan = plan_tiles(ImageSize(*size), settings().assembly.tiling, split=split)  # type: ignore[union-attr]
    box = PixelBox(0.25 * size[1], 0.5 * size[0], 0.75 * size[1], size[0])
    turns = Turn("user", "<image>\nWhat is <region> and <region>?", (box, Point(0, 0))), Turn("assistant", "it")
    conversation = Conversation("q", ("0",), turns)
    of_image, of_canvas = (CoordinateFrame.create(plan, frame) for frame in ("image", "canvas"))  # type: ignore[arg-type]
    assert move_regions(conversation, [of_image]) == conversation
    moved, corner = move_regions(conversation, [of_canvas]).turns[0].regions
    assert isinstance(moved, PixelBox)
    assert isinstance(corner, Point)
    back = of_canvas.to_image(moved)
    assert np.allclose((back.x1, back.y1, back.x2, back.y2), (box.x1, box.y1, box.x2, box.y2), atol=1e-9)
    fit = plan.tiles if split else plan.overview
    assert (corner.x, corner.y) == fit.padding[:2]
    placement = of_canvas.placement
    assert (placement.height, placement.width) == (plan.canvas if split else (TILE, TILE))


def test_answers_in_text_give_boxes_in_pixels_of_the_original_image() -> None:
    loaded = load(frame="canvas", tiling={"rule": "static", "grids": ["2x2"], "min_tiles": 4, "max_tiles": 9})
    visual, (pending,) = prepare_questions(loaded, [Question(images((64, 128))[0], "Where is the red disc?")])
    # The canvas has 128 x 128 pixels, the image 32 pixels of padding above and below.
    pending.answer = loaded.tokenizer.encode(" at [500, 250, 750, 500]")
    answer = AnswerWriter(loaded, visual, [pending]).answer(0)
    (box,) = answer.boxes
    assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx((64, 0, 96, 32), abs=0.1)
    assert answer.text == "at [64, 0, 96, 32]"


def test_boxes_in_views_are_those_of_the_canvas() -> None:
    plan = plan_tiles(ImageSize(64, 128), settings().assembly.tiling)  # type: ignore[union-attr]
    boxes = [[0.0, 0.0, 0.5, 1.0], [0.25, 0.5, 0.75, 1.0], [0.6, 0.0, 0.9, 0.5]]
    moved, visible = boxes_in_view(boxes, plan, (1, 2))
    assert visible.tolist() == [False, True, True]
    assert moved.tolist() == [pytest.approx([0, 0.5, 0.5, 1]), pytest.approx([0.2, 0, 0.8, 0.5])]
    assert boxes_in_view(boxes, plan, (0, 0))[0] == pytest.approx(np.array(boxes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"regions": "tokens"}, "regions"),
        ({"phrase_maps": True}, "phrase_maps"),
        ({"box_head": True}, "box_head"),
        ({"assembly": None, "frame": "canvas"}, "frame"),
        ({"tiling": {"tile": 32}}, "tiling.tile"),
        ({"connector": {"kind": "cabstractor", "num_tokens": 9, "depth": 1, "hidden_width": 16}}, "tokens_per_view"),
    ],
)
def test_settings_that_tiles_do_not_go_with_are_refused(changes: dict[str, Any], named: str) -> None:
    with raises_naming(UserError, named):
        load(**changes)


def test_one_view_an_image_is_planned_as_such() -> None:
    model = load(assembly=None).model
    sample = model.plan((60, 200), (10, 10))
    assert [plan.views for plan in sample.images] == [((0, 0),), ((0, 0),)]
    assert sample.num_image_tokens == 2 * TOKENS


def test_too_many_images_are_refused_before_they_are_read() -> None:
    with raises_naming(UserError, "images", "200", "4"):
        Mllm(load()).ask([b"no image"] * 200, "What is in the image?")
