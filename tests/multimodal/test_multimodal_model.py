"""The multimodal model: packed equals separate, batches do not matter, folders are strict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.language.chat import Chat
from foveate.language.generate import _GenerationBatch, read_prefix
from foveate.language.llama_forward import LlamaForward
from foveate.language.packing import SLOT, PackedTexts, Tokens, pack_texts
from foveate.language.vocabulary import train_tokenizer, wrap_tokenizer
from foveate.multimodal.answer_writer import AnswerWriter, PointedBox
from foveate.multimodal.ask import Mllm
from foveate.multimodal.build import build_model
from foveate.multimodal.folder import LoadedModel, load_model, save_model
from foveate.multimodal.model import MultimodalModel
from foveate.multimodal.phrase_maps import BoxHead, box_weights
from foveate.multimodal.prepare import Question, prepare_questions
from foveate.multimodal.prompts import PromptWriter, image_slots, images_lead
from foveate.multimodal.questions import ask_turns
from foveate.multimodal.referring import RegionPrompts
from foveate.multimodal.settings import MultimodalSettings
from foveate.multimodal.views import ViewLayout, Visual
from foveate.records.boxes import PixelBox
from foveate.records.conversations import Conversation, Turn
from foveate.records.geometry import View
from naming import raises_naming

TEXTS = ["What is in the image?", "Where is the red disc?", "Is there a blue square?", "a red disc", "yes", "no"]


def settings(**changes: Any) -> MultimodalSettings:
    content: dict[str, Any] = {
        "tower": {"kind": "lite0", "width": 32, "embed_dim": 8, "image_size": 64, "position": "none"},
        "connector": {"kind": "pooled", "side": 2},
        "language": {
            "model_type": "llama",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 96,
        },
        "regions": "tokens",
        "phrase_maps": True,
        "box_head": True,
        "max_images": 2,
    }
    return validate(MultimodalSettings, {**content, **changes}, where="test")


def loaded(**changes: Any) -> LoadedModel:
    names = ["red disc", "blue square"] * 2
    tokenizer = wrap_tokenizer(train_tokenizer([f" {text}" for text in TEXTS], size=300, names=names), source="test")
    model = build_model(settings(**changes), vocabulary=tokenizer.size, region_id=tokenizer.special["<region>"])
    # Off their zeros, so that a test notices when one is left out.
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if not parameter.any():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
            assert name
    prompts = PromptWriter(Chat(tokenizer, "words"), regions=model.settings.regions)
    return LoadedModel(model.eval().requires_grad_(False), prompts, tokenizer, {})


def visual(model: MultimodalModel, views: int) -> Visual:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (views, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return model.see(pixels)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox"])
def test_a_packed_row_equals_one_sequence_per_conversation(kind: str) -> None:
    """Hidden states of every conversation are those that it has alone behind its images."""
    language = {**settings().language, "model_type": kind}
    one = loaded(language=language)
    model, region = one.model, one.prompts.region_id
    seen = visual(model, 3)
    views_BK = torch.tensor([[1, -1], [0, 2]])
    rows = [
        [Tokens([15, 16, region, 18], [False] * 4), Tokens([19, 20, 21, 22, 23], [False] * 5)],
        [Tokens([24, 25], [False] * 2), Tokens([26, region, region], [False] * 3), Tokens([27], [False])],
    ]
    boxes_R4 = torch.tensor([[0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 0.5, 0.5], [0.3, 0.1, 0.8, 0.7]])
    image_R = torch.tensor([0, 1, 0])
    texts = pack_texts(rows, pad=0)
    packed_BTE = model.hidden_states(seen, views_BK, texts, RegionPrompts(boxes_R4, image_R))
    used = 0
    for row, conversations in enumerate(rows):
        start = 0
        views = views_BK[row][views_BK[row] >= 0][None]
        for tokens in conversations:
            count = tokens.ids.count(region)
            regions = RegionPrompts(boxes_R4[used : used + count], image_R[used : used + count])
            alone = model.hidden_states(seen, views, pack_texts([[tokens]], pad=0), regions)[0]
            used += count
            torch.testing.assert_close(packed_BTE[row, start : start + len(alone)], alone, atol=2e-5, rtol=1e-4)
            start += len(alone)
    assert used == 3


def test_images_stand_at_their_placeholders() -> None:
    """A row equals the embeddings laid end to end, packed among rows with images in front and without any."""
    one = loaded()
    model, prompts = one.model, one.prompts
    seen = visual(model, 3)
    turns = (
        Turn("user", "This is <image> and  <image>"),
        Turn("assistant", "yes"),
        Turn("user", "What is <region>?", (PixelBox(0, 0, 32, 64),)),
        Turn("assistant", "a red disc"),
    )
    assert not images_lead(turns)
    placement = View().fit(64, 64, 64, stretch=True)
    layout = [(0, [20, 21]), (1, [22])]
    written = prompts.write_conversation(
        Conversation("a", ("x", "y"), turns), [placement] * 2, images=image_slots(layout, 4)
    )
    ids, special = written.tokens.ids, prompts.tokenizer.special
    slots = [number for number, id in enumerate(ids) if id == SLOT]
    first = [special["<user>"], *prompts.tokenizer.encode(" This is"), 20, 21]
    assert ids[: len(first)] == first
    assert slots == [*range(len(first), len(first) + 4), *range(slots[4], slots[4] + 4)]
    assert ids[slots[3] + 1 : slots[4]] == [*prompts.tokenizer.encode(" and"), 22]
    assert not any(written.tokens.learned[slot] for slot in slots)
    assert written.regions[0][0] == 1
    rows = [[written.tokens], [Tokens([24, 25], [False] * 2)], [Tokens([26, 27, 28], [False] * 3)]]
    views_BK = torch.tensor([[2, 0], [1, -1], [-1, -1]])
    views = ViewLayout.create([layout, [(0, [])], []], in_text=[True, False, False])
    regions = RegionPrompts(
        torch.tensor(np.stack([box for _, box in written.regions]), dtype=torch.float32), torch.tensor([1])
    )
    packed_BTE = model.hidden_states(seen, views_BK, pack_texts(rows, pad=0), regions, views)
    # By hand: visual tokens and text each from the functions that a row with images in front uses.
    tokens_KTE = model.view_tokens(seen, views_BK[:1])[0]
    text_TE = model.embed(torch.tensor([ids]), seen, views_BK[:1], regions)[0]
    maps = model.phrase_maps
    assert maps is not None
    table_TE = model.embeddings_VE[torch.tensor(ids).clamp(min=0)]
    similar_KTL = model._maps(table_TE[None], seen, views_BK[:1])
    expected = []
    for number, id in enumerate(ids):
        before = sum(slot <= number for slot in slots) // 4
        shown = torch.tensor([[[before > 0], [before > 1]]])
        of_maps_E = maps(similar_KTL[:, :, number : number + 1], shown)[0, 0]
        is_text = id not in (SLOT, prompts.region_id)
        expected.append(table_TE[number] + of_maps_E if is_text else text_TE[number])
    for view in range(2):
        for token in range(4):
            expected[slots[4 * view + token]] = tokens_KTE[view, token]
    output = model.language_model.base_model(inputs_embeds=torch.stack(expected)[None]).last_hidden_state[0]
    torch.testing.assert_close(packed_BTE[0], output, atol=2e-5, rtol=1e-4)
    for row in (1, 2):
        alone = model.hidden_states(
            seen,
            views_BK[row : row + 1, : 2 - row],
            pack_texts([rows[row]], pad=0),
            None,
            views.select(torch.tensor([row]), 2 - row),
        )[0]
        torch.testing.assert_close(packed_BTE[row, : len(alone)], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("texts", "lead"),
    [
        (["<image>\n<image> What?"], True),
        (["What?"], True),
        (["What?\n<image>"], False),
        (["<image> a <image> b"], False),
        (["<image>", "Yes", "<image>"], False),
    ],
)
def test_which_images_stand_in_front(texts: list[str], lead: bool) -> None:
    turns = [Turn(("user", "assistant")[number % 2], text) for number, text in enumerate(texts)]
    assert images_lead([Turn("system", "Be brief."), *turns]) == lead


def test_a_question_with_text_in_front_of_its_image_is_answered_as_it_is_trained() -> None:
    """By `ask`, in a batch with others and in a chat, as from the whole sequence."""
    one = loaded()
    model = Mllm(one)
    image = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    question = "Here is <image> a red disc?"
    answer = model.ask(image, question, max_tokens=8)
    assert model.ask_all([(image, "What is it?"), (image, question), ([], "Hello?")], max_tokens=8)[1] == answer
    assert "".join(model.stream(image, question, max_tokens=8)) == answer.text
    chat = model.chat(image)
    assert chat.ask(question, max_tokens=8) == answer
    _, (pending,) = prepare_questions(model.loaded, [Question(image, question)])
    ids = pending.written.tokens.ids
    assert ids.count(SLOT) == 4
    seen, _ = prepare_questions(model.loaded, [Question(image, question)])
    layout = ViewLayout.create([pending.layout], in_text=[True])
    written: list[int] = []
    special = [id for id in one.tokenizer.special.values() if id not in (one.tokenizer.end, one.prompts.region_id)]
    while len(written) < answer.tokens:
        texts = pack_texts([[Tokens([*ids, *written], [False] * (len(ids) + len(written)))]], pad=0)
        state = one.model.hidden_states(seen, torch.tensor([[0]]), texts, None, layout)[:, -1]
        written.append(int(one.model.logits(state).index_fill(1, torch.tensor(special), -torch.inf).argmax()))
    assert pending.answer == []
    assert one.tokenizer.decode(written).strip() == answer.text.strip()
    chat.ask("Is it blue?", max_tokens=4)
    assert chat._ids[: len(ids)] == ids


def test_padding_is_known_by_position_and_not_by_its_id() -> None:
    rows = [[Tokens([7, 7], [False, True])], [Tokens([7], [True])]]
    texts = pack_texts(rows, pad=7)
    assert texts.text_BT.tolist() == [[1, 1], [1, 0]]
    assert texts.learned_BT.tolist() == [[False, True], [True, False]]
    assert isinstance(texts.select(torch.tensor([1])), PackedTexts)
    assert texts.select(torch.tensor([1])).ids_BT.shape == (1, 1)


def test_an_answer_does_not_depend_on_its_batch() -> None:
    model = Mllm(loaded())
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40 + 9 * number, 64, 3), dtype=np.uint8) for number in range(3)]
    questions = [
        Question(images[0], "Where is the red disc?"),
        Question(images[1:], "Is there a blue square?"),
        Question(images[2], "What is <region>?", [PixelBox(3, 4, 30, 40)]),
    ]
    together = model.ask_all(questions, max_tokens=8)
    alone = [model.ask(*question[:2], regions=question[2], max_tokens=8) for question in questions]
    assert together == alone
    streamed = "".join(model.stream(images[0], "Where is the red disc?", max_tokens=8))
    assert streamed == together[0].text


def answer_without_a_cache(
    one: LoadedModel, seen: Visual, ids: list[int], boxes: list[list[float]], *, tokens: int
) -> tuple[list[int], list[list[float]]]:
    """Greedy tokens and boxes about the first view, every step from the whole sequence."""
    model, region = one.model, one.prompts.region_id
    views_BK = torch.tensor([[0]])
    special = [id for id in one.tokenizer.special.values() if id not in (one.tokenizer.end, region)]
    written: list[int] = []
    before = len(boxes)
    while len(written) < tokens:
        texts = pack_texts([[Tokens(ids, [False] * len(ids))]], pad=0)
        regions = RegionPrompts(torch.tensor(boxes).view(-1, 4), torch.zeros(len(boxes), dtype=torch.long))
        state = model.hidden_states(seen, views_BK, texts, regions)[:, -1]
        token = int(model.logits(state).index_fill(1, torch.tensor(special), -torch.inf).argmax())
        if token == one.tokenizer.end:
            break
        if token == region:
            readable = texts.ids_BT != region
            x1, y1, x2, y2 = model.locate(
                seen, torch.tensor([0]), states_NE=state, ids_NT=texts.ids_BT, read_NT=readable
            )[0].tolist()
            boxes = [*boxes, [x1, y1, max(x2, x1 + 0.01), max(y2, y1 + 0.01)]]
        ids = [*ids, token]
        written.append(token)
    return written, boxes[before:]


@pytest.mark.parametrize("seed", range(4))
def test_a_chat_answers_as_a_model_that_reads_everything_again(seed: int) -> None:
    """Kept keys and values change nothing, regions and boxes in earlier turns included."""
    one = loaded()
    # Region tokens are likely, so that answers point.
    with torch.no_grad():
        one.model.language_model.get_input_embeddings().weight[one.prompts.region_id] *= 3
    model = Mllm(one)
    image = np.random.default_rng(seed).integers(0, 256, (50, 64, 3), dtype=np.uint8)
    box = PixelBox(3, 4, 40, 44)
    chat = model.chat(image)
    ids: list[int] = []
    boxes: list[list[float]] = []
    for question, regions in (("Where is the red disc?", []), ("What is <region>?", [box]), ("Is it blue?", [])):
        answer = chat.ask(question, regions=regions, max_tokens=5)
        conversation = Conversation("q", ("0",), tuple(ask_turns(question, regions, images=0 if ids else 1)))
        written = one.prompts.write_question(conversation, [image.frame.placement for image in chat.images])
        boxes += [list(map(float, corners)) for _, corners in written.regions]
        expected, found = answer_without_a_cache(one, chat.visual, ids + written.tokens.ids, boxes, tokens=5)
        assert answer.tokens == len(expected)
        ids = [*ids, *written.tokens.ids, *expected, one.prompts.chat.end]
        assert chat._ids + chat._unread == ids
        boxes += found
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 3


def test_an_interrupted_answer_leaves_the_conversation_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Mllm(loaded())
    image = np.random.default_rng(0).integers(0, 256, (50, 64, 3), dtype=np.uint8)
    chat, other = model.chat(image), model.chat(image)
    for conversation in (chat, other):
        conversation.ask("Where is the red disc?", max_tokens=3)
    with monkeypatch.context() as patch:
        patch.setattr(AnswerWriter, "answer", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            chat.ask("Is it blue?", max_tokens=3)
    with raises_naming(UserError, "max_tokens"):
        chat.ask("Is it blue?", max_tokens=0)
    assert chat.turns == other.turns
    assert chat.ask("Is it blue?", max_tokens=6) == other.ask("Is it blue?", max_tokens=6)


@pytest.mark.parametrize("number", [0, 1])
def test_a_box_lies_in_the_image_that_shows_its_phrase(number: int) -> None:
    """Only one image has a patch like the phrase; its size is another one, so that the box's pixels tell which."""
    one = loaded()
    model = Mllm(one)
    images = [np.full((40, 40, 3), 90, np.uint8), np.full((90, 300, 3), 160, np.uint8)]
    visual, pending = prepare_questions(model.loaded, [Question(images, "Where is the red disc?")])
    phrase_E = one.model.embeddings_VE[one.tokenizer.encode(" red disc")[0]] - one.model.center_E
    visual = visual._replace(full_VLE=torch.full_like(visual.full_VLE, 0.01))
    visual.full_VLE[number, 3] = 5 * torch.nn.functional.normalize(phrase_E, dim=0)
    head = one.model.box_head
    assert head is not None
    head.state_query.weight.data.zero_()
    head.token_bias.weight.data = 50 * phrase_E[None]
    writer = AnswerWriter(one, visual, pending)
    writer.embed([0], [one.prompts.region_id], torch.zeros(1, one.model.width))
    answer = writer.answer(0)
    assert answer.images == (number,)
    alone = one.model.box_head(visual.full_VLE, phrase_E[None], torch.tensor([number]))
    torch.testing.assert_close(torch.tensor([pending[0].boxes[0][1]]), alone, atol=0.02, rtol=0)
    height, width = images[number].shape[:2]
    (box,) = answer.boxes
    assert box.x2 <= width
    assert box.y2 <= height


def test_boxes_are_decoded_in_float32_whatever_the_arithmetic_around_them() -> None:
    torch.manual_seed(0)
    head = BoxHead(width=32, grid=(4, 4))
    full_VLE, phrases_NE = torch.randn(2, 16, 32), torch.randn(40, 32)
    view_N = torch.arange(40) % 2
    boxes_N4 = head(full_VLE, phrases_NE, view_N)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(head(full_VLE, phrases_NE, view_N), boxes_N4, rtol=0, atol=0)
        narrow_N4 = head(full_VLE.bfloat16(), phrases_NE.bfloat16(), view_N)
    assert narrow_N4.dtype == torch.float32
    expected_N4 = head(full_VLE.bfloat16().float(), phrases_NE.bfloat16().float(), view_N)
    torch.testing.assert_close(narrow_N4, expected_N4, rtol=0, atol=0)
    # Weights that a trainer holds in bfloat16 are used, not refused.
    assert head.bfloat16()(full_VLE, phrases_NE, view_N).dtype == torch.float32


def test_boxes_come_back_in_pixels_of_the_original_image() -> None:
    one = loaded()
    model = Mllm(one)
    image = np.zeros((200, 100, 3), np.uint8)
    seen, pending = prepare_questions(model.loaded, [Question(image, "Where is the red disc?")])
    placement = pending[0].frames[0].placement
    corners, _ = placement.to_input(np.array([[0.2, 0.1, 0.6, 0.5]]))
    pending[0].answer = [one.prompts.region_id]
    pending[0].boxes = [PointedBox(0, corners[0].tolist(), 1.0)]
    writer = AnswerWriter(one, seen, pending)
    (box,) = writer.answer(0).boxes
    assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx((20, 20, 60, 100))
    assert writer.answer(0).text == "[20, 20, 60, 100]"
    assert seen.tokens_VTE.shape[0] == 1


def test_the_weights_of_a_box_are_its_shares_of_the_cells() -> None:
    weights = box_weights(torch.tensor([[0.0, 0.0, 0.75, 0.5], [0.25, 0.5, 0.75, 1.0]]), (2, 2))
    assert weights.tolist() == [pytest.approx([2 / 3, 1 / 3, 0, 0]), pytest.approx([0, 0, 0.5, 0.5])]


def test_a_model_folder_is_read_as_it_was_written_and_strictly(tmp_path: Path) -> None:
    one = loaded()
    image = np.random.default_rng(0).integers(0, 256, (50, 64, 3), dtype=np.uint8)
    expected = Mllm(one).ask(image, "What is in the image?", max_tokens=6)
    folder = save_model(
        tmp_path / "model",
        settings=one.model.settings,
        weights=one.model.state_dict(),
        tokenizer_json=one.tokenizer.backend.to_str(),
        preprocess=one.model.tower.preprocess.to_dict(),
        card="card",
    )
    assert Mllm(load_model(folder)).ask(image, "What is in the image?", max_tokens=6) == expected
    weights = folder / "model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors.pop("visual_gain")
    save_file(tensors, weights)
    with raises_naming(UserError, "visual_gain"):
        load_model(folder)
    (folder / "tokenizer.json").unlink()
    with raises_naming(UserError, "tokenizer.json"):
        load_model(folder)


@pytest.mark.parametrize(
    ("question", "regions", "named"),
    [
        ("", (), "question"),
        ("What is <region>?", (), "<region>"),
        ("<image> <image> Which?", (), "<image>"),
        ("What is it? " * 60, (), "96"),
    ],
)
def test_questions_that_do_not_fit_are_refused(question: str, regions: tuple[PixelBox, ...], named: str) -> None:
    with raises_naming(UserError, named):
        Mllm(loaded()).ask(np.zeros((64, 64, 3), np.uint8), question, regions=regions)


def test_images_that_cannot_be_asked_about_are_refused(tmp_path: Path) -> None:
    model = Mllm(loaded())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with raises_naming(UserError, "broken.png"):
        model.ask(tmp_path / "broken.png", "What is in the image?")
    with raises_naming(UserError, "images"):
        model.ask([np.zeros((64, 64, 3), np.uint8)] * 3, "What is in the image?")


def test_without_an_image_the_text_alone_is_answered_whatever_is_in_the_batch() -> None:
    model = Mllm(loaded())
    image = np.random.default_rng(0).integers(0, 256, (50, 64, 3), dtype=np.uint8)
    questions = [Question([], "Where is the red disc?"), Question([image], "Where is the red disc?")]
    without, with_image = model.ask_all(questions, max_tokens=6)
    assert without == model.ask([], "Where is the red disc?", max_tokens=6)
    assert with_image == model.ask(image, "Where is the red disc?", max_tokens=6)
    assert not without.boxes


def test_questions_about_one_image_read_it_once_and_answer_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = Mllm(loaded()), np.random.default_rng(3).integers(0, 256, (50, 64, 3), dtype=np.uint8)
    boxes = [PixelBox(3, 4, 40, 44), PixelBox(20, 1, 60, 30)]
    questions = [(image, "What is <1>?", boxes[:1]), (image, "Is <1> beside <2>?", boxes), (image, "Where is it?")]
    read: list[int] = []

    def read_and_note(network: Any, embeddings_LD: torch.Tensor) -> Any:
        read.append(len(embeddings_LD))
        return read_prefix(network, embeddings_LD)

    monkeypatch.setattr("foveate.multimodal.ask.read_prefix", read_and_note)
    together = model.ask_all(questions, max_tokens=8)
    assert read == [model.loaded.model.connector.num_tokens]
    alone = [model.ask_all([question], max_tokens=8)[0] for question in questions]
    assert len(read) == 1, "one question reads all of it in one pass"
    for answer, expected in zip(together, alone, strict=True):
        assert (answer.text, answer.tokens, answer.finished) == (expected.text, expected.tokens, expected.finished)
        assert answer.num_prompt_tokens == expected.num_prompt_tokens
        assert answer.score == pytest.approx(expected.score, abs=1e-4)


def test_a_list_of_boxes_is_read_in_fewer_passes_and_stays_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = Mllm(loaded()), np.random.default_rng(3).integers(0, 256, (50, 64, 3), dtype=np.uint8)
    region, end, encode = model.loaded.prompts.region_id, model.loaded.prompts.chat.end, model.loaded.tokenizer.encode
    names = ["red disc", "blue disc", "red square", "blue square", "red disc"]
    script = [id for name in names for id in (*encode(f" {name} "), region, *encode(","))] + [end]
    choose, states, lengths = _GenerationBatch._choose, LlamaForward.states, list[int]()

    def choose_next(rows: _GenerationBatch, active: Sequence[int], logits_BV: torch.Tensor) -> list[int]:
        scripted_BV = torch.full_like(logits_BV, -torch.inf)
        scripted_BV[0, script[len(rows.ids[0])]] = 0.0
        return choose(rows, active, scripted_BV)

    def read(forward: LlamaForward, embeddings_BTD: torch.Tensor, *arguments: Any, **others: Any) -> torch.Tensor:
        lengths.append(embeddings_BTD.shape[1])
        return states(forward, embeddings_BTD, *arguments, **others)

    monkeypatch.setattr(_GenerationBatch, "_choose", choose_next)
    monkeypatch.setattr(LlamaForward, "states", read)
    drafted = model.ask(image, "What is there?", max_tokens=200)
    num_passes = len(lengths)
    monkeypatch.setattr(AnswerWriter, "draft", lambda writer, row: ([], writer.loaded.model.embeddings_VE[:0]))
    alone = model.ask(image, "What is there?", max_tokens=200)
    assert len(lengths) - num_passes == len(script)
    assert num_passes <= len(script) - 2 * (len(names) - 2), "a comma and more of each further thing"
    assert drafted.text == alone.text
    assert len(drafted.boxes) == len(names)
    for box, expected in zip(drafted.boxes, alone.boxes, strict=True):
        assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx(
            (expected.x1, expected.y1, expected.x2, expected.y2), abs=1e-2
        )
