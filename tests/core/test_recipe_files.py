"""Recipes: files, overrides, and the error of every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from foveate.core.errors import UserError
from foveate.core.recipes import Settings, dump, load, read, recipe_names, recipe_path, validate
from foveate.pretrain.recipe import PretrainRecipe
from naming import raises_naming


class Inner(Settings):
    weight: float = Field(1.0, ge=0)
    kinds: tuple[str, ...] = ("a",)


class Outer(Settings):
    steps: int = Field(ge=1)
    inner: Inner = Inner()
    choices: dict[str, Inner] = {}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 5\ninner: {weight: 2}\n")
    return path


def refusal(file: Path | str, *overrides: str) -> str:
    with pytest.raises(UserError) as problem:
        load(Outer, str(file), overrides)
    sentence = str(problem.value)
    assert "\n" not in sentence
    return sentence


def assert_names(sentence: str, *names: str) -> None:
    assert not [name for name in names if name not in sentence], sentence


def test_overrides_win_over_the_file_and_the_file_over_defaults(file: Path) -> None:
    assert load(Outer, str(file)) == Outer(steps=5, inner=Inner(weight=2))
    changed = load(Outer, str(file), ["steps=7", "inner.weight=0.25", "inner.kinds=[x, y]", "choices.new.weight=3"])
    assert changed == Outer(steps=7, inner=Inner(weight=0.25, kinds=("x", "y")), choices={"new": Inner(weight=3)})


def test_the_last_override_wins(file: Path) -> None:
    assert load(Outer, str(file), ["steps=7", "steps=8"]).steps == 8


def test_values_with_an_equals_sign(file: Path) -> None:
    assert load(Outer, str(file), ["inner.kinds=['a=b']"]).inner.kinds == ("a=b",)


def test_unknown_fields_name_the_nearest(file: Path) -> None:
    assert_names(refusal(file, "stesp=3"), "'stesp'", "choices, inner, steps", "Did you mean 'steps'?")
    assert_names(refusal(file, "inner.wieght=3"), "'inner.wieght'", "kinds, weight", "Did you mean 'weight'?")
    assert_names(refusal(file, "choices.new.wieght=3"), "'choices.new.wieght'")


def test_wrong_types_and_bounds_name_the_field_and_the_value(file: Path) -> None:
    assert_names(refusal(file, "steps=soon"), "'steps'", "integer", "(got 'soon')")
    assert_names(refusal(file, "inner.weight=-1"), "'inner.weight'", "equal to 0", "(got -1)")
    assert_names(refusal(file, "inner=3"), "'inner'")


def test_a_rule_about_several_fields_names_their_values_alone() -> None:
    with pytest.raises(UserError) as problem:
        load(PretrainRecipe, "tour", ["training.steps=40"])
    assert str(problem.value).endswith("field 'training': warmup_steps (50) must be smaller than steps (40)")


def test_all_problems_in_one_sentence(file: Path) -> None:
    assert_names(refusal(file, "steps=0", "inner.wieght=3"), "'steps'", "'inner.wieght'", "Did you mean 'weight'?")


def test_missing_field(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("inner: {}\n")
    sentence = refusal(tmp_path / "empty.yaml")
    assert_names(sentence, "'steps'", "required")
    assert "got" not in sentence


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("steps", "name.of.field=value"),
        ("=3", "name.of.field=value"),
        ("steps=[1", "'steps=[1'"),
        ("steps.more=3", "'steps' is a value"),
        ("inner.weight.more=3", "'weight' is a value"),
    ],
)
def test_bad_overrides(file: Path, override: str, part: str) -> None:
    assert part in refusal(file, override)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("a: [1", "not a YAML file"),
        ("- 1\n- 2\n", "got list"),
        ("", "got NoneType"),
        ("!!python/object/apply:os.system ['true']", "not a YAML file"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, part: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    assert part in refusal(path)
    assert str(path) in refusal(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00a")
    assert "not a YAML file" in refusal(tmp_path / "bad.yaml")


def test_unknown_recipes() -> None:
    assert "Did you mean 'tour-clip'?" in refusal("tour-clpi")
    assert_names(refusal("no/such/file.yaml"), "no/such/file.yaml", "tour-clip")
    assert_names(refusal("."), "'.'", "tour-clip")


def test_shipped_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "tour" in recipe_names()
    assert recipe_path("tour").name == "tour.yaml"
    monkeypatch.chdir(tmp_path)
    Path("tour").write_text("steps: 1\n", encoding="utf-8")
    assert recipe_path("tour").name == "tour.yaml", "a shipped name is not shadowed by a file of the same name"
    assert recipe_path("./tour") == Path("./tour")


def test_dump_gives_the_same_recipe_back(tmp_path: Path) -> None:
    recipe = load(PretrainRecipe, "tour", ["training.seed=3", "data.views.scale=[0.5, 1.0]"])
    (tmp_path / "again.yaml").write_text(dump(recipe))
    assert load(PretrainRecipe, str(tmp_path / "again.yaml")) == recipe
    assert yaml.safe_load(dump(recipe))["training"]["seed"] == 3


def test_nested_fields_of_the_real_recipe() -> None:
    with raises_naming(UserError, "regions.prompter.poool", "pool"):
        load(PretrainRecipe, "tour", ["regions.prompter.poool=all"])
    with raises_naming(UserError, "regions.method", "none", "prompter", "roi"):
        load(PretrainRecipe, "tour", ["regions.method=promter"])
    with raises_naming(UserError, "kind", "image_encoder"):
        load(PretrainRecipe, "tour", ["image_encoder={width: 3}"])


def test_settings_are_frozen_and_read_does_not_share(file: Path) -> None:
    recipe = load(Outer, str(file))
    with pytest.raises(ValueError, match="frozen"):
        recipe.steps = 3  # type: ignore[misc]
    content: dict[str, Any] = read(str(file))
    assert validate(Outer, content, where="here").steps == 5
    with raises_naming(UserError, "here: ", "steps"):
        validate(Outer, {}, where="here")


class Staged(Settings):
    class Stage(Settings):
        name: str
        inner: Inner = Inner()

    stages: tuple[Stage, ...]


def test_overrides_reach_entries_of_lists_by_index_and_by_name(tmp_path: Path) -> None:
    file = tmp_path / "staged.yaml"
    file.write_text("stages: [{name: first}, {name: second, inner: {weight: 2, kinds: [b, c]}}]")
    overrides = ["stages.first.inner.weight=3", "stages.1.inner.weight=4", "stages.second.inner.kinds.0=d"]
    first, second = load(Staged, str(file), overrides).stages
    assert (first.inner.weight, second.inner.weight, second.inner.kinds) == (3, 4, ("d", "c"))
    assert load(Staged, str(file), ["stages.1={name: third}"]).stages[1] == Staged.Stage(name="third")
    for override, named in (
        ("stages.scond.inner.weight=1", "Did you mean 'second'"),
        ("stages.2.name=x", "1 (second)"),
    ):
        with raises_naming(UserError, override, named, "0 (first)"):
            load(Staged, str(file), [override])
