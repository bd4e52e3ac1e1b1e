"""One adapted model in several threads: hooks of one pass never see another pass's tensors."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapt.test_matrix import moved, small
from adapt.towers import pixels
from foveate.adapt.registry import method_names
from foveate.vision.classifier import Classifier

THREADS = 4


def in_lock_step(model: nn.Module, call: Any, inputs: list[Tensor]) -> list[Any]:
    """Call in one thread per input; all wait for each other in front of and behind every leaf module of `model`.

    So between any two hooks of a pass all other passes run theirs, which by chance happens in few calls only.
    """
    barrier = threading.Barrier(len(inputs), timeout=60)
    leaves = [module for module in model.modules() if not list(module.children())]

    def wait(*_: Any) -> None:
        barrier.wait()

    handles = [leaf.register_forward_pre_hook(wait) for leaf in leaves]
    handles += [leaf.register_forward_hook(wait) for leaf in leaves]

    def run(images: Tensor) -> Any:
        try:
            with torch.no_grad():
                return call(images)
        except BaseException:
            barrier.abort()  # the others would wait for this thread
            raise

    try:
        with ThreadPoolExecutor(len(inputs)) as pool:
            return list(pool.map(run, inputs))
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", ["timm", "clip", "dinov2"])  # one projection of q, k, v; three; LayerScale
@pytest.mark.parametrize("name", method_names())
def test_threads_give_what_one_thread_gives(name: str, family: str) -> None:
    adapted = moved(small(family, name))
    inputs = [images[None] for images in pixels(THREADS)]
    with torch.no_grad():
        expected = [adapted(images) for images in inputs]
    outputs = in_lock_step(adapted.model, adapted, inputs)
    for output, value in zip(outputs, expected, strict=True):
        assert torch.equal(output, value)


def test_a_failed_pass_leaves_nothing_behind() -> None:
    adapted = moved(small("timm", "adaptformer"))
    images = pixels()
    with torch.no_grad():
        expected = adapted(images)
        broken = adapted.model.blocks[1].mlp.fc1.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            adapted(2 * images)
        broken.remove()
        assert torch.equal(adapted(images), expected)


def test_a_classifiers_features_belong_to_their_images() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.Linear(8, 5)).eval()
    classifier = Classifier(network, head_name="2", names="abcde")
    inputs = [images[None] for images in pixels(THREADS)]
    expected = [classifier.logits_and_features(images) for images in inputs]
    outputs = in_lock_step(network, classifier.logits_and_features, inputs)
    for output, values in zip(outputs, expected, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(output, values, strict=True))
