"""Invariants of the training task (specification 7.2), on one process and on two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from batches import COUNTS, build_task, make_batch, reordered
from processes import run_processes
from safetensors.torch import load_file
from torch import nn

from foveate.pretrain.losses import clip_loss
from foveate.pretrain.task import PretrainTask
from foveate.training.accumulation import forward_and_backward
from foveate.training.optimizer import parameter_table

METHODS = ("none", "prompter", "roi")


def gradients(task: PretrainTask) -> dict[str, torch.Tensor | None]:
    return {name: parameter.grad for name, parameter in task.named_parameters()}


@pytest.mark.parametrize("method", ["prompter", "roi"])
def test_without_labeled_images_the_total_is_the_clip_loss_bit_for_bit(method: str) -> None:
    task = build_task(regions={"method": method})
    batch = make_batch(task.model, (0,) * 8)
    losses, report = task(batch)
    assert report["labeled_images"] == 0
    assert torch.equal(losses["loss"], losses["clip_loss"])
    assert losses["region_loss"] == 0
    losses["loss"].backward()
    towers = ("model.image_encoder", "model.text_encoder", "model.log_scale")
    for name, gradient in gradients(task).items():
        if not name.startswith(towers):
            assert gradient is not None, f"{name}: distributed training would wait for it"
            assert not gradient.any(), name
    clip_only = build_task(regions={"method": "none"})
    clip_only.load_state_dict({k: v for k, v in task.state_dict().items() if k in clip_only.state_dict()})
    found, _ = clip_only(batch)
    assert torch.equal(found["loss"], losses["loss"])


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_takes_part(method: str) -> None:
    task = build_task(regions={"method": method})
    losses, _ = task(make_batch(task.model))
    losses["loss"].backward()
    assert not [name for name, gradient in gradients(task).items() if gradient is None]


@pytest.mark.parametrize("method", ["prompter", "roi"])
def test_order_does_not_matter(method: str) -> None:
    task = build_task(regions={"method": method})
    batch = make_batch(task.model)
    losses, _ = task(batch)
    shuffled, _ = task(reordered(batch, [5, 3, 0, 7, 1, 6, 2, 4], backwards=True))
    assert set(losses) == set(shuffled)
    for name, value in losses.items():
        torch.testing.assert_close(shuffled[name], value, rtol=1e-6, atol=2e-6)


def test_a_region_does_not_see_the_others() -> None:
    task = build_task()
    batch = make_batch(task.model)
    model = task.model.eval()
    with torch.no_grad():
        tokens = model.image_encoder(batch["image"])
        together = model.encode_regions(tokens, batch["boxes_R4"], batch["image_index_R"])
        for region in range(len(together)):
            alone = model.encode_regions(
                tokens, batch["boxes_R4"][region : region + 1], batch["image_index_R"][region : region + 1]
            )
            torch.testing.assert_close(alone[0], together[region], rtol=0, atol=1e-5)


def test_one_region_per_image_reduces_to_the_clip_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """M = 1, z = the image's own embedding, phrase = its text, no filter."""
    task = build_task(regions={"method": "roi", "filter": "none"}, data={"regions_per_image": 1})
    batch = make_batch(task.model, (1,) * 8)
    batch["region_text"] = batch["text"]
    monkeypatch.setattr(task.model, "encode_regions", lambda tokens, boxes, index: tokens.pooled[index])
    losses, _ = task(batch)
    torch.testing.assert_close(losses["region_loss"], losses["clip_loss"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(losses["loss"], 2 * losses["clip_loss"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_one_image_forward_per_image(method: str) -> None:
    task = build_task(regions={"method": method})
    seen: list[int] = []
    task.model.image_encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    task(make_batch(task.model, (4,) * 8))
    assert seen == [8]


def test_the_total_is_the_weighted_sum() -> None:
    task = build_task(regions={"grounding_weight": 7.0, "lambda_scale": 0.5})
    losses, report = task(make_batch(task.model))
    labeled = sum(count > 0 for count in COUNTS) / len(COUNTS)
    assert report["labeled_images"] == pytest.approx(labeled)
    assert report["regions"] == sum(COUNTS)
    expected = losses["clip_loss"] + 0.5 * labeled * (losses["region_loss"] + 7.0 * losses["grounding_loss"])
    torch.testing.assert_close(losses["loss"], expected)


def test_clip_term_is_open_clips() -> None:
    task = build_task()
    batch = make_batch(task.model)
    losses, report = task(batch)
    with torch.no_grad():
        image = F.normalize(task.model.image_encoder(batch["image"]).pooled, dim=-1)
        text = F.normalize(task.model.text_encoder(torch.cat([batch["text"], batch["region_text"]]))[:8], dim=-1)
    torch.testing.assert_close(losses["clip_loss"].detach(), clip_loss(image, text, report["logit_scale"]))


def test_filters_leave_out_equal_phrases() -> None:
    regions = sum(COUNTS)
    for name, masked in (("exact", 2), ("none", 0)):
        task = build_task(regions={"filter": name})
        _, report = task(make_batch(task.model))
        assert float(report["masked_negatives"]) == pytest.approx(masked / (regions * (regions - 1)))


def test_own_temperature_and_chunks() -> None:
    whole = build_task(regions={"row_chunk": None, "own_temperature": True})
    parts = build_task(regions={"row_chunk": 2, "own_temperature": True})
    parts.load_state_dict(whole.state_dict())
    batch = make_batch(whole.model)
    expected, found = whole(batch)[0], parts(batch)[0]
    expected["loss"].backward()
    found["loss"].backward()
    torch.testing.assert_close(found["loss"], expected["loss"])
    there, here = gradients(whole), gradients(parts)
    assert there["model.region_log_scale"] is not None
    for name in there:
        torch.testing.assert_close(here[name], there[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_parts_of_a_batch_give_the_step_of_the_whole(method: str, parts: int) -> None:
    """The same losses and gradients; the fifth image and those behind it have no regions."""
    changes: dict[str, Any] = {"regions": {"method": method, "filter": "embedding", "own_temperature": True}}
    whole, split = build_task(**changes), build_task(**changes)
    batch = make_batch(whole.model)
    expected, told = forward_and_backward(whole, whole, batch, parts=1, precision=None)
    found, said = forward_and_backward(split, split, batch, parts=parts, precision=None)
    assert set(found) == set(expected)
    assert set(said) == set(told)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    there = gradients(whole)
    for name, gradient in gradients(split).items():
        assert gradient is not None, name
        torch.testing.assert_close(
            gradient, there[name], rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    naive = build_task(**changes)
    for part in naive.split(batch, parts):
        losses, _ = naive(part)
        losses["loss"].backward()
    weight = "model.image_encoder.visual.proj"
    gap = (gradients(naive)[weight] / parts - there[weight]).norm() / there[weight].norm()  # type: ignore[operator]
    assert gap > 0.05, "without the other parts' negatives it is another gradient"


@pytest.mark.slow
def test_memory_falls_with_the_parts() -> None:
    script = Path(__file__).resolve().parent / "accumulation_memory.py"
    whole, quarter = (
        float(subprocess.run([sys.executable, script, parts], capture_output=True, text=True, check=True).stdout)
        for parts in ("1", "4")
    )
    assert quarter < 0.5 * whole, f"{quarter:.0f} MB, {whole:.0f} MB as a whole"


def test_the_parts_of_a_batch_are_its_images_with_their_regions() -> None:
    task = build_task()
    batch = make_batch(task.model)
    parts = task.split(batch, 3)
    assert [len(part["image"]) for part in parts] == [3, 2, 3]
    for name in ("image", "text", "counts_B", "boxes_R4", "phrase_ids_R"):
        assert torch.equal(torch.cat([part[name] for part in parts]), batch[name])
    for part in parts:
        assert torch.equal(part["image_index_R"].bincount(minlength=len(part["image"])), part["counts_B"])


def test_both_passes_draw_the_same_dropout() -> None:
    """With a text tower that drops out, the second pass must see the embeddings of the first."""

    class Noisy(nn.Module):
        def __init__(self, tower: nn.Module) -> None:
            super().__init__()
            self.tower = tower
            self.seen: list[torch.Tensor] = []

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            self.seen.append(F.dropout(self.tower(ids), 0.3, training=True))
            return self.seen[-1]

    task = build_task()
    noisy = Noisy(task.model.text_encoder)
    task.model.text_encoder = noisy  # type: ignore[assignment]
    forward_and_backward(task, task, make_batch(build_task().model), parts=2, precision=None)
    captions_1, phrases_1, captions_2, phrases_2 = noisy.seen[:4]
    for first, second in zip((captions_1, phrases_1, captions_2, phrases_2), noisy.seen[4:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(captions_1 == 0, captions_2 == 0)


def test_units_of_sharding_are_layers_however_they_are_nested() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])

    task = build_task()
    task.model.text_encoder.stages = nn.ModuleList([nn.ModuleList([Layer()]), nn.ModuleList([Layer()])])
    units = list(task.shard_units())
    kinds = [type(unit).__name__ for unit in units]
    assert "ModuleList" not in kinds, "a list is never called"
    assert len(set(map(id, units))) == len(units)
    assert kinds.count("Layer") == 2
    assert kinds.count("Linear") == 4
    assert min(kinds.index("Linear"), kinds.index("Layer")) == kinds.index("Linear"), "inner ones first"


def test_temperatures_do_not_decay() -> None:
    task = build_task(regions={"own_temperature": True})
    table = parameter_table(task, rules=task.parameter_groups(), settings=task.recipe.training)
    decays = {row.name: row.weight_decay for row in table}
    assert decays["model.log_scale"] == decays["model.region_log_scale"] == 0
    assert decays["model.prompter.proj.weight"] == task.recipe.training.weight_decay


@pytest.mark.parametrize("method", ["prompter", "roi"])
def test_bf16_is_near_fp32(method: str) -> None:
    task = build_task(regions={"method": method})
    batch = make_batch(task.model)
    exact, _ = task(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = task(batch)
    for name, value in rough.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=0.02)


# The last number: parts of each process's half of the batch.
CASES = (
    "prompter-embedding-ddp-1",
    "prompter-embedding-ddp-3",
    "roi-exact-ddp-2",
    "prompter-exact-fsdp-1",
    "prompter-exact-fsdp-2",
)


def run_two_ranks(folder: Path, *cases: str) -> Path:
    """Write what two processes make of the cases."""
    run_processes(Path(__file__).resolve().parent / "task_ranks.py", folder, *cases, world_size=2)
    return folder


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of all cases but the last."""
    return run_two_ranks(tmp_path_factory.mktemp("ranks"), *CASES[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[:-1])
def test_two_ranks_one_without_regions_equal_one_process(case: str, two_ranks: Path) -> None:
    check_two_ranks(case, two_ranks)


def test_two_ranks_in_parts_and_shards_equal_one_process(tmp_path: Path) -> None:
    check_two_ranks(CASES[-1], run_two_ranks(tmp_path, CASES[-1]))


def check_two_ranks(case: str, two_ranks: Path) -> None:
    method, filter_name, *_ = case.split("-")
    task = build_task(regions={"method": method, "filter": filter_name})
    losses, _ = task(make_batch(task.model))
    losses["loss"].backward()
    single = {f"loss/{name}": value.detach().reshape(1) for name, value in losses.items()}
    single |= {f"grad/{name}": gradient for name, gradient in gradients(task).items() if gradient is not None}
    for rank in range(2):
        found = load_file(two_ranks / f"{case}-rank-{rank}.safetensors")
        assert set(found) == set(single)
        for name, value in single.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
