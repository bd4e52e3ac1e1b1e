"""Parts of tools/measure_reading.py: held-out words, pasted words and their cells, decoding, and one training step."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from tools.measure_reading import (
    CELLS,
    CURRICULUM,
    SIZE,
    CharacterHead,
    cover_cells,
    decode,
    draw_batch,
    find_box,
    list_tensors,
    load_words,
    paste_word,
    resume,
)

from foveate.core.errors import UserError
from naming import raises_naming


def test_no_word_of_the_test_is_in_training() -> None:
    training, held_out = load_words()
    assert not set(training) & set(held_out)
    assert 0.08 < len(held_out) / len(training) < 0.12
    assert all(3 <= len(word) <= 7 for word in held_out)


def test_decoding_merges_repeats_and_drops_blanks() -> None:
    classes = torch.tensor([[0, 16, 16, 0, 15, 0, 12, 0, 12, 12, 0], [0] * 11])
    assert decode(torch.nn.functional.one_hot(classes, 27).float()) == ["poll", ""]


def test_the_box_of_a_mask_is_the_one_that_was_covered() -> None:
    small, large = (16.0, 16.0, 32.0, 32.0), (40.0, 80.0, 136.0, 120.0)
    assert find_box(cover_cells([small, large])) == tuple(edge / SIZE for edge in large)
    half = cover_cells([(12.0, 8.0, 16.0, 16.0)])
    assert half.sum() == half[1, 1] == 0.5


def test_pasted_words_do_not_overlap_and_change_their_box_alone() -> None:
    rng, canvas = np.random.default_rng(0), np.full((SIZE, SIZE, 3), 128, np.uint8)
    before, taken = canvas.copy(), []
    written = [paste_word(rng, canvas, word, 20, taken) for word in ("lake", "mill")]
    first, second = (word.box for word in written if word)
    assert first[2] <= second[0] or second[2] <= first[0] or first[3] <= second[1] or second[3] <= first[1]
    changed = (canvas != before).any(-1)
    for x1, y1, x2, y2 in taken:
        assert changed[int(y1) : int(y2), int(x1) : int(x2)].any()
        changed[int(y1) : int(y2), int(x1) : int(x2)] = False
    assert not changed.any()
    assert paste_word(rng, canvas, "lake", 200, []) is None


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
def test_words_of_a_batch_fit_the_level(share: float | None) -> None:
    scenes = np.full((2, SIZE, SIZE, 3), 100, np.uint8)
    batch = draw_batch(np.random.default_rng(1), scenes, ["sun", "castle", "bridges"], share)
    longest = 7 if share is None else next(row for row in CURRICULUM if share < row[0])[1][1]
    assert batch.targets
    assert max(map(len, batch.targets)) <= longest
    head = CharacterHead(channels=5)
    grid = head.trunk(torch.zeros(len(batch.pixels), 5, CELLS, CELLS))
    logits = head.read(grid, torch.tensor(batch.index), torch.tensor(batch.boxes, dtype=torch.float32))
    assert logits.shape == (len(batch.targets), 32, 1 + len(string.ascii_lowercase))


def test_a_resumed_training_takes_the_same_next_step(tmp_path: Path) -> None:
    def step(head: CharacterHead, optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        optimizer.zero_grad()
        sum((weight * torch.rand(weight.shape, generator=generator)).sum() for weight in head.parameters()).backward()
        optimizer.step()

    def make() -> tuple[CharacterHead, torch.optim.Optimizer]:
        torch.manual_seed(0)
        head = CharacterHead()
        return head, torch.optim.AdamW(head.parameters(), lr=1e-3)

    head, optimizer = make()
    step(head, optimizer, 1)
    state, path = {"used": 1.5, "step": 1, "options": [0, False]}, tmp_path / "checkpoint.safetensors"
    path.write_bytes(save(list_tensors(head, optimizer), metadata={"state": json.dumps(state)}))
    step(head, optimizer, 2)
    resumed, its_optimizer = make()
    assert resume(path, resumed, its_optimizer, [0, False]) == (1.5, 1)
    step(resumed, its_optimizer, 2)
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])
    with raises_naming(UserError, "--letters-first"):
        resume(path, *make(), [0, True])
