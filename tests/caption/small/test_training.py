"""Training: stages, resume bit for bit, the loss on target tokens alone, the folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from made_captioner import recipe
from safetensors.torch import load_file

from foveate.caption.small import train as train_module
from foveate.caption.small.folder import load_captioner, revision_of
from foveate.caption.small.model import CaptionerModel, Texts
from foveate.caption.small.name_proposals import Proposed, proposals
from foveate.caption.small.samples import CaptionSamples, cached_features, cell_shares, packed
from foveate.caption.small.task import CaptionerTask
from foveate.caption.small.tokens import CaptionTokens
from foveate.caption.small.train import train_captioner
from foveate.caption.targets.rows import rows_of_table
from foveate.core.errors import UserError
from foveate.records import tables
from foveate.records.collection import Collection
from naming import raises_naming


def test_a_run_leaves_rows_stages_and_a_model(trained_folder: Path) -> None:
    for name in (
        "data/rows.parquet",
        "data/summary.json",
        "stage-0/stage.json",
        "stage-2/metrics.jsonl",
        "recipe.yaml",
    ):
        assert (trained_folder / name).is_file(), name
    files = {path.name for path in (trained_folder / "model").iterdir()}
    assert files >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "preprocess.json",
        "metrics.json",
        "README.md",
    }
    result = json.loads((trained_folder / "result.json").read_text())
    assert list(result["stages"]) == ["words", "format following", "human alignment"]
    assert [stage["steps"] for stage in result["stages"].values()] == [2, 4, 3]


def test_stage_two_starts_from_stage_one_at_half_the_rate(trained_folder: Path) -> None:
    first = load_file(trained_folder / "stage-1/model/model.safetensors")
    second = load_file(trained_folder / "model/model.safetensors")
    assert any(not torch.equal(first[name], second[name]) for name in first)
    rates = [
        max(json.loads(line)["learning_rate"] for line in (trained_folder / f"stage-{n}/metrics.jsonl").open())
        for n in (1, 2)
    ]
    assert rates[1] == pytest.approx(rates[0] / 2, rel=0.3)
    settings = recipe().stage_settings(2)
    assert settings.learning_rate == pytest.approx(2.5e-3)


def test_stopped_and_repeated_it_ends_with_the_same_weights(
    scene_collection: Path, trained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off within stage 1, after its first checkpoint, and again between stages 1 and 2."""
    collection = Collection.open(scene_collection)

    def broken(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    real_losses = CaptionerTask.losses
    calls = {"n": 0}

    def losses(self: CaptionerTask, batch: dict) -> object:
        calls["n"] += 1
        if calls["n"] == 6:  # two of stage 0, three of stage 1 done
            raise KeyboardInterrupt
        return real_losses(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(CaptionerTask, "losses", losses)
        with pytest.raises(KeyboardInterrupt):
            train_captioner(recipe(), collection, tmp_path / "run", device="cpu")
    assert (tmp_path / "run/stage-0/stage.json").is_file()
    assert not (tmp_path / "run/stage-1/stage.json").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(train_module._Stages, "finish", broken)
        with pytest.raises(KeyboardInterrupt):
            train_captioner(recipe(), collection, tmp_path / "run", device="cpu")
    done = train_captioner(recipe(), collection, tmp_path / "run", device="cpu")
    assert done.model_folder is not None
    first, second = (load_file(folder / "model/model.safetensors") for folder in (trained_folder, tmp_path / "run"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_is_on_target_tokens_alone_and_each_text_stands_alone() -> None:
    """Several texts of an image in one sequence give what each gives behind a prefix of its own."""
    model = CaptionerModel(recipe(), vocabulary=400)
    task = CaptionerTask(model, words_W=torch.zeros(0, dtype=torch.int64), word_weight=0.0, pad=0)
    features = torch.randn(3, *model.image_encoder.feature_shape).to(torch.float16)
    draw = np.random.default_rng(0)
    sizes = [[(3, 6), (5, 2), (3, 1)], [(4, 3)], [(6, 4), (3, 8)]]
    texts = [[tuple(draw.integers(5, 400, n).tolist() for n in pair) for pair in own] for own in sizes]
    batch = {"image": features, **packed(texts, pad=0)}
    prefix = model.prefix(features)
    expected, count = 0.0, 0
    for row, own in enumerate(texts):
        for prompt, target in own:
            before = torch.tensor([[0, *prompt[:-1]]])
            read = model.embed_prompt(torch.tensor([prompt]), before, 0)
            joined = torch.cat([prefix[row : row + 1], read, model.embed(torch.tensor([target]))], dim=1)
            logs = model.logits(model.states(joined))[0, model.prefix_length + len(prompt) - 1 : -1].log_softmax(-1)
            expected -= logs[torch.arange(len(target)), torch.tensor(target)].sum()
            count += len(target)
    losses, report = task.losses(batch)
    assert losses["caption_loss"].item() == pytest.approx((expected / count).item(), rel=1e-4)
    assert 0 <= float(report["token_accuracy"]) <= 1
    assert losses["loss"].item() == losses["caption_loss"].item()


def test_new_names_are_proposed_until_they_are_said_and_said_ones_after_the() -> None:
    """Against a plain loop, and the same while writing as while learning."""
    model = CaptionerModel(recipe(), vocabulary=400, names=40, definite=(7, 11))
    first, seen = model.first_name, 360
    assert first == seen
    texts = [
        [([5, 365, 6], [7, 361, 8, 365, 7, 361, 11, 365]), ([5, 6], [362, 9])],
        [([5, 6], [399, 7, 370])],
    ]
    columns = packed(texts, pad=0)
    prefix = torch.randn(2, model.prefix_length, model.width)
    found = proposals(model, prefix, Texts(**columns, pad=0))
    shown = model.seen_names(prefix)
    expected, written = [], []
    for row, own in enumerate(texts):
        for prompt, target in own:
            said, last = set[int](), prompt[-1]
            writing = Proposed(model, prefix[row : row + 1], [prompt])
            for token in target:
                now = shown[row].clone()
                known = [name - first for name in said]
                if last in (7, 11):
                    now[[name for name in range(40) if name not in known]] = 0
                    now[known] += model.read_gain
                else:
                    now[sorted({name - first for name in prompt if name >= first})] += model.read_gain
                    now[known] = 0
                expected.append(now - model.rarity)
                written.append(writing.add(torch.zeros(1, 400), [0])[0, first:])
                writing.say([0], [token])
                said |= {token} if token >= first else set()
                last = token
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)
    assert torch.allclose(found, torch.stack(written), atol=1e-5)


def test_a_share_of_the_images_is_captioned(trained_folder: Path, scene_collection: Path) -> None:
    rows = rows_of_table(tables.read_table(trained_folder / "data" / "rows.parquet"))
    tokens = CaptionTokens.from_json((trained_folder / "data" / "tokenizer.json").read_text())
    encoder = CaptionerModel(recipe(), vocabulary=len(tokens)).image_encoder
    used = np.array(sorted({row.row for row in rows}))
    features = cached_features(
        Collection.open(scene_collection), encoder, used, cache=scene_collection / "cache", device=torch.device("cpu")
    )
    samples = CaptionSamples(
        rows, tokens, features, stage=2, replay=0.0, max_alt_tokens=8, places={}, captioned=0.25
    )  # fmt: skip
    batch = samples.collate([samples.sample(row, 0, 0) for row in samples.rows[:8].tolist()])
    assert (len(batch["image"]), len(batch["ids_BT"])) == (8, 2)


def test_prompt_tokens_know_what_came_before() -> None:
    model = CaptionerModel(recipe(), vocabulary=400)
    one, other = torch.tensor([[7, 8, 9]]), torch.tensor([[6, 8, 9]])
    first, second = (model.embed_prompt(ids, torch.tensor([[0, *ids[0, :-1].tolist()]]), 0) for ids in (one, other))
    assert torch.equal(model.embed(torch.tensor([7])), first[0, :1])
    assert not torch.allclose(first[0, 1], second[0, 1])
    assert torch.equal(first[0, 2], second[0, 2])


def test_the_word_loss_is_about_places() -> None:
    model = CaptionerModel(recipe(), vocabulary=400)
    words = torch.tensor([10, 20, 30])
    task = CaptionerTask(model, words_W=words, word_weight=1.0, captions=False)
    features = torch.randn(2, *model.image_encoder.feature_shape).to(torch.float16)
    cells = torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0.5, 0], [0.25] * 4])
    batch = {"image": features, "cells_RP": cells, "place_R": torch.tensor([0, 0, 1])}
    batch["words_RW"] = torch.tensor([[0, 2], [1, -1], [2, -1]])
    prefix = model.prefix(features)
    pooled = torch.stack([prefix[0, 0], prefix[0, 1:3].mean(0), prefix[1].mean(0)])
    logs = model.word_scores(pooled, words).log_softmax(-1)
    expected = -((logs[0, 0] + logs[0, 2]) / 2 + logs[1, 1] + logs[2, 2]) / 3
    losses, report = task.losses(batch)
    assert losses["word_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    best = logs.argmax(-1).tolist()
    right = (best[0] in (0, 2)) + (best[1] == 1) + (best[2] == 2)
    assert float(report["word_accuracy"]) == pytest.approx(right / 3)


def test_the_stage_of_words_sees_images_without_targets(scene_collection: Path, tmp_path: Path) -> None:
    collection = Collection.open(scene_collection)
    few = recipe(data={"images": 6}, training={"steps": 1, "warmup_steps": 0}, alignment={"steps": 0})
    done = train_captioner(few, collection, tmp_path / "all", device="cpu")
    assert [stage.images for stage in done.result.stages.values()] == [24, 6]
    fewer = recipe(data={"images": 6}, word_training={"all_images": False}, training={"steps": 1, "warmup_steps": 0})
    done = train_captioner(fewer, collection, tmp_path / "few", device="cpu")
    assert next(iter(done.result.stages.values())).images == 6


def test_cells_of_a_box() -> None:
    shares = cell_shares(np.array([0.0, 0.0, 0.5, 0.25]), 2)
    assert shares.tolist() == [1, 0, 0, 0]
    shares = cell_shares(np.array([0.25, 0.5, 1.0, 1.0]), 2)
    assert shares.tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3])
    assert cell_shares(np.array([0.2, 0.1, 0.9, 0.3]), 7).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("file", "change", "names"),
    [
        (
            "config.json",
            lambda text: text.replace('"captioner"', '"other"'),
            ("config.json", "kind", "captioner", "other"),
        ),
        ("config.json", lambda text: text.replace('"format": 3', '"format": 2'), ("config.json", "format", "3", "2")),
        ("tokenizer.json", lambda text: "{}", ("tokenizer.json",)),
        ("tokenizer.json", lambda text: text.replace("<ssc>", "<xxx>"), ("tokenizer", "<ssc>")),
        ("model.safetensors", lambda text: text[:100], ("model.safetensors",)),
        (
            "config.json",
            lambda text: text.replace('"hidden_size": 32', '"hidden_size": 10000000'),
            ("model.safetensors", "10000000"),
        ),
        (
            "config.json",
            lambda text: text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 1000000'),
            ("config.json", "num_hidden_layers", "1000000"),
        ),
        (
            "tokenizer.json",
            lambda text: re.sub(r'":300([,}])', r'":1000000000\1', text),
            ("tokenizer.json", "1,000,000,000"),
        ),
    ],
)
def test_a_folder_is_opened_strictly(
    trained_folder: Path, tmp_path: Path, file: str, change, names: tuple[str, ...]
) -> None:
    for path in (trained_folder / "model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = (tmp_path / file).read_text(encoding="latin-1")
    (tmp_path / file).write_text(change(text), encoding="latin-1")
    with raises_naming(UserError, *names):
        load_captioner(tmp_path, device="cpu")


def test_the_revision_changes_with_the_weights(trained_folder: Path) -> None:
    assert revision_of(trained_folder / "model") != revision_of(trained_folder / "stage-1" / "model")
    assert load_captioner(trained_folder / "model", device="cpu").revision == revision_of(trained_folder / "model")
    with raises_naming(UserError, str(trained_folder / "model")):
        load_captioner(trained_folder, device="cpu")


@pytest.mark.parametrize(
    "decoder",
    [
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 512},
        {
            "model_type": "qwen2",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 48,
        },
    ],
)
def test_other_architectures_of_transformers_build_and_run(decoder: dict) -> None:
    changed = recipe().model_copy(update={"decoder": decoder})
    model = CaptionerModel(changed, vocabulary=400)
    states = model.states(torch.randn(1, 6, model.width))
    assert model.logits(states).shape == (1, 6, 400)


def test_attention_begins_by_handing_on_what_it_reads() -> None:
    model = CaptionerModel(recipe(), vocabulary=400)
    for layer in model.decoder.layers:
        handed = layer.self_attn.o_proj.weight @ layer.self_attn.v_proj.weight
        assert torch.allclose(handed, 0.3 * torch.eye(model.width), atol=1e-5)


def test_a_decoder_that_cannot_be_built_is_one_sentence() -> None:
    with raises_naming(UserError, "decoder", "nothing"):
        CaptionerModel(recipe().model_copy(update={"decoder": {"model_type": "nothing"}}), vocabulary=400)
    with raises_naming(UserError, "3"):
        CaptionerModel(recipe().model_copy(update={"pixel_shuffle": 3}), vocabulary=400)
