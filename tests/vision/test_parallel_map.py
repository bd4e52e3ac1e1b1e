"""Work of a frozen network spread over cores."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from foveate.vision.feature_cache import map_on_cores
from foveate.vision.registry import build_image_encoder, build_text_encoder

CPU = torch.device("cpu")


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_cores")
def test_each_call_has_one_core_and_the_caller_keeps_all() -> None:
    together = threading.Barrier(2, timeout=20)  # passed only if two calls run at a time

    def work(item: int) -> tuple[int, int]:
        together.wait()
        return item, torch.get_num_threads()

    assert map_on_cores(work, range(6), device=CPU) == [(item, 1) for item in range(6)]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_cores")
def test_an_error_reaches_the_caller_who_keeps_all_cores() -> None:
    with pytest.raises(ZeroDivisionError):
        map_on_cores(lambda item: 1 // item, [1, 0], device=CPU)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_cores")
def test_frozen_networks_give_the_same_in_several_threads() -> None:
    encoder = build_image_encoder({"kind": "lite0", "embed_dim": 8, "image_size": 64, "width": 8})
    pixels = torch.randint(0, 256, (24, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    parts = map_on_cores(encoder.frozen_features, pixels.split(4), device=CPU)  # the network is loaded on the way
    torch.testing.assert_close(torch.cat(parts), encoder.frozen_features(pixels), atol=1e-2, rtol=1e-2)


@pytest.mark.usefixtures("two_cores")
def test_sentence_vectors_do_not_depend_on_the_number_of_cores() -> None:
    texts = [f"{number} red apples on a {'very ' * (number % 7)}long table" for number in range(150)]
    encoder = build_text_encoder({"kind": "minilm", "embed_dim": 8})
    several = encoder.frozen_features(texts)
    torch.set_num_threads(1)
    torch.testing.assert_close(several, encoder.frozen_features(texts), atol=1e-5, rtol=1e-5)
