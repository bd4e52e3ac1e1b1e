"""Invariants of the training task (specification 7.2), on one process and on two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from batches import COUNTS, build_task, make_batch, reordered
from processes import run_processes
from safetensors.torch import load_file

from foveate.pretrain.losses import clip_loss
from foveate.pretrain.task import PretrainTask
from foveate.training.optimizer import parameter_table

METHODS = ("none", "prompter", "roi")


def gradients(task: PretrainTask) -> dict[str, torch.Tensor | None]:
    return {name: parameter.grad for name, parameter in task.named_parameters()}


@pytest.mark.parametrize("method", ["prompter", "roi"])
def test_without_labelled_pictures_the_total_is_the_clip_loss_bit_for_bit(method: str) -> None:
    task = build_task(regions={"method": method})
    batch = make_batch(task.model, (0,) * 8)
    losses, report = task(batch)
    assert report["labelled_pictures"] == 0
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


def test_one_region_per_picture_reduces_to_the_clip_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """M = 1, z = the picture's own embedding, phrase = its text, no filter."""
    task = build_task(regions={"method": "roi", "filter": "none"}, data={"regions_per_picture": 1})
    batch = make_batch(task.model, (1,) * 8)
    batch["region_text"] = batch["text"]
    monkeypatch.setattr(task.model, "encode_regions", lambda tokens, boxes, index: tokens.embedding_BE[index])
    losses, _ = task(batch)
    torch.testing.assert_close(losses["region_loss"], losses["clip_loss"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(losses["loss"], 2 * losses["clip_loss"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_one_image_forward_per_picture(method: str) -> None:
    task = build_task(regions={"method": method})
    seen: list[int] = []
    task.model.image_encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    task(make_batch(task.model, (4,) * 8))
    assert seen == [8]


def test_the_total_is_the_weighted_sum() -> None:
    task = build_task(regions={"grounding_weight": 7.0, "lambda_scale": 0.5})
    losses, report = task(make_batch(task.model))
    labelled = sum(count > 0 for count in COUNTS) / len(COUNTS)
    assert report["labelled_pictures"] == pytest.approx(labelled)
    assert report["regions"] == sum(COUNTS)
    expected = losses["clip_loss"] + 0.5 * labelled * (losses["region_loss"] + 7.0 * losses["grounding_loss"])
    torch.testing.assert_close(losses["loss"], expected)


def test_clip_term_is_open_clips() -> None:
    task = build_task()
    batch = make_batch(task.model)
    losses, report = task(batch)
    with torch.no_grad():
        image = F.normalize(task.model.image_encoder(batch["image"]).embedding_BE, dim=-1)
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


def test_temperatures_do_not_decay() -> None:
    task = build_task(regions={"own_temperature": True})
    table = parameter_table(task, rules=task.parameter_groups(), settings=task.model.recipe.training)
    decays = {row.name: row.weight_decay for row in table}
    assert decays["model.log_scale"] == decays["model.region_log_scale"] == 0
    assert decays["model.prompter.proj.weight"] == task.model.recipe.training.weight_decay


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


CASES = ("prompter-embedding-ddp", "roi-exact-ddp", "prompter-exact-fsdp")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    run_processes(Path(__file__).resolve().parent / "task_ranks.py", folder, *CASES, world_size=2)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_one_without_regions_equal_one_process(case: str, two_ranks: Path) -> None:
    method, filter_name, _ = case.split("-")
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
