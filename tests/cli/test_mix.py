"""`foveate mix` through the command line, and that a run reports the same shares after one epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Run

import tiny
from foveate.core.errors import UserError
from foveate.core.recipes import load
from foveate.pretrain.dataset import check_window
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import build_dataset, build_model, pretrain
from foveate.records.collection import Collection
from foveate.records.record import Caption
from foveate.records.writer import CollectionWriter
from foveate.training.loader import Loader
from naming import raises_naming


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training images: all have a title, 8 an alt-text, 12 a short caption, 4 a dense one."""
    path = tmp_path_factory.mktemp("mix") / "captioned"
    with CollectionWriter(path, source="test") as writer:
        for n in range(16):
            kinds = ["title", *["alt"] * (n < 8), *["ssc"] * (n < 12), *["dsc_plus"] * (n >= 12)]
            image = tiny.image_bytes(tiny.draw([], size=(64, 64), seed=n))
            writer.add(f"p{n:02d}", image, captions=[Caption(f"{kind} {n}", kind) for kind in kinds], split="train")
    return path


def shares(result: dict, name: str) -> dict[str, float]:
    return {row["format"]: row[name] for row in result["formats"]}


def test_a_preset_over_what_images_have(foveate: Run, captioned: Path) -> None:
    found = foveate("mix", captioned, "--preset", "clip", "--json", "--quiet").json
    assert shares(found, "images") == {"alt": 16, "ssc": 12}  # titles are lent
    assert shares(found, "expected_share") == pytest.approx({"alt": (12 * 0.5 + 4) / 16, "ssc": 12 * 0.5 / 16})
    assert found["override"] == "data.captions={alt: 0.5, ssc: 0.5}"
    printed = foveate("mix", captioned, "--preset", "clip").out.splitlines()
    assert printed[-1] == "foveate pretrain RECIPE 'data.captions={alt: 0.5, ssc: 0.5}' (or data.mixture=clip)"


def test_expected_shares_are_of_the_texts_that_are_drawn(foveate: Run, captioned: Path) -> None:
    found = foveate("mix", captioned, "--preset", "clip", "--missing", "skip", "--json", "--quiet").json
    assert shares(found, "expected_share") == pytest.approx({"alt": 16 / 28, "ssc": 12 / 28})


@pytest.mark.parametrize(
    ("missing", "effect"),
    [
        ("renormalize", "its weight goes to the others"),
        ("alt", "its weight goes to alt"),
        ("skip", "draws of it leave an image out"),
    ],
)
def test_where_the_weight_of_a_missing_format_goes(foveate: Run, captioned: Path, missing: str, effect: str) -> None:
    printed = foveate("mix", captioned, "--weights", "ssc=.5,afc=.5", "--missing", missing).out
    assert f"no image has afc: {effect}" in printed


@pytest.mark.parametrize("missing", ["renormalize", "alt", "skip"])
def test_training_reports_the_same_after_one_epoch(foveate: Run, captioned: Path, tmp_path: Path, missing: str) -> None:
    weights = "ssc=.5,alt=.3,dsc_plus=.2"
    options = ["--context", "256", "--missing", missing, "--seed", "5", "--json", "--quiet"]
    found = foveate("mix", captioned, "--weights", weights, *options).json
    data = {"captions": {"ssc": 0.5, "alt": 0.3, "dsc_plus": 0.2}, "missing": missing, "allow_truncation": True}
    recipe = tiny.recipe(data=data, regions={"method": "none"}, training={"steps": 2, "seed": 5})
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"captions": data["captions"]})})
    collection = Collection.open(captioned)
    result = pretrain(recipe, collection, tmp_path / "run", device="cpu", evaluate_split=None).result.to_json()
    assert result["texts"]["images"] == found["with_text"] == 16
    assert result["texts"]["shares"] == {k: v for k, v in shares(found, "first_epoch_share").items() if v}
    assert result["texts"]["without_text"] == found["left_out_in_first_epoch"]
    if missing != "skip":  # where an image is left out, the loader takes another in its place
        model = build_model(recipe)
        dataset = build_dataset(recipe, collection, model, device=model.device, cache=tmp_path / "cache")
        loader = Loader(dataset, rows=dataset.rows, batch_size=8, seed=5, workers=0)
        kinds = [kind for batch in loader.batches(0, 2) for kind in batch["kinds"]]
        assert {kind: kinds.count(kind) for kind in set(kinds)} == result["texts"]["drawn"]


def test_a_preset_in_a_recipe(foveate: Run, captioned: Path, recipe_file: Path, tmp_path: Path) -> None:
    recipe = load(PretrainRecipe, str(recipe_file), ["data.mixture=clip"])
    assert recipe.data.text_rule().drawable == ["alt", "ssc"]
    with raises_naming(UserError, "clip"):
        load(PretrainRecipe, str(recipe_file), ["data.mixture=clipp"])


def test_dense_captions_are_refused_for_a_short_tower(foveate: Run, captioned: Path) -> None:
    refused = foveate("mix", captioned, "--weights", "alt=1,dsc_plus=1").sentence
    assert "dsc_plus captions are longer than the 77 tokens" in refused
    assert foveate("mix", captioned, "--weights", "alt=1,dsc_plus=1", "--allow-truncation").code == 0
    assert foveate("mix", captioned, "--preset", "mllm_sft").code == 0  # a language model reads on
    recipe = tiny.recipe(data={"captions": {"dsc_plus": 1.0}})
    with raises_naming(UserError, "data.allow_truncation=true"):
        check_window(recipe.data, build_model(recipe).text_encoder)


def test_the_written_recipe_trains_with_the_weights(foveate: Run, captioned: Path, recipe_file: Path) -> None:
    ended = foveate(
        "mix", captioned, "--weights", "alt=1,ssc=3", "--recipe", recipe_file, "--out", "my.yaml", "--seed", 2
    )
    assert ended.out.splitlines()[-1] == "recipe: my.yaml"
    written = load(PretrainRecipe, "my.yaml")
    assert written.data.captions == {"alt": 1.0, "ssc": 3.0}
    assert written.training.seed == 2


def test_no_file_is_replaced(foveate: Run, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("# by hand\n")
    # Refused before anything is measured: the collection is not even opened.
    refused = foveate("mix", "nowhere", "--weights", "alt=1", "--recipe", recipe_file, "--out", "my.yaml")
    assert refused.sentence == "foveate: my.yaml: exists; choose another file with --out"
    assert (tmp_path / "my.yaml").read_text() == "# by hand\n"


def test_mistakes(foveate: Run, captioned: Path) -> None:
    assert "Did you mean 'clip'" in foveate("mix", captioned, "--preset", "clipp").sentence
    assert "alt=.5,ssc=.5" in foveate("mix", captioned, "--weights", "alt:1").sentence
    assert "Did you mean 'ssc'" in foveate("mix", captioned, "--weights", "sscc=1").sentence
    assert "it has alt, dsc_plus" in foveate("mix", captioned, "--weights", "afc=1").sentence
    assert foveate("mix", captioned).code == 2
    assert foveate("mix", captioned, "--preset", "clip", "--weights", "alt=1").code == 2
