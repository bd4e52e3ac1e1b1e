"""The captioner's batch in parts: two losses over different targets, images without texts among those with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_captioner import recipe

from foveate.caption.small.model import CaptionerModel
from foveate.caption.small.samples import packed
from foveate.caption.small.task import CaptionerTask
from foveate.training.accumulation import forward_and_backward


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(parts: int) -> None:
    model = CaptionerModel(recipe(), vocabulary=400)
    draw = np.random.default_rng(0)
    sizes = [[(3, 6), (5, 2)], [(4, 3)], [(6, 9)]]  # three of five images have texts
    texts = [[tuple(draw.integers(5, 400, n).tolist() for n in pair) for pair in image] for image in sizes]
    batch = {"image": torch.randn(5, *model.image_encoder.feature_shape).to(torch.float16), **packed(texts, pad=0)}
    batch["place_R"] = torch.tensor([0, 0, 1, 3, 4])
    batch["cells_RP"] = torch.tensor(draw.dirichlet(np.ones(4), size=5), dtype=torch.float32)
    batch["words_RW"] = torch.tensor([[0, 2], [1, -1], [2, -1], [0, -1], [1, 2]])
    found = []
    for count in (1, parts):
        model.zero_grad(set_to_none=True)
        task = CaptionerTask(model, words_W=torch.tensor([10, 20, 30]), word_weight=0.7)
        losses, report = forward_and_backward(task, task, batch, parts=count, precision=None)
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((gradients, {name: float(value) for name, value in {**losses, **report}.items()}))
    (expected, values), (in_parts, part_values) = found
    assert expected.keys() == in_parts.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            in_parts[name], gradient, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name} {m}"
        )
    assert part_values == pytest.approx(values, rel=1e-5)
