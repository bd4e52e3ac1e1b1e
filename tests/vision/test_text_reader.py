"""The character head: where words are, which letters they have, their order, and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.core.errors import UserError
from foveate.mllm.reader import cover_cells
from foveate.records.boxes import PixelBox
from foveate.records.geometry import View
from foveate.vision.text_reader import (
    CELLS,
    COLUMNS,
    MAX_WORDS,
    SIZE,
    CharacterHead,
    ReaderSettings,
    ReadWord,
    TextMaps,
    TextReader,
    compute_maps,
    decode_letters,
    find_words,
    load_network,
    load_reader,
    save_head,
    sort_words,
)
from naming import raises_naming

SMALL = ReaderSettings(width=8, hidden=16)


def make_head(seed: int = 0) -> CharacterHead:
    torch.manual_seed(seed)
    return CharacterHead(width=SMALL.width, hidden=SMALL.hidden)


def test_decoding_merges_repeats_and_drops_blanks() -> None:
    classes = torch.tensor([[0, 16, 16, 0, 15, 0, 12, 0, 12, 12, 0], [0] * 11])
    (word, sure), (nothing, _) = decode_letters(50 * torch.nn.functional.one_hot(classes, 27).float())
    assert (word, nothing) == ("poll", "")
    assert sure == pytest.approx(1.0)
    # Even odds of two classes in one of its columns halve the probability of the whole.
    logits = 50 * torch.nn.functional.one_hot(classes[:1], 27).float()
    logits[0, 1, 3] = 50
    assert decode_letters(logits)[0][1] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "box",
    [(40.0, 80.0, 136.0, 120.0), (43.0, 85.0, 130.0, 118.0), (0.0, 0.0, 224.0, 24.0), (190.0, 201.0, 224.0, 224.0)],
)
def test_the_box_of_a_mask_is_the_one_that_was_covered(box: tuple[float, ...]) -> None:
    small = np.array([8.0, 8.0, 24.0, 24.0]) / SIZE if box[1] > 60 else np.array([80.0, 160.0, 96.0, 176.0]) / SIZE
    covered = cover_cells([small, np.array(box) / SIZE])
    largest, second = find_words(covered)
    # Corner cells are covered by the product of both shares, which is below the larger one.
    np.testing.assert_allclose(largest.to_array() * SIZE, box, atol=0.5)
    np.testing.assert_allclose(second.to_array(), small, atol=1e-6)
    assert find_words(np.zeros((CELLS, CELLS), np.float32)) == []


def test_a_page_of_text_has_so_many_words_and_no_more() -> None:
    mask = np.zeros((CELLS, CELLS), np.float32)
    mask[::2, ::2] = 0.9
    assert len(find_words(mask)) == MAX_WORDS


def test_words_are_sorted_into_lines() -> None:
    boxes = {"mill": (90, 12, 130, 30), "old": (20, 8, 70, 28), "north": (10, 60, 60, 80), "gate": (80, 62, 120, 82)}
    words = [ReadWord(text, PixelBox(*box), 1.0) for text, box in boxes.items()]
    assert [word.text for word in sort_words(words)] == ["old", "mill", "north", "gate"]
    assert sort_words([]) == []


def test_letters_of_a_box_are_read_from_its_columns_alone() -> None:
    head = make_head().eval()
    maps = compute_maps(load_network(torch.device("cpu")), torch.randint(256, (2, 3, SIZE, SIZE), dtype=torch.uint8))
    assert maps.coarse_BCHW.shape == (2, 152, CELLS, CELLS)
    assert maps.fine_BCHW.shape == (2, 24, 2 * CELLS, 2 * CELLS)
    with torch.no_grad():
        grid, mask = head(maps)
        assert mask.shape == (2, CELLS, CELLS)
        boxes = torch.tensor([[0.1, 0.1, 0.4, 0.2], [0.1, 0.1, 0.4, 0.2]])
        logits = head.read(grid, maps, boxes, torch.tensor([0, 1]))
        assert logits.shape == (2, COLUMNS, 27)
        elsewhere = TextMaps(maps.coarse_BCHW, maps.fine_BCHW.clone())
        elsewhere.fine_BCHW[:, :, 20:] = 0
        assert torch.equal(head.read(grid, elsewhere, boxes, torch.tensor([0, 1])), logits)


def test_a_head_is_stored_in_half_the_bytes(tmp_path: Path) -> None:
    head, path = make_head(), tmp_path / "reader.safetensors"
    save_head(path, head)
    reader = load_reader(path, SMALL)
    assert path.stat().st_size < 2.2 * sum(value.numel() for value in head.parameters()) + 4096
    for name, value in head.state_dict().items():
        assert torch.equal(reader.head.state_dict()[name], value.half().float())
    with raises_naming(UserError, "reader.safetensors", "mask.weight"):
        load_reader(path, SMALL.model_copy(update={"width": 16}))
    with raises_naming(UserError, "network", "0123"):
        load_reader(path, SMALL.model_copy(update={"network_sha256": "0123"}))
    with raises_naming(UserError, "missing.safetensors"):
        load_reader(tmp_path / "missing.safetensors", SMALL)
    path.write_bytes(path.read_bytes()[:1000])
    with raises_naming(UserError, "reader.safetensors", "damaged"):
        load_reader(path, SMALL)


def test_no_word_is_read_below_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    head = make_head()
    with torch.no_grad():
        head.mask.weight.zero_()
        head.mask.bias.fill_(20.0)  # letters everywhere
    read = {"be": 0.75}
    monkeypatch.setattr("foveate.vision.text_reader.decode_letters", lambda _: list(read.items()))
    pixels = torch.randint(256, (1, 3, SIZE, SIZE), dtype=torch.uint8)
    placement = View().fit(448, 224, SIZE)
    ((word,),) = TextReader(head, min_score=0.75).read_pixels(pixels, [placement])
    assert (word.text, word.score) == ("be", 0.75)
    # In pixels of the image, without what fills the input.
    assert (word.box.x1, word.box.y1, word.box.x2, word.box.y2) == (0, 0, 448, 224)
    assert TextReader(head, min_score=0.76).read_pixels(pixels, [placement]) == [[]]
    read = {"i": 1.0}
    assert TextReader(head, min_score=0.0).read_pixels(pixels, [placement]) == [[]]
