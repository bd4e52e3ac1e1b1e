"""Devices by name, and the number formats that are fast on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveate.core.devices import (
    PRECISIONS,
    autocast_dtype,
    choose_device,
    device_name,
    emulates_bf16,
    fast_precision,
    precision_of,
)
from foveate.core.errors import UserError
from foveate.core.recipes import recipe_names, recipe_path
from naming import raises_naming

CPU = torch.device("cpu")


def test_names_of_devices() -> None:
    assert device_name("auto", cuda_devices=0, mps=True) == "cpu"
    assert device_name("auto", cuda_devices=2, mps=False, local_rank=1) == "cuda:1"
    assert device_name("cuda:0", cuda_devices=2, mps=False, local_rank=1) == "cuda:0"
    assert device_name("mps", cuda_devices=0, mps=True) == "mps"
    for name, said in (
        ("cuda", "'cuda'.*without CUDA"),
        ("mps", "'mps' is not available"),
        ("tpu", "unknown device 'tpu'"),
    ):
        with pytest.raises(UserError, match=said):
            device_name(name, cuda_devices=0, mps=False)
    with raises_naming(UserError, "cuda:2", "2", "cuda:0", "cuda:1"):
        device_name("cuda:2", cuda_devices=2, mps=False)


def test_a_device_is_chosen_among_those_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with raises_naming(UserError, "cuda", "PyTorch"):
        choose_device("cuda:1")
    with raises_naming(UserError, "gpu"):
        choose_device("gpu")


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"sve_bf16": True}, torch.bfloat16),
        (None, torch.float32),  # a torch that does not tell
    ],
)
def test_precision_follows_the_processor(
    capabilities: dict[str, bool] | None, fast: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fast_precision(CPU) == fast
    assert [precision_of(name, CPU) for name in PRECISIONS] == [fast, torch.bfloat16, torch.float32]
    assert autocast_dtype("auto", CPU) == (torch.bfloat16 if fast == torch.bfloat16 else None)
    assert autocast_dtype("bf16", CPU) == torch.bfloat16
    assert autocast_dtype("fp32", CPU) is None


@pytest.mark.parametrize(
    ("capabilities", "emulates"),
    [
        ({"architecture": "x86_64", "avx2": True}, True),
        ({"architecture": "x86_64", "amx_bf16": True}, False),
        ({"architecture": "arm"}, False),  # what is fast there was not measured
        ({}, False),
    ],
)
def test_emulation_is_told_where_it_is_known(
    capabilities: dict[str, Any], emulates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert emulates_bf16(CPU) == emulates
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not emulates_bf16(CPU)


def test_recipes_for_any_machine_leave_the_precision_to_it() -> None:
    """Without instructions for it, bfloat16 products take 30 times as long as float32 ones."""
    on_accelerators = ("clip-vit", "cloc-vit", "ferret-v2", "ferret-on-llava", "mm15")
    small = [name for name in recipe_names() if not name.startswith(on_accelerators)]
    assert {"tour", "mini", "mllm-own", "captioner", "species"} <= set(small)
    assert not [name for name in small if " precision: bf16" in recipe_path(name).read_text(encoding="utf-8")]
