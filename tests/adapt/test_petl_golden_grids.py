"""The published grids, their order, the rule of choice and the learning rates against the study's own files."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
import torch

from adapt.official import FOLDER
from foveate.adapt.backbone import Backbone
from foveate.adapt.backbones import map_backbone
from foveate.adapt.compare.grids import DROP_PATH, GRIDS, Candidate
from foveate.adapt.compare.pricing import candidate_key, measure_candidate
from foveate.adapt.compare.recipe import max_parameters
from foveate.adapt.recipe import AdaptTraining, rate_of_epoch, released_rate
from foveate.adapt.registry import parse_settings
from foveate.metrics.agreement import argmax_last


def stored(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


NAMES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "drop_path_rate": "drop_path",
    "vpt_num": "prompts",
    "convpass_xavier_init": "convolution",
    "fact_dim": "rank",
}
TRAINING = ("learning_rate", "weight_decay", "drop_path")
ALIASES = {"lora_p_adapter": "pfeiffer", "rand_h_adapter": "houlsby", "ln": "layernorm"}
OURS = {
    "many-shot": "cifar100", "many-shot-aerial": "resisc", "many-shot-far": "clevr", "clip": "clip_imagenet",
    "many-shot-wide": "cifar100", "clip-wide": "clip_imagenet", "vtab1k": "vtab1k",
}  # fmt: skip
# Of their files these hold all; the others, those lines with published results.
WHOLE = ("vtab1k", "many-shot-aerial", "many-shot-far", "many-shot-wide", "clip-wide")
BLOCKS = 12  # of their network
LAST = {"attention_index": ["attention"], "mlp_index": ["mlp"], "block_index": ["attention", "mlp", "norms"]}


def translated(row: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in row.items():
        name = NAMES.get(key) or key.rpartition("_")[2].replace("bottleneck", "rank").replace("scaler", "scale")
        found[name] = {True: "xavier", False: "identity"}[value] if name == "convolution" else value
    return found


def ours(candidate: Candidate) -> dict[str, Any]:
    return {name: value for name, value in (candidate.method | candidate.training).items() if name != "method"}


def options(entry: dict[str, Any]) -> dict[str, list[Any]]:
    """The fields of an official entry that its grid varies or fixes beside the module's form."""
    kept = ("bottleneck", "scaler", "fact_dim", "vpt_num", "xavier_init", "lr", "wd", "drop_path_rate")
    chosen = {key: value for key, value in entry.items() if any(key.endswith(one) for one in kept)}
    return {key: value if isinstance(value, list) else [value] for key, value in sorted(chosen.items())}


def split_rows(entry: dict[str, Any]) -> dict[str, Any]:
    """Blocks, from the end, and parts of a published entry that tunes parts of the network itself."""
    return {
        name: value
        for key, parts in LAST.items()
        if key in entry
        for name, value in (("blocks", [int(n) - BLOCKS for n in re.findall(r"\d+", entry[key])]), ("parts", parts))
    }


def variant_of(name: str, entry: dict[str, Any], ours: set[str]) -> str:
    for old, new in ALIASES.items():
        name = name.replace(old, new)
    name = name.replace("_", "-")
    if parts := split_rows(entry):
        return f"{name.partition('-')[0].replace('attn', 'attention')}-last{len(parts['blocks'])}"
    # Written twice, or with a size that the others of our grid have not.
    return name if name in ours else name.rpartition("-")[0]


@pytest.mark.parametrize("name", OURS)
def test_every_line_of_a_grid_is_a_published_one_row_by_row(name: str) -> None:
    grid, published = GRIDS[name], stored("grids")[OURS[name]]
    met, unknown = set(), set()
    for line, entry in published.items():
        variant = variant_of(line, entry, set(grid.axes))
        if line == "common" or variant not in grid.axes:
            unknown.add(line)
            continue
        axes = options(published["common"] | entry)
        rows = [translated(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
        found = [ours(candidate) for candidate in grid.candidates(variant)]
        if "drop_path_rate" not in axes:
            found = [{key: value for key, value in row.items() if key != "drop_path"} for row in found]
        if found == [split_rows(entry) | row for row in rows]:
            met.add(variant)
        else:
            unknown.add(line)
    assert met == set(grid.axes)
    assert unknown == {"common"} or name not in WHOLE


# The released code's recipes, by our grid and what a user changes of it for their few-shot runs.
LONGER = {"epochs": 100, "warmup": 0.1}
RECIPES: list[tuple[str, str, dict[str, Any]]] = [
    ("default_vtab_processed", "vtab1k", {}),
    ("default_vtab_processed", "fair", {}),
    ("default_cifar100_1k", "vtab1k", {}),
    ("default_cifar100", "many-shot", {}),
    ("default_cifar100", "many-shot-wide", {}),
    ("default_cifar100_500", "many-shot", LONGER),
    ("default_resisc", "many-shot-aerial", {}),
    ("default_resisc_500", "many-shot-aerial", LONGER),
    ("default_clevr", "many-shot-far", {}),
    ("clip_fs_imagenet", "clip", {}),
    ("clip_fs_imagenet", "clip-wide", {}),
]


@pytest.mark.parametrize(("name", "grid", "changed"), RECIPES)
def test_grids_train_as_the_released_recipes_do(name: str, grid: str, changed: dict[str, Any]) -> None:
    wanted = stored("grids")["defaults"][name]
    training = AdaptTraining(**{**GRIDS[grid].training, "schedule": "osu_release", **changed})
    assert training.epochs == wanted["epoch"]
    assert training.warmup * training.epochs == pytest.approx(wanted["warmup_epoch"], abs=1e-9)
    assert training.final_learning_rate == wanted["lr_min"]
    assert training.first_learning_rate == wanted["warmup_lr_init"]
    assert training.batch_size == wanted["batch_size"]
    assert (wanted["optimizer"], training.decay) == ("adamw", "all")
    rates = training.step_schedule(10 * training.batch_size)
    assert rates is not None
    assert rates(0) * training.learning_rate == pytest.approx(wanted["warmup_lr_init"])
    if wanted.get("drop_path_rate") is not None and DROP_PATH in GRIDS[grid].axes["linear"]:
        assert wanted["drop_path_rate"] in GRIDS[grid].axes["linear"][DROP_PATH]


def test_all_released_recipes_are_met_and_our_defaults_are_theirs() -> None:
    recipes = stored("grids")["defaults"]
    assert {name for name, _, _ in RECIPES} == set(recipes)
    for entry in recipes.values():
        for name, option, key in (
            ("adaptformer", "scale", "adapter_scaler"),
            ("adaptformer", "rank", "adapter_bottleneck"),
            ("convpass", "rank", "convpass_bottleneck"),
            ("convpass", "scale", "convpass_scaler"),
            ("vpt-deep", "prompts", "vpt_num"),
            ("vpt-shallow", "dropout", "vpt_dropout"),
            ("fact-tk", "rank", "fact_dim"),
            ("fact-tt", "scale", "fact_scaler"),
            ("repadapter", "rank", "repadapter_bottleneck"),
            ("repadapter", "scale", "repadapter_scaler"),
            ("repadapter", "groups", "repadapter_group"),
        ):
            assert getattr(parse_settings(name), option) == entry[key], (name, option)
        assert (
            parse_settings("convpass").model_dump()["convolution"] == {False: "identity"}[entry["convpass_xavier_init"]]
        )


@pytest.mark.parametrize("case", stored("selection_rule_cases")["cases"], ids=lambda c: f"{c['task']}-{c['method']}")
def test_among_equal_candidates_the_last_is_chosen(case: dict[str, Any]) -> None:
    candidates = GRIDS["vtab1k"].candidates(case["method"].replace("_", "-"))
    rows = [translated(row) for row, _ in case["rows"]]
    assert [{k: v for k, v in ours(one).items() if k != "drop_path"} for one in candidates] == rows
    values = [value for _, value in case["rows"]]
    chosen = argmax_last(values)
    assert values.count(values[chosen]) == case["tied"]
    assert rows[chosen] == translated(case["selected"])


def test_what_the_study_chose_is_in_our_grids() -> None:
    checked = 0
    for name, tasks in stored("vtab1k_selected_hparams")["selected"].items():
        known = [ours(one) for one in GRIDS["vtab1k"].candidates(name.replace("_", "-"))]
        for task, row in tasks.items():
            assert {**translated(row), "drop_path": 0.1} in known, (name, task)
            checked += 1
    assert checked == 16 * 19
    places = {
        "cifar_full": "many-shot", "cifar_500": "many-shot", "resisc_full": "many-shot-aerial",
        "resisc_225": "many-shot-aerial", "clevr_dist": "many-shot-far",
    }  # fmt: skip
    assert places.keys() == stored("manyshot_results")["results"].keys()
    for place, grid in places.items():
        for name, entry in stored("manyshot_results")["results"][place].items():
            variant = name.replace("_", "-")
            rows = [ours(one) for one in GRIDS[grid].candidates(variant)]
            wanted = translated(entry["selected"])
            assert any(wanted.items() <= row.items() for row in rows), (place, name)


@pytest.mark.parametrize("case", stored("lr_schedule")["schedules"])
def test_rates_of_the_released_schedule(case: dict[str, Any]) -> None:
    given = {
        "peak": case["lr"],
        "epochs": case["epochs"],
        "warmup_epochs": case["warmup_epochs"],
        "final": case["lr_min"],
        "first": case["warmup_lr_init"],
    }
    epochs = range(case["epochs"])
    assert [released_rate(epoch, **given) for epoch in epochs] == pytest.approx(case["applied"], rel=1e-12)
    assert [rate_of_epoch(epoch, **given) for epoch in epochs] == pytest.approx(case["logged"], rel=1e-12)
    training = AdaptTraining(
        schedule="osu_release",
        epochs=case["epochs"],
        learning_rate=case["lr"],
        warmup=case["warmup_epochs"] / case["epochs"],
        final_learning_rate=case["lr_min"],
        first_learning_rate=case["warmup_lr_init"],
        batch_size=64,
    )
    factor, updates = training.step_schedule(1000), 1000 // 64
    assert factor is not None
    assert training.resolve(1000).steps == updates * case["epochs"]
    rates = [case["lr"] * factor(step) for step in range(updates * case["epochs"])]
    assert rates[::updates] == pytest.approx(case["applied"], rel=1e-12)
    assert rates[updates - 1 :: updates] == pytest.approx(case["applied"], rel=1e-12)


def test_the_released_schedule_may_start_at_rest() -> None:
    """With `first_learning_rate` 0 the released code trains its first two epochs at rate 0."""
    training = AdaptTraining(
        schedule="osu_release", epochs=4, warmup=0.5, first_learning_rate=0, batch_size=10, learning_rate=0.1
    )
    factor = training.step_schedule(20)
    assert factor is not None
    assert [factor(step) for step in (0, 2, 4)] == pytest.approx([0, 0, 0.5])


@pytest.fixture(scope="module")
def base() -> Backbone:
    """The study's network, without values."""
    import timm

    with torch.device("meta"):
        return map_backbone(timm.create_model("vit_base_patch16_224", num_classes=0))


def test_sizes_of_all_published_runs(base: Backbone) -> None:
    """What our modules train beside the head is what the study's files say, at every choice that was published."""
    wanted: dict[str, tuple[dict[str, Any], int]] = {}
    chosen, results = stored("vtab1k_selected_hparams")["selected"], stored("vtab1k_results")["results"]
    for name, tasks in chosen.items():
        for task, row in tasks.items():
            own = {key: value for key, value in translated(row).items() if key not in TRAINING}
            options = {"method": name, **own}
            wanted[json.dumps(options)] = options, results[name][task]["inserted_parameters"]
    for entries in stored("manyshot_results")["results"].values():
        for variant, entry in entries.items():
            name, _, size = variant.rpartition("_")
            options = {"method": name, "rank": int(size)} if size.isdigit() else {"method": variant}
            wanted[json.dumps(options)] = options, entry["inserted_parameters"]
    assert len(wanted) > 60
    for options, size in wanted.values():
        assert measure_candidate(options, base).trained == size, options


def test_published_runs_of_clip_are_in_our_grid_and_of_its_sizes() -> None:
    import timm

    with torch.device("meta"):
        clip = map_backbone(timm.create_model("vit_base_patch16_clip_224", num_classes=0))
    results = stored("clip_wise_results")["results"]
    for name, entry in results.items():
        runs = [one for key, one in entry.items() if key.endswith("_result") and not key.startswith("merge")]
        if name == "zero_shot":
            assert {one["inserted_parameters"] for one in runs} == {0}
            continue
        variant = ALIASES.get(name, name).removesuffix("_32").replace("_", "-")
        [plain, varied] = GRIDS["clip"].candidates(variant)
        assert (plain.training["drop_path"], varied.training["drop_path"]) == (0.0, 0.1)
        for one in runs:
            assert translated(one["best_tune"]).items() <= ours(plain).items(), name
            assert one["inserted_parameters"] == measure_candidate(plain.method, clip).trained, name
    assert len(results) == 13


def test_the_budget_of_the_study_allows_its_whole_grid(base: Backbone) -> None:
    most = max_parameters("1.5%", 85_798_656)
    assert most == 1_286_979
    for variant in GRIDS["vtab1k"].axes:
        found = {candidate_key(one): one.method for one in GRIDS["vtab1k"].candidates(variant)}
        sizes = [measure_candidate(options, base).trained for options in found.values()]
        assert max(sizes) <= most or variant == "full", variant
