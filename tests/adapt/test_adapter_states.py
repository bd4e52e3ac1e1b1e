"""Adapters that are saved, copied or added in another state than freshly attached: merged, weakened, frozen in part."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from adapt.test_matrix import moved, small
from adapt.towers import CLASSES, FAMILIES, pixels, tower
from foveate.adapt.folder import add_adapter, load_adapter, save_adapter
from foveate.adapt.methods.lora import Pair
from foveate.adapt.methods.scales import SsfAdapter
from foveate.adapt.model import adapt
from foveate.adapt.registry import get_method, method_names
from foveate.adapt.wise import interpolated, save_at
from foveate.core.errors import UserError
from naming import raises_naming

MERGEABLE = [name for name in method_names() if get_method(name).mergeable]


@pytest.mark.parametrize("name", MERGEABLE)
def test_saved_while_merged_is_what_was_trained(name: str, tmp_path: Path) -> None:
    adapted, images = moved(small("timm", name)), pixels()
    with torch.no_grad():
        expected = adapted(images)
    trained = {key: value.clone() for key, value in adapted.adapter().tensors(adapted.backbone).items()}
    adapted.merge()
    assert not any(value.requires_grad for value in adapted.parameters())
    again = load_adapter(tower("timm"), save_adapter(adapted, tmp_path))
    with torch.no_grad():
        assert torch.equal(again(images), expected)
    adapted.unmerge()
    for key, value in adapted.adapter().tensors(adapted.backbone).items():
        assert torch.equal(value, trained[key]), key
        assert value.requires_grad, key


COPIED = [(family, "lora") for family in FAMILIES] + [("timm", name) for name in ("ssf", "bitfit", "vpt-deep")]


@pytest.mark.parametrize(("family", "name"), COPIED)
def test_a_deep_copy_runs_its_own_tensors(family: str, name: str) -> None:
    adapted, images = moved(small(family, name)), pixels()
    with torch.no_grad():
        expected = adapted(images)
    copied = copy.deepcopy(adapted)
    own = {id(value) for value in adapted.parameters()}
    assert not any(id(value) in own for value in copied.parameters())
    assert [key for key, _ in copied.named_parameters()] == [key for key, _ in adapted.named_parameters()]
    moved(copied)
    with torch.no_grad():
        assert torch.equal(adapted(images), expected)
        changed = copied(images)
        assert not torch.allclose(changed, expected, atol=1e-4)
        moved(adapted)
        assert torch.equal(copied(images), changed)
        assert torch.allclose(adapted(images), changed, atol=1e-6)
    F.cross_entropy(copied(images), torch.arange(3)).backward()
    assert all((value.grad is not None) == value.requires_grad for value in copied.parameters())
    assert all(value.grad is None for value in adapted.parameters())
    copied.detach()
    with torch.no_grad():
        assert torch.allclose(adapted(images), changed, atol=1e-6)


@pytest.mark.parametrize("name", MERGEABLE)
def test_a_deep_copy_of_a_merged_model_can_be_unmerged(name: str) -> None:
    adapted, images = moved(small("timm", name)), pixels()
    with torch.no_grad():
        expected = adapted(images)
        adapted.merge()
        merged = adapted(images)
        copied = copy.deepcopy(adapted)
        assert torch.equal(copied(images), merged)
        copied.unmerge()
        assert torch.equal(copied(images), expected)
        assert torch.equal(adapted(images), merged)


def test_a_moving_average_averages() -> None:
    adapted = small("timm", "lora")
    average = torch.optim.swa_utils.AveragedModel(adapted)
    moved(adapted)
    average.update_parameters(adapted)
    adapted.set_strength(0.0)
    with torch.no_grad():
        averaged = average(pixels())
        assert not torch.allclose(averaged, adapted(pixels()), atol=1e-4)
        adapted.set_strength(1.0)
        assert torch.allclose(averaged, adapted(pixels()), atol=1e-6)  # the first average is the model itself


def test_what_is_switched_off_is_not_copied() -> None:
    adapted = adapt(tower("timm"), "lora", classes=CLASSES)
    with adapted.disable(), raises_naming(UserError, "disable"):
        copy.deepcopy(adapted)
    copy.deepcopy(adapted)


@pytest.mark.parametrize("name", ["lora", "convpass", "fact-tk", "pfeiffer"])
def test_strength_is_saved(name: str, tmp_path: Path) -> None:
    adapted, images = moved(small("timm", name)), pixels()
    adapted.set_strength(0.5)
    with torch.no_grad():
        expected = adapted(images)
        again = load_adapter(tower("timm"), save_adapter(adapted, tmp_path / "half"))
        assert torch.equal(again(images), expected)
        assert again.adapter().strength == 0.5
        with interpolated(adapted, 0.6, head="keep") as model:
            expected = model(images)
        written = save_at(adapted, 0.6, tmp_path / "at", keep_head=True)
        assert torch.allclose(load_adapter(tower("timm"), written)(images), expected, atol=1e-6)


def test_a_strength_is_saved_and_checked(tmp_path: Path) -> None:
    adapted = moved(small("timm", "lora"))

    def config(folder: Path) -> dict[str, Any]:
        return json.loads((folder / "adapter.json").read_text(encoding="utf-8"))

    whole = save_adapter(adapted, tmp_path / "whole")
    assert config(whole)["strength"] == 1.0
    adapted.set_strength(0.5)
    half = save_adapter(adapted, tmp_path / "half")
    assert load_adapter(tower("timm"), whole).adapter().strength == 1.0
    assert load_adapter(tower("timm"), half).adapter().strength == 0.5
    for value in (None, "0.5", float("inf"), True):
        (half / "adapter.json").write_text(json.dumps({**config(half), "strength": value}), encoding="utf-8")
        with raises_naming(UserError, "strength"):
            load_adapter(tower("timm"), half)


def test_nothing_is_added_to_a_merged_model(tmp_path: Path) -> None:
    adapted = moved(small("timm", "lora"))
    saved = save_adapter(adapted, tmp_path)
    adapted.merge()
    with pytest.raises(UserError, match="unmerge it before another adapter is added"):
        adapted.add("bitfit", classes=3, name="two")
    with pytest.raises(UserError, match="unmerge it before another adapter is added"):
        add_adapter(adapted, saved, name="three")
    assert (*adapted.adapters, *adapted.heads, *adapted.info) == ("default", "default", "default")
    adapted.unmerge()
    adapted.add("bitfit", classes=3, name="two")
    add_adapter(adapted, saved, name="three")
    assert list(adapted.adapters) == ["default", "two", "three"]


def test_what_cannot_be_attached_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, images = moved(small("timm", "lora")), pixels()
    with torch.no_grad():
        expected = adapted(images)
    saved = save_adapter(small("timm", "ssf"), tmp_path)

    def refused(*_: object) -> Any:
        raise UserError("no place for a hook")

    monkeypatch.setattr(SsfAdapter, "hooks", refused)
    for add in (lambda: adapted.add("ssf", classes=3, name="two"), lambda: add_adapter(adapted, saved, name="two")):
        with pytest.raises(UserError, match="no place for a hook"):
            add()
        assert (*adapted.adapters, *adapted.heads, *adapted.info) == ("default", "default", "default")
        assert adapted.active == "default"
        with torch.no_grad():
            assert torch.equal(adapted(images), expected)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_three_projections_share_one_dropout_in_any_order(order: tuple[int, ...]) -> None:
    pair = Pair(8, 4, 0.5).train()
    with torch.no_grad():
        pair.b.weight.copy_(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).repeat(3, 1))
    first = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
    for z in (first, first, 2 * first):  # of the same input twice, too: a mask of its own each time
        parts = [pair.part(z, number, of=3) for number in order]
        assert torch.equal(parts[0], parts[1])
        assert torch.equal(parts[0], parts[2])
        copy.deepcopy(pair)  # nothing of the pass is kept


@pytest.mark.parametrize("name", ["lora", "difffit", "bitfit"])
def test_merging_and_back_leaves_frozen_what_was_frozen(name: str) -> None:
    adapted = small("timm", name)
    adapted.head.requires_grad_(False)
    next(iter(adapted.tensors().values())).requires_grad_(False)
    before = {key: value.requires_grad for key, value in adapted.named_parameters()}
    adapted.merged_weights()
    assert {key: value.requires_grad for key, value in adapted.named_parameters()} == before
    adapted.merge()
    assert not any(value.requires_grad for value in adapted.parameters())
    copied = copy.deepcopy(adapted)
    for one in (adapted, copied):
        one.unmerge()
        assert {key: value.requires_grad for key, value in one.named_parameters()} == before
