"""Scores, numeric networks and training steps against the numbers of the released code of COSMO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foveate.species.links import LinkModel, NumericMLP, Relation, mlp_widths
from foveate.species.passes import LinkTask
from foveate.species.score import ConvE
from foveate.training.loop import BestEvaluation
from foveate.training.optimizer import build_optimizer, parameter_table
from foveate.training.settings import TrainingSettings

FOLDER = Path(__file__).resolve().parents[1] / "goldens" / "cosmo"
RELATIONS = {"image_id": Relation.SPECIES, "id_id": Relation.PARENT}
RELATIONS |= {"image_location": Relation.LOCATION, "image_time": Relation.TIME}


class TinyNetwork(nn.Module):
    """The encoder that stands for ResNet in the goldens: tanh(conv 1x1), flattened, linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(512, dim)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.conv(pixels)).flatten(1))


def rename(name: str) -> str:
    """Return our name of an official parameter."""
    if ".mlp." in name:
        owner, _, rest = name.partition(".mlp.")
        index, kind = rest.split(".")
        # The official layers come in threes, with a dropout of 0 in the middle.
        index = str(int(index) // 3 * 2 + (int(index) % 3 == 2))
        return f"{ {'location_embedding': 'places', 'time_embedding': 'hours'}[owner] }.mlp.{index}.{kind}"
    for official, ours in (("ent_embedding", "entities"), ("rel_embedding", "relations"), ("image_embedding", "image")):
        if name.startswith(official):
            return ours + name.removeprefix(official)
    return f"score.{name}"


def build(arrays: dict[str, Any], prefix: str, *, dtype: torch.dtype, score: Any = "distmult") -> LinkModel:
    weights = {
        rename(name.removeprefix(prefix)): torch.from_numpy(value)
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
    head = prefix.removesuffix("w.").removesuffix("init.")
    entities, dim = weights["entities.weight"].shape
    model = LinkModel(
        TinyNetwork(dim),
        num_entities=entities,
        targets=arrays[f"{head}target_list"].tolist(),
        dim=dim,
        score=score,
        places_NF=torch.from_numpy(arrays[f"{head}all_locs"]),
        hours_NF=torch.from_numpy(arrays[f"{head}all_hours"]),
    )
    model.load_state_dict(weights)
    return model.to(dtype)


def load(name: str) -> dict[str, Any]:
    with np.load(FOLDER / name) as file:
        return dict(file)


def test_widths_of_numeric_networks() -> None:
    for case in json.loads((FOLDER / "mlp_widths.json").read_text()):
        inputs, outputs, layers = case["input_dim"], case["output_dim"], case["num_layers"]
        network = NumericMLP(inputs, outputs, layers)
        shapes = [list(module.weight.shape) for module in network.mlp if isinstance(module, nn.Linear)]
        assert shapes == case["linear_shapes_out_in"]
        assert mlp_widths(inputs, outputs, layers) == [shape[0] for shape in shapes]
        assert sum(p.numel() for p in network.parameters()) == case["n_parameters"]
        assert sum(isinstance(module, nn.PReLU) for module in network.mlp) == case["n_prelu"]


@pytest.mark.parametrize("case", [f"c{number}" for number in range(5)])
def test_outputs_of_numeric_networks(case: str) -> None:
    arrays = load("mlp_forward.npz")
    network = NumericMLP(*arrays[f"{case}.meta"].tolist())
    start = f"{case}.w."
    weights = {
        rename(f"location_embedding.{name.removeprefix(start)}").removeprefix("places."): torch.from_numpy(value)
        for name, value in arrays.items()
        if name.startswith(start)
    }
    network.load_state_dict(weights)
    x = torch.from_numpy(arrays[f"{case}.x"])
    y32 = arrays[f"{case}.y32"]
    np.testing.assert_allclose(network(x).detach().numpy(), y32, rtol=2e-4, atol=1e-5 * abs(y32).max())
    np.testing.assert_allclose(network.double()(x.double()).detach().numpy(), arrays[f"{case}.y64"], rtol=1e-9)


@pytest.mark.parametrize("case", ["c0", "c1"])
@pytest.mark.parametrize("name", ["distmult", "conve"])
@pytest.mark.parametrize("bits", [32, 64])
def test_scores_of_the_four_relations(name: str, case: str, bits: int) -> None:
    arrays = load(f"scores_{name}.npz")
    dtype = {32: torch.float32, 64: torch.float64}[bits]
    rows = {"c0": 5, "c1": 4}[case]
    score = ConvE(20, rows=rows, dropouts=(0, 0, 0)) if name == "conve" else name
    model = build(arrays, f"{case}.w.", dtype=dtype, score=score).eval()
    images, heads = torch.from_numpy(arrays[f"{case}.image"]).to(dtype), torch.from_numpy(arrays[f"{case}.head_id"])
    checked = 0
    for mode in ("score", "train_score") if name == "conve" else ("score",):
        for official, relation in RELATIONS.items():
            expected = arrays.get(f"{case}.{mode}_{official}_f{bits}")
            model.train(mode == "train_score")
            scores = model(heads if relation is Relation.PARENT else images, relation).detach().numpy()
            rtol, atol = (1e-9, 0.0) if bits == 64 else (1e-3, 1e-5 * float(np.abs(expected).max()))
            np.testing.assert_allclose(scores, expected, rtol=rtol, atol=atol, err_msg=f"{mode} {official}")
            checked += 1
    assert checked == (8 if name == "conve" else 4)
    if name == "distmult" and bits == 64:
        vectors = model.image(images).detach().numpy()
        np.testing.assert_allclose(vectors, arrays[f"{case}.image_embedding_f64"], rtol=1e-9)


RUNS = ("all_contexts", "all_contexts_official_init", "all_contexts_zero_grads", "loc_time_no_tax", "species_only")


# The loop sets gradients to None between batches, so it has no run of zeroed ones.
@pytest.mark.parametrize(
    ("run", "optimizer"), [(run, "adam") for run in RUNS] + [(run, "loop") for run in RUNS if "zero" not in run]
)
def test_training_steps(run: str, optimizer: str) -> None:
    """Plain Adam repeats the released code bit for bit; the loop's fused kernel rounds differently in the last bit."""
    arrays = load(f"train_{run}.npz")
    model = build(arrays, "init.", dtype=torch.float64)
    task = LinkTask(model, image_rate_scale=3e-5 / 1e-3)
    settings = TrainingSettings(steps=9, batch_size=4, learning_rate=1e-3, weight_decay=0, betas=(0.9, 0.999), eps=1e-8)
    table = parameter_table(task, rules=task.parameter_groups(), settings=settings)
    if optimizer == "loop":
        adam: torch.optim.Optimizer = build_optimizer(task, table=table, settings=settings)
        for group in adam.param_groups:
            group["lr"] = 1e-3 * group["learning_rate_scale"]
    else:
        named = dict(task.named_parameters())
        adam = torch.optim.Adam(
            [{"params": [named[row.name]], "lr": 3e-5 if row.learning_rate_scale < 1 else 1e-3} for row in table]
        )
    names = [name.removeprefix("init.") for name in arrays if name.startswith("init.")]
    for number, loss in enumerate(arrays["losses"]):
        relation = Relation(int(arrays[f"batch{number:02}.rel"][0, 0]))
        inputs = torch.from_numpy(arrays[f"batch{number:02}.head"])
        inputs = inputs if relation is Relation.PARENT else inputs.double()
        labels = torch.from_numpy(arrays[f"batch{number:02}.label"])
        losses, _ = task.losses({"relation": relation, "inputs": inputs, "labels": labels})
        losses["loss"].backward()
        adam.step()
        adam.zero_grad(set_to_none=not run.endswith("zero_grads"))
        np.testing.assert_allclose(losses["loss"].item(), loss, rtol=1e-6)
        state = model.state_dict()
        if any(name.startswith(f"after{number:02}.") for name in arrays):
            for name in names:
                value, expected = state[rename(name)].numpy(), arrays[f"after{number:02}.{name}"]
                # The tolerance of the goldens: equal in all bits on some processors, in all but the last on others.
                np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-10, err_msg=f"step {number}, {name}")


def test_steps_that_each_parameter_took() -> None:
    arrays = load("train_all_contexts.npz")
    model = build(arrays, "init.", dtype=torch.float64)
    task = LinkTask(model)
    adam = torch.optim.Adam(task.parameters())
    for number in range(len(arrays["losses"])):
        relation = Relation(int(arrays[f"batch{number:02}.rel"][0, 0]))
        inputs = torch.from_numpy(arrays[f"batch{number:02}.head"])
        inputs = inputs if relation is Relation.PARENT else inputs.double()
        batch = {"relation": relation, "inputs": inputs, "labels": torch.from_numpy(arrays[f"batch{number:02}.label"])}
        task.losses(batch)[0]["loss"].backward()
        adam.step()
        adam.zero_grad()
    steps = {name: int(adam.state[p]["step"]) if adam.state[p] else 0 for name, p in model.named_parameters()}
    assert steps["entities.weight"] == 2
    assert steps["relations.weight"] == 4
    assert {value for name, value in steps.items() if name.startswith("image.")} == {3}
    assert {value for name, value in steps.items() if name.startswith(("places.", "hours."))} == {1}


def test_early_stopping_takes_a_tie_as_improvement() -> None:
    for case in json.loads((FOLDER / "early_stopping.json").read_text()):
        settings = TrainingSettings(
            steps=99,
            batch_size=1,
            learning_rate=1.0,
            evaluate_every=1,
            monitor="accuracy",
            monitor_mode="max",
            ties="later",
            patience=case["patience"],
        )
        best, stopped, checkpoints = BestEvaluation(), None, []
        for epoch, value in enumerate(case["val_accuracy"]):
            best.update(value, step=epoch + 1, settings=settings)
            checkpoints.append(best.step - 1)
            if best.is_exhausted(settings):
                stopped = epoch
                break
        assert stopped == case["stops_after_epoch"]
        assert checkpoints == case["epoch_in_best_checkpoint_after_each_epoch"]
