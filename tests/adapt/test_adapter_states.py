"""Adapters that are saved, copied or added in another state than freshly attached: merged, weakened, frozen in part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapt.test_matrix import moved, small
from adapt.towers import pixels, tower
from foveate.adapt.folder import load_adapter
from foveate.adapt.registry import method, method_names

MERGEABLE = [name for name in method_names() if method(name).mergeable]


@pytest.mark.parametrize("name", MERGEABLE)
def test_saved_while_merged_is_what_was_trained(name: str, tmp_path: Path) -> None:
    adapted, images = moved(small("timm", name)), pixels()
    with torch.no_grad():
        expected = adapted(images)
    trained = {key: value.clone() for key, value in adapted.adapter().tensors(adapted.view).items()}
    adapted.merge()
    assert not any(value.requires_grad for value in adapted.parameters())
    again = load_adapter(tower("timm"), adapted.save(tmp_path))
    with torch.no_grad():
        assert torch.equal(again(images), expected)
    adapted.unmerge()
    for key, value in adapted.adapter().tensors(adapted.view).items():
        assert torch.equal(value, trained[key]), key
        assert value.requires_grad, key
