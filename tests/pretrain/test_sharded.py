"""The losses over two processes: the golden and the single process again, with half of the work each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from loss_ranks import CHUNKS, GOLDEN, REGION_CASES, SPLITS, pair_case, region_case, task_flops
from processes import run_processes
from safetensors.torch import load_file

INDEX = json.loads((GOLDEN.parent / "index.json").read_text(encoding="utf-8"))
ENTRY = next(entry for entry in INDEX["files"] if entry["file"] == GOLDEN.name)
DTYPES = ("float64", "float32")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of all cases."""
    folder = tmp_path_factory.mktemp("losses")
    run_processes(Path(__file__).resolve().parent / "loss_ranks.py", folder, world_size=2)
    return folder


def ranks(folder: Path, case: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(folder / f"{case}-rank-{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_golden_of_real_processes(dtype: str, chunk: int | None, two_ranks: Path) -> None:
    found, golden = ranks(two_ranks, f"pairs-softmax-{dtype}-{chunk}"), np.load(GOLDEN, allow_pickle=False)
    (case,), close = ENTRY["cases"], {"rtol": 0, "atol": ENTRY["tolerance"][dtype]}
    for rank in found:
        np.testing.assert_allclose(rank["loss"].item(), case["single_loss"], **close)
    for name, side in (("image", "dimg"), ("text", "dtxt")):
        raw = torch.cat([rank[f"grad/{name}"] for rank in found]).numpy()
        np.testing.assert_allclose(raw, golden[f"w0_local0_grad1_{side}"], **close)
        np.testing.assert_allclose(raw / 2, golden[f"w0_single_{side}"], **close)
    scale = sum(rank["grad/scale"].item() for rank in found) / 2
    np.testing.assert_allclose(scale, case["single_d_logit_scale"], **close)


def check_equal(found: list[dict[str, torch.Tensor]], single: dict[str, torch.Tensor], *, atol: float) -> None:
    """Losses on every rank, and gradients after the mean over ranks, are those of the single process."""
    for name, value in single.items():
        if name == "flops":
            continue
        if name.startswith("grad/"):
            shared = name in ("grad/scale", "grad/bias")
            joined = sum(rank[name] for rank in found) if shared else torch.cat([rank[name] for rank in found])
            torch.testing.assert_close(joined / 2, value, rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")
        else:
            for rank in found:
                torch.testing.assert_close(
                    rank[name], value, rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
                )


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_pairs_equal_one_process_with_half_of_the_work(loss: str, chunk: int | None, two_ranks: Path) -> None:
    found, single = ranks(two_ranks, f"pairs-{loss}-float64-{chunk}"), pair_case(loss, torch.float64, chunk)
    check_equal(found, single, atol=1e-12)
    assert [2 * rank["flops"].item() for rank in found] == [single["flops"].item()] * 2


@pytest.mark.parametrize("case", REGION_CASES)
def test_ragged_regions_equal_one_process_with_their_rows_of_the_work(case: str, two_ranks: Path) -> None:
    found, single = ranks(two_ranks, case), region_case(case)
    assert single["masked"].item() == pytest.approx(0.0 if "none" in case.split("-")[2] else 4 / 42)
    check_equal(found, single, atol=1e-10)
    for rank, count in zip(found, SPLITS[REGION_CASES[case][-1]], strict=True):
        share = single["flops"].item() * count / 7
        # What fits into one block is not computed again for the backward pass.
        assert share / 2 <= rank["flops"].item() <= share


def test_a_rank_of_the_task_has_its_share_of_the_matrices(two_ranks: Path) -> None:
    whole = task_flops()["flops"].item()
    assert whole > 0
    assert [2 * rank["flops"].item() for rank in ranks(two_ranks, "task")] == [whole, whole]
