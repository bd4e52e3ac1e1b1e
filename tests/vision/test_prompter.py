"""The Prompter against a plain reference that runs the whole layer once per region, and its invariants."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import UserError
from foveate.vision.layers import encode_points, patch_centers
from foveate.vision.prompter import BoxHead, Prompter, check_boxes, sorted_boxes
from naming import raises_naming

GRID = (3, 4)
WIDTH, EMBED = 16, 8
OPTIONS = [
    {"pool": pool, "image_pos": image_pos, "norm": norm}
    for pool, image_pos, norm in itertools.product(("all", "prompt"), ("sincos", "none"), ("pre", "post"))
] + [
    {"layout": "interleaved", "coordinate_scale": 2 * math.pi},
    {"layout": "timescale", "coordinate_scale": 4.0, "pool": "prompt", "corner_embedding": False},
    {"text_prompt_normalized": True, "mlp_ratio": 2.0},
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(dtype: torch.dtype = torch.float64, *, seed: int = 0, **options: object) -> Prompter:
    prompter = Prompter(width=WIDTH, embed_dim=EMBED, **options).to(dtype)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in prompter.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator(seed), dtype=torch.float64))
    return prompter


def inputs(counts: list[int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, boxes, phrase embeddings, image of each region in a mixed order."""
    rows = sum(counts)
    tokens = torch.randn(len(counts), GRID[0] * GRID[1], WIDTH, generator=generator(1), dtype=dtype)
    first, second = torch.rand(2, rows, 2, generator=generator(2), dtype=dtype)
    boxes = torch.cat((torch.minimum(first, second), torch.maximum(first, second)), dim=1)
    text = torch.randn(rows, EMBED, generator=generator(3), dtype=dtype)
    image_index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return tokens, boxes, text, image_index[torch.randperm(rows, generator=generator(4))]


def reference(prompter: Prompter, prompt_PD: Tensor, tokens_LD: Tensor) -> tuple[Tensor, Tensor]:
    """One region, the layer as the specification states it: [prompt ; image] through attention and MLP."""
    if prompter.image_pos == "sincos":
        tokens_LD = tokens_LD + sinusoid(prompter, patch_centers(GRID, dtype=tokens_LD.dtype))
    x = torch.cat((prompt_PD, tokens_LD))
    attended_of = prompter.ln1(x) if prompter.norm == "pre" else x
    q, k, v = prompter.q(attended_of), prompter.k(attended_of), prompter.v(attended_of)
    x = x + prompter.o((q @ k.T / math.sqrt(WIDTH)).softmax(dim=-1) @ v)
    if prompter.norm == "pre":
        x = x + prompter.fc2(F.gelu(prompter.fc1(prompter.ln2(x))))
    else:
        x = prompter.ln1(x)
        x = prompter.ln2(x + prompter.fc2(F.gelu(prompter.fc1(x))))
    x = prompter.final_ln(x)
    pooled = (x if prompter.pool == "all" else x[: len(prompt_PD)]).mean(dim=0)
    return prompter.proj(pooled), pooled


def sinusoid(prompter: Prompter, points: Tensor) -> Tensor:
    return encode_points(
        points,
        width=WIDTH,
        coordinate_scale=prompter.coordinate_scale,
        temperature=prompter.temperature,
        layout=prompter.layout,
    )


def reference_boxes(prompter: Prompter, tokens: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
    rows = []
    for box, image in zip(boxes, image_index, strict=True):
        corners = sinusoid(prompter, box.view(2, 2))
        if prompter.corner_embedding is not None:
            corners = corners + prompter.corner_embedding
        rows.append(reference(prompter, corners, tokens[image])[0])
    return torch.stack(rows)


def reference_phrases(prompter: Prompter, tokens: Tensor, text: Tensor, image_index: Tensor) -> Tensor:
    if prompter.text_prompt_normalized:
        text = F.normalize(text, dim=-1)
    prompts = prompter.text_in(text)[:, None]
    return torch.stack(
        [reference(prompter, prompt, tokens[i])[0] for prompt, i in zip(prompts, image_index, strict=True)]
    )


@pytest.mark.parametrize("counts", [[2, 0, 3], [1], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 12]], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_plain_reference_with_gradients(options: dict[str, object], counts: list[int]) -> None:
    prompter = make(**options)
    tokens, boxes, text, image_index = inputs(counts)
    tokens.requires_grad_()
    text.requires_grad_()
    leaves = [tokens, text, *(p for name, p in prompter.named_parameters())]
    prepared = prompter.prepare(tokens, GRID)
    found = torch.stack(
        (
            prompter.boxes(prepared, boxes, image_index).embedding_RE,
            prompter.phrases(prepared, text, image_index).embedding_RE,
        )
    )
    expected = torch.stack(
        (
            reference_boxes(prompter, tokens, boxes, image_index),
            reference_phrases(prompter, tokens, text, image_index),
        )
    )
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-9)
    weight = torch.randn(found.shape, generator=generator(9), dtype=found.dtype)
    gradients = [torch.autograd.grad((x * weight).sum(), leaves) for x in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("pool", ["all", "prompt"])
def test_a_region_does_not_depend_on_the_others(pool: str) -> None:
    prompter = make(torch.float32, pool=pool)
    tokens, boxes, text, image_index = inputs([4, 1, 5], torch.float32)
    prepared = prompter.prepare(tokens, GRID)
    together = prompter.boxes(prepared, boxes, image_index).embedding_RE
    phrases_together = prompter.phrases(prepared, text, image_index).embedding_RE
    for row, image in enumerate(image_index):
        own = prompter.prepare(tokens[image : image + 1], GRID)
        zero = torch.zeros(1, dtype=torch.int64)
        alone = prompter.boxes(own, boxes[row : row + 1], zero).embedding_RE
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0.0)
        alone = prompter.phrases(own, text[row : row + 1], zero).embedding_RE
        torch.testing.assert_close(alone[0], phrases_together[row], atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("pool", ["all", "prompt"])
@pytest.mark.parametrize(("box_rows", "phrase_rows"), [(5, 5), (5, 2), (0, 3), (4, 0), (0, 0)])
def test_both_kinds_in_one_call_are_independent(box_rows: int, phrase_rows: int, pool: str) -> None:
    prompter = make(pool=pool)
    tokens, boxes, text, image_index = inputs([2, 0, 3])
    boxes, text, text_image = boxes[:box_rows], text[:phrase_rows], image_index.flip(0)[:phrase_rows]
    prepared = prompter.prepare(tokens, GRID)
    box_image = image_index[:box_rows]
    z, located = prompter.boxes_and_phrases(prepared, boxes, box_image, text, text_image)
    for found, expected in (
        (z, prompter.boxes(prepared, boxes, box_image)),
        (located, prompter.phrases(prepared, text, text_image)),
    ):
        torch.testing.assert_close(found.embedding_RE, expected.embedding_RE, atol=1e-12, rtol=0.0)
        torch.testing.assert_close(found.pooled_RD, expected.pooled_RD, atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("pool", ["all", "prompt"])
def test_order_of_regions_and_images_does_not_matter(pool: str) -> None:
    prompter = make(pool=pool)
    tokens, boxes, _, image_index = inputs([2, 0, 3])
    found = prompter.boxes(prompter.prepare(tokens, GRID), boxes, image_index).embedding_RE
    rows = torch.tensor([4, 2, 0, 1, 3])
    images = torch.tensor([2, 0, 1])  # new position of old image p is where images == p
    position = images.argsort()
    moved = prompter.boxes(
        prompter.prepare(tokens[images], GRID), boxes[rows], position[image_index[rows]]
    ).embedding_RE
    torch.testing.assert_close(moved, found[rows], atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("pool", ["all", "prompt"])
def test_no_region_gives_zero_gradients_to_every_weight(pool: str) -> None:
    prompter = make(torch.float32, pool=pool)
    head = BoxHead(width=WIDTH, embed_dim=EMBED)
    tokens, boxes, text, image_index = inputs([0, 0], torch.float32)
    prepared = prompter.prepare(tokens, GRID)
    z = prompter.boxes(prepared, boxes, image_index)
    raw = head(prompter.phrases(prepared, text, image_index))
    (z.embedding_RE.sum() + raw.sum()).backward()
    for name, parameter in [*prompter.named_parameters(), *head.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max().item() == 0.0, name


def test_a_class_token_gets_no_position_but_is_seen() -> None:
    prompter = make()
    tokens, boxes, _, image_index = inputs([2])
    extra = torch.randn(1, 1, WIDTH, generator=generator(6), dtype=torch.float64)
    with_class = prompter.prepare(torch.cat((extra, tokens), dim=1), GRID)
    assert torch.equal(with_class.tokens_BLD[:, :1], extra)
    assert torch.equal(with_class.tokens_BLD[:, 1:], prompter.prepare(tokens, GRID).tokens_BLD)
    found = prompter.boxes(with_class, boxes, image_index).embedding_RE
    assert not torch.allclose(found, prompter.boxes(prompter.prepare(tokens, GRID), boxes, image_index).embedding_RE)


@pytest.mark.parametrize("pool", ["all", "prompt"])
def test_autocast_stays_close(pool: str) -> None:
    prompter = make(torch.float32, pool=pool)
    tokens, boxes, text, image_index = inputs([3, 2], torch.float32)

    def run() -> Tensor:
        prepared = prompter.prepare(tokens, GRID)
        z = prompter.boxes(prepared, boxes, image_index).embedding_RE
        return torch.stack((z, prompter.phrases(prepared, text, image_index).embedding_RE)).float()

    exact = run()
    with torch.autocast("cpu", torch.bfloat16):
        half = run()
    assert (half - exact).norm() < 0.05 * exact.norm()


def test_bad_boxes_are_named() -> None:
    good = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.2, 0.3, 0.4]])
    check_boxes(good)
    check_boxes(good[:0])
    for bad in ([0.5, 0.1, 0.5, 0.3], [0.1, 0.5, 0.2, 0.4], [-0.1, 0, 1, 1], [0, 0, 1, 1.01], [0, 0, math.nan, 1]):
        rows = torch.cat((good, torch.tensor([bad])))
        with raises_naming(UserError, "2"):
            check_boxes(rows)
        with raises_naming(UserError, "box kite"):
            check_boxes(rows, ids=["sky", "hill", "kite"])
    with raises_naming(UserError, "4]"):
        check_boxes(torch.zeros(3, 2))
    prompter = make(torch.float32)
    prepared = prompter.prepare(torch.zeros(1, 12, WIDTH), GRID)
    with raises_naming(UserError, "0"):
        prompter.boxes(prepared, torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))


def test_head_options_and_inference() -> None:
    prompter = make(torch.float32, pool="prompt")
    tokens, _, text, image_index = inputs([2, 1], torch.float32)
    prompted = prompter.phrases(prompter.prepare(tokens, GRID), text, image_index)
    for read in ("embedding", "pooled"):
        head = BoxHead(width=WIDTH, embed_dim=EMBED, input=read, output="sigmoid")
        raw = head(prompted)
        assert raw.shape == (3, 4)
        assert raw.min() >= 0
        assert raw.max() <= 1
        assert torch.equal(head.locate(prompted), sorted_boxes(raw))
    found = sorted_boxes(torch.tensor([[0.9, -0.5, 0.2, 1.7], [0.1, 0.2, 0.3, 0.4]]))
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.0, 0.9, 1.0], [0.1, 0.2, 0.3, 0.4]]))


def test_wrong_options_are_named() -> None:
    with raises_naming(UserError, "prompt"):
        Prompter(width=16, embed_dim=8, pool="promt")
    with raises_naming(UserError, "4"):
        Prompter(width=18, embed_dim=8)
    with raises_naming(UserError, "box_head.input"):
        BoxHead(width=16, embed_dim=8, input="tokens")
