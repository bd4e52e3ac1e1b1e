"""Which conversations a sample packs: shares of groups, texts without images, images within texts, token batches."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_stages import make_toy

from foveate.core.errors import UserError
from foveate.language.packing import SLOT, PackedTexts
from foveate.mllm.preview import load_batch
from foveate.mllm.recipe import MllmRecipe, StageSettings
from foveate.mllm.samples import MllmSamples, cache_features
from foveate.mllm.task import MllmTask
from foveate.mllm.train import MllmTraining, prepare_training, train_mllm
from foveate.multimodal.prompts import PromptWriter
from foveate.multimodal.referring import RegionPrompts
from foveate.multimodal.views import ViewLayout
from foveate.records.collection import Collection
from foveate.records.conversations import Conversation, Turn, add_conversations
from foveate.training.distributed import World
from foveate.vision.feature_cache import FeatureCache
from naming import raises_naming
from tiny_mllm import make_recipe, make_tiled_recipe

INSTRUCTION = make_recipe().stages[1].model_dump()
ZERO = {"text-rich": 0, "math": 0, "code": 0, "science": 0}


@pytest.fixture(scope="module")
def mixed(asked_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny collection with conversations without images, and with images within their text."""
    path = shutil.copytree(asked_collection, tmp_path_factory.mktemp("mixed") / "shapes")
    with Collection.open(path) as collection:
        keys = [collection.keys[row] for row in collection.rows("train")]
    texts = [
        Conversation(f"text/{n}", (), (Turn("user", f"What follows {n}?"), Turn("assistant", str(n + 1))), "text")
        for n in range(10)
    ]
    episodes = [
        Conversation(
            f"episode/{n}",
            (keys[n], keys[n + 1]),
            (
                Turn("user", "<image>\nWhat is this?"),
                Turn("assistant", "red disc"),
                Turn("user", "And now <image> what?"),
                Turn("assistant", "blue disc"),
            ),
            "multi-image",
        )
        for n in range(4)
    ]
    add_conversations(path, [*texts, *episodes])
    return path


def prepare(collection: Collection, run: Path, *, recipe: MllmRecipe | None = None, **stage: Any) -> MllmTraining:
    base = recipe or make_recipe()
    stages = [{**base.stages[1].model_dump(), **stage}]
    return prepare_training(make_recipe(model=base.model.model_dump(), stages=stages), collection, run)


def test_the_image_tower_is_on_the_device_that_the_cache_computes_on(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    def fill(cache: FeatureCache) -> None:
        devices.extend(parameter.device.type for parameter in cache.encoder.parameters())

    monkeypatch.setattr(FeatureCache, "fill", fill)
    with Collection.open(mixed) as collection:
        training = prepare(collection, tmp_path / "run")
        here = World(rank=0, size=1, device=torch.device("meta"))
        cache_features(training.model, collection, training.sets, run_path=tmp_path, here=here)
    assert set(devices) == {"meta"}


def test_samples_have_the_shares_of_their_groups(mixed: Path, tmp_path: Path) -> None:
    mixture = {"alpha": {"general": 1, "refer-ground": 2, **ZERO}, "w": (0.5, 0.1, 0.4), "max_passes": 1e6}
    with Collection.open(mixed) as collection:
        training = prepare(collection, tmp_path / "run", mixture=mixture, max_conversations=2)
        stage = training.recipe.stages[0]
        samples = training.samples(stage, features=False)
        loader = training.loader(stage, samples)
        rows = np.concatenate([loader.draws(step)[:, 1] for step in range(1000)])
        counts = Counter(samples.sets[row].conversations[0].group for row in rows.tolist())
        assert stage.mixture is not None
        shares = stage.mixture.shares()
        # Chi-square with 3 degrees of freedom: 16.3 is exceeded once in 1,000 draws.
        assert (
            sum((counts[group] - 4000 * share) ** 2 / (4000 * share) for group, share in shares.items() if share) < 16.3
        )
        assert set(counts) == {"general", "refer-ground", "multi-image", "text"}
        for row in samples.rows.tolist():
            assert len({talk.group for talk in samples.sets[row].conversations}) == 1
        texts = [samples.sets[row] for row in samples.rows.tolist() if not samples.sets[row].rows]
        assert [len(group.conversations) for group in texts] == [2] * 5
        # The preview draws what the training draws.
        batch = load_batch(training, stage, step=3)
        drawn = [sample["conversations"][0].group for sample in batch.samples]
        assert drawn == [samples.sets[row].conversations[0].group for row in loader.draws(2)[:, 1].tolist()]


@pytest.mark.parametrize(
    ("mixture", "named"),
    [
        ({"alpha": {"general": 1, "refer-ground": -1}}, ("alpha", "refer-ground", "-1")),
        ({"alpha": {"refer-ground": 1}}, ("alpha", "general")),
        ({"alpha": {"general": 1, "refer-grond": 1}}, ("refer-grond", "refer-ground")),
        ({"alpha": {"general": 1}}, ("refer-ground", "alpha")),
        ({}, ("text-rich", "0 samples")),
    ],
)
def test_mixtures_that_the_data_cannot_meet_are_refused(
    mixed: Path, tmp_path: Path, mixture: dict[str, Any], named: tuple[str, ...]
) -> None:
    with Collection.open(mixed) as collection, raises_naming(UserError, *named):
        training = prepare(collection, tmp_path / "run", mixture=mixture)
        training.loader(training.recipe.stages[0], training.samples(training.recipe.stages[0], features=False))


def test_multipliers_repeat_the_samples_of_a_group(mixed: Path, tmp_path: Path) -> None:
    def count(run: str, **stage: Any) -> Counter[str]:
        training = prepare(collection, tmp_path / run, max_conversations=2, **stage)
        samples = training.samples(training.recipe.stages[0], features=False)
        rows = training.loader(training.recipe.stages[0], samples).rows
        return Counter(samples.sets[row].conversations[0].group for row in rows.tolist())

    with Collection.open(mixed) as collection:
        whole = count("whole", multipliers={"text": 1})
        counts = count("run", multipliers={"text": 3, "refer-ground": 0.2, "multi-image": 0})
        assert counts["text"] == 3 * whole["text"]
        assert counts["refer-ground"] == math.ceil(0.2 * whole["refer-ground"])
        assert counts["general"] == whole["general"]
        assert "multi-image" not in counts
        assert "multi-image" in whole
        with raises_naming(UserError, "multipliers", "math"):
            count("none", multipliers={"math": 2})


def test_a_small_group_that_is_passed_often_is_warned_of(mixed: Path, tmp_path: Path) -> None:
    mixture = {"alpha": {"general": 1, "refer-ground": 1, **ZERO}, "w": (0.1, 0.8, 0.1)}
    training_settings = {**INSTRUCTION["training"], "steps": 100}
    with Collection.open(mixed) as collection:
        training = prepare(collection, tmp_path / "run", mixture=mixture, training=training_settings)
        stage = training.recipe.stages[0]
        with pytest.warns(UserWarning, match="multi-image"):
            training.loader(stage, training.samples(stage, features=False))


def test_settings_of_samples_that_contradict_each_other_are_refused() -> None:
    for changes, named in (
        ({"mixture": {}, "groups": ["text"]}, ("mixture", "groups")),
        ({"mixture": {}, "texts": False, "alignment_weight": 1}, ("mixture", "texts")),
        ({"mixture": {}, "multipliers": {"text": 2}}, ("multipliers", "mixture")),
        ({"multipliers": {"text": 2}, "texts": False, "alignment_weight": 1}, ("multipliers", "texts")),
        ({"multipliers": {"text": -1}}, ("multipliers", "text")),
        ({"multipliers": {"txt": 2}}, ("txt", "text")),
        ({"tokens": {"max_tokens": 9, "multiple": 3}, "training": {**INSTRUCTION["training"], "accumulate": 2}},
         ("tokens.multiple", "accumulate")),
    ):  # fmt: skip
        with raises_naming(UserError, *named):
            make_recipe(stages=[{**INSTRUCTION, **changes}])


@pytest.mark.parametrize("tiles", [False, True])
def test_packed_rows_equal_one_sequence_per_conversation(mixed: Path, tmp_path: Path, tiles: bool) -> None:
    """Images in front, images within the text and no image, in one batch, with losses and gradients."""
    base = make_tiled_recipe() if tiles else make_recipe()
    with Collection.open(mixed) as collection:
        training = prepare(collection, tmp_path / "run", recipe=base, max_conversations=3)
        stage = training.recipe.stages[0]
        samples = training.samples(stage)
        sets = [samples.sets[row] for row in samples.rows.tolist()]
        picks = [
            next(number for number, group in enumerate(sets) if condition(group))
            for condition in (
                lambda group: len(group.rows) == 1,
                lambda group: group.in_text,
                lambda group: not group.rows,
                lambda group: len(group.rows) == 2 and not group.in_text,
            )
        ]
        loaded = [samples.sample(int(samples.rows[pick]), 0, 0) for pick in picks]
    assert not any(sample["left_out"] for sample in loaded)
    model = training.model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    together = states_of(training, samples, loaded)
    for row, sample in enumerate(loaded):
        start = used = 0
        for tokens in sample["tokens"]:
            count = tokens.ids.count(model.region_id) if training.prompts.regions == "tokens" else 0
            alone = {**sample, "tokens": [tokens], "regions": sample["regions"][used : used + count]}
            used += count
            expected = states_of(training, samples, [alone])[0]
            torch.testing.assert_close(together[row, start : start + len(expected)], expected, atol=3e-5, rtol=1e-3)
            start += len(expected)
    episode = loaded[1]["tokens"][0].ids
    views = len(loaded[1]["features"])
    assert episode.count(SLOT) == views * training.model.connector.num_tokens
    assert views == (2 if not tiles else views)
    # A batch without any image still gives the connector a gradient, of zeros: processes with images wait for it.
    task = MllmTask(training.model, names=training.names, stage=stage)
    task.losses(samples.collate([loaded[2]]))[0]["loss"].backward()
    gradients = [value.grad for value in training.model.connector.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def states_of(training: MllmTraining, samples: MllmSamples, loaded: list[dict[str, Any]]) -> torch.Tensor:
    """Hidden states [B, T, E] of samples."""
    batch = samples.collate(loaded)
    with torch.no_grad():
        return training.model.hidden_states(
            training.model.see(batch["features"]),
            batch["views_BK"],
            PackedTexts(*(batch[name] for name in PackedTexts._fields)),
            RegionPrompts(batch["region_boxes_R4"], batch["region_image_R"]),
            ViewLayout(*(batch[name] for name in ViewLayout._fields)),
        )


def test_all_kinds_of_samples_are_trained(mixed: Path, tmp_path: Path) -> None:
    """With a mixture, in parts, in token batches; the towers of the large recipes on batches of texts alone, too."""
    mixture = {"alpha": {"general": 1, "refer-ground": 1, **ZERO}, "max_passes": 1e6, "w": (0.2, 0.2, 0.6)}
    toy = make_toy("mm15-1b")
    stages = [
        {**stage.model_dump(), "mixture": mixture, "max_conversations": 2, "tokens": tokens}
        for stage, tokens in zip(toy.stages[1:], ({"max_tokens": 1500, "multiple": 2}, None), strict=True)
    ]
    stages[0]["training"] |= {"accumulate": 2, "steps": 6, "batch_size": 8}
    stages[1]["mixture"] = mixture | {"draw": "even"}
    with Collection.open(mixed) as collection:
        trained = train_mllm(
            toy.model_copy(update={"stages": tuple(map(StageSettings.model_validate, stages))}),
            collection,
            tmp_path / "run",
        )  # noqa: E501
    assert trained.model_folder is not None
    assert not any(stage.bad_samples for stage in trained.result.stages)
    assert trained.result.stages[0].shares["text"] == pytest.approx(0.6)
    assert trained.result.conversations["text"] == 10


def test_token_batches_hold_samples_up_to_their_tokens(mixed: Path, tmp_path: Path) -> None:
    tokens = {"max_tokens": 300, "multiple": 2, "pool": 64}
    with Collection.open(mixed) as collection:
        training = prepare(
            collection, tmp_path / "run", tokens=tokens, training={**INSTRUCTION["training"], "batch_size": 16}
        )
        stage = training.recipe.stages[0]
        samples = training.samples(stage)
        loader, lengths = training.loader(stage, samples), samples.measure_lengths()
        assert loader.token_batches is not None
        steps = loader.token_batches.count_steps()
        drawn = [loader.draws(step)[:, 0] for step in range(steps)]
        assert sum(len(rows) for rows in drawn) >= len(samples.rows) - 2 * len(drawn)
        assert len({len(rows) for rows in drawn}) > 1
        for rows, batch in zip(drawn, loader.batches(0, steps), strict=True):
            assert len(rows) * lengths[rows].max() <= 300
            layout = ViewLayout(*(batch[name] for name in ViewLayout._fields))
            actual = training.model.prefix_lengths(batch["views_BK"], layout) + (batch["text_BT"] > 0).sum(dim=1)
            assert (actual.numpy() <= lengths[rows]).all()


def test_a_region_outside_the_view_is_left_out_and_listed(
    asked_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with center_crop; however many such conversations there are, they end no training."""
    write = PromptWriter.write_conversation

    def write_most(self: PromptWriter, conversation: Conversation, *args: Any, **options: Any) -> Any:
        if conversation.id.startswith("name/") and not conversation.id.endswith("/0"):
            raise UserError("region: the model does not see this part of the image")
        return write(self, conversation, *args, **options)

    monkeypatch.setattr(PromptWriter, "write_conversation", write_most)
    training = {**INSTRUCTION["training"], "batch_size": 8, "steps": 20}
    stage = {**INSTRUCTION, "max_conversations": 100, "groups": ["general"], "training": training}
    with Collection.open(asked_collection) as collection:
        result = train_mllm(make_recipe(stages=[stage]), collection, tmp_path / "run").result
    assert result.status == "finished"
    assert len(result.stages[0].bad_samples) > 10
    assert {reason[:7] for reason in result.stages[0].bad_samples.values()} == {"region:"}


def test_answers_with_regions_need_a_box_head_or_text(asked_collection: Path, tmp_path: Path) -> None:
    model = {**make_recipe().model.model_dump(), "box_head": False}
    stages = [{**INSTRUCTION, "box_weight": 0}]
    with Collection.open(asked_collection) as collection:
        with raises_naming(UserError, "model.regions", "where/", "box_head"):
            prepare_training(make_recipe(model=model, stages=stages), collection, tmp_path / "run")
        groups = [{**stages[0], "groups": ["general"]}]
        prepare_training(make_recipe(model=model, stages=groups), collection, tmp_path / "run")


def test_a_run_goes_on_with_its_collection_alone(asked_collection: Path, tmp_path: Path) -> None:
    path = shutil.copytree(asked_collection, tmp_path / "shapes")
    with Collection.open(path) as collection:
        prepare_training(make_recipe(), collection, tmp_path / "run").run.folder.append_metrics({"step": 1})
    moved = shutil.move(path, tmp_path / "moved")
    with Collection.open(moved) as collection:
        prepare_training(make_recipe(), collection, tmp_path / "run")
    turns = Turn("user", "Who are you?"), Turn("assistant", "A model.")
    add_conversations(moved, [Conversation("who", (), turns, "text")])
    with Collection.open(moved) as collection, raises_naming(UserError, "run holds", "data.json", "collection.sha256"):
        prepare_training(make_recipe(), collection, tmp_path / "run")
