"""Options made from the fields of a settings model: type, bounds, default, help, and what reaches the command."""

from __future__ import annotations

import ast
from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import Field

from foveate.cli.fields import FieldOption, FieldsCommand, fields
from foveate.core.recipes import Settings
from naming import raises_naming
from verbs import parameters_of, sub_verbs


class Training(Settings):
    epochs: int = Field(50, ge=1, description="passes over the images")


class Example(Settings):
    name: str = Field(description="the name")
    rate: float = Field(0.5, gt=0, le=1, description="pcv: a share")
    kinds: tuple[str, ...] = Field(("a", "b"), description="kinds, best first")
    mode: Literal["fast", "exact"] = Field("fast", description="how")
    steps: int = Field(5, ge=1, description="steps")
    limit: int | None = Field(None, ge=1, description="at most so many")
    retry: bool = Field(False, description="try again")
    cache: bool = Field(True, description="a cache", json_schema_extra={"off": "keep no cache"})
    detect: bool | None = Field(None, description="detect; by default where nothing is known")
    training: Training = Training()
    split: dict[str, float] = Field({"train": 0.8, "test": 0.2}, description="fractions")
    prompts: tuple[str, ...] = Field(("a {}",), description="prompts of a class")
    shots: tuple[Annotated[int, Field(ge=2)], ...] = Field((), description="images of a class")


NAMES = ("rate", "kinds", "mode", "limit", "retry", "cache", "detect", "training.epochs", "split")
LISTED = (("rate", "--speed"), "training.epochs")


@click.command("example", cls=FieldsCommand)
@fields(f"{__name__}:Example", ("name", "--called", "--named"), *NAMES, metavars={"limit": "COUNT"})
@fields(f"{__name__}:Example", ("prompts", "--prompt"), "shots", repeat=("prompts", "shots"), metavars={"shots": "N"})
def example(settings: dict[str, Any]) -> None:
    click.echo(repr(settings))


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(example, list(arguments))
    return ast.literal_eval(result.output.strip()) if result.exit_code == 0 else result.output


def test_only_what_was_given_is_passed_on() -> None:
    assert run("--called", "x") == {"name": "x"}
    assert run("--named", "x") == {"name": "x"}
    assert run("--called", "x", "--rate", "0.5") == {"name": "x", "rate": 0.5}
    given = ("--kinds", "b, c,", "--mode", "exact", "--limit", "3", "--retry", "--no-cache", "--epochs", "7")
    assert run("--called", "x", *given) == {
        "name": "x",
        "kinds": ("b", "c"),
        "mode": "exact",
        "limit": 3,
        "retry": True,
        "cache": False,
        "training": {"epochs": 7},
    }
    assert Example(**run("--called", "x", *given)).training.epochs == 7


def test_fields_can_be_listed_elsewhere() -> None:
    @click.command("listed", cls=FieldsCommand)
    @fields(f"{__name__}:Example", f"{__name__}:LISTED")
    def listed(settings: dict[str, Any]) -> None:
        click.echo(repr(settings))

    printed = CliRunner().invoke(listed, ["--speed", "0.25", "--epochs", "3"]).output
    assert ast.literal_eval(printed) == {"rate": 0.25, "training": {"epochs": 3}}


def test_a_switch_without_a_default_has_three_states() -> None:
    assert run("--called", "x", "--detect") == {"name": "x", "detect": True}
    assert run("--called", "x", "--no-detect") == {"name": "x", "detect": False}
    assert Example(**run("--called", "x")).detect is None


def test_repeated_options_reach_the_command_as_a_tuple_that_may_hold_commas() -> None:
    content = run("--called", "x", "--prompt", "a, b {}", "--prompt", "c {}", "--shots", "2", "--shots", "5")
    assert content == {"name": "x", "prompts": ("a, b {}", "c {}"), "shots": (2, 5)}
    assert Example(**content).prompts == ("a, b {}", "c {}")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), ("--called",)),
        (("--shots", "3", "--shots", "1"), ("--shots", "x>=2")),
        (("--rate", "0"), ("--rate", "0<x<=1")),
        (("--limit", "0"), ("--limit", "x>=1")),
        (("--epochs", "x"), ("--epochs", "'x'")),
    ],
)
def test_values_out_of_bounds_name_the_option(arguments: tuple[str, ...], names: tuple[str, ...]) -> None:
    output = run(*(arguments and ("--called", "x")), *arguments)
    for name in names:
        assert name in output


def test_fields_of_a_recipe_are_neither_required_nor_have_a_default() -> None:
    @click.command("recipe", cls=FieldsCommand)
    @fields(f"{__name__}:Example", "name", "training.epochs", of_recipe=True)
    def recipe(settings: dict[str, Any]) -> None:
        click.echo(repr(settings))

    assert CliRunner().invoke(recipe, []).output.strip() == "{}"
    assert CliRunner().invoke(recipe, ["--epochs", "3"]).output.strip() == "{'training': {'epochs': 3}}"
    output = " ".join(CliRunner().invoke(recipe, ["--help"]).output.split())
    assert "Passes over the images. The recipe's by default. [x>=1]" in output
    assert "The name. The recipe's by default. --epochs" in output


def test_an_unknown_choice_names_the_nearest() -> None:
    with raises_naming(click.BadParameter, "fats", "Did you mean 'fast'") as caught:
        example.main(["--called", "x", "--mode", "fats"], standalone_mode=False)
    assert "--mode" in caught.value.format_message()
    for wrong in (["--mode", "fats"], ["--limit", "0"], ["--limit", "many"]):
        done = CliRunner().invoke(example, ["--called", "x", *wrong])
        assert (done.exit_code, wrong[0] in done.stderr) == (2, True), "one status for every wrong argument"


class Sized(Settings):
    side: int | None = Field(None, ge=32, le=96, multiple_of=32, description="a side")


def test_a_number_that_must_be_a_multiple() -> None:
    @click.command("sized", cls=FieldsCommand)
    @fields(f"{__name__}:Sized", "side")
    def sized(settings: dict[str, Any]) -> None:
        click.echo(repr(settings))

    assert CliRunner().invoke(sized, ["--side", "64"]).output.strip() == "{'side': 64}"
    for wrong, words in (("50", "50 is not a multiple of 32"), ("128", "32<=x<=96")):
        done = CliRunner().invoke(sized, ["--side", wrong])
        assert (done.exit_code, "--side" in done.stderr, words in done.stderr) == (2, True, True)


def test_help_shows_description_default_and_bounds() -> None:
    output = " ".join(CliRunner().invoke(example, ["--help"]).output.split())
    for words in (
        "--called, --named TEXT The name. [required]",
        "pcv: a share. [default: 0.5; 0<x<=1]",
        "--kinds A,B,... Kinds, best first. [default: a,b]",
        "--mode [fast|exact] How. [default: fast]",
        "--no-cache Keep no cache.",
        "--epochs INTEGER RANGE Passes over the images. [default: 50; x>=1]",
        "--split TEXT Fractions. [default: train=0.8,test=0.2]",
        "--limit COUNT At most so many. [x>=1]",
        "--prompt TEXT Prompts of a class. Repeatable. [default: a {}]",
        "--shots N Images of a class. Repeatable. [x>=2]",
    ):
        assert words in output


def test_options_that_override_a_recipe_show_no_default_and_are_never_required() -> None:
    @click.command("train", cls=FieldsCommand)
    @fields(f"{__name__}:Example", "name", "steps", "cache", into="changes", of_recipe=True)
    def train(changes: dict[str, Any]) -> None:
        click.echo(repr(changes))

    output = " ".join(CliRunner().invoke(train, ["--help"]).output.split())
    assert "--name TEXT The name. The recipe's by default." in output
    assert "--steps INTEGER RANGE Steps. The recipe's by default. [x>=1]" in output
    assert CliRunner().invoke(train, []).output.strip() == "{}"
    assert CliRunner().invoke(train, ["--steps", "5", "--no-cache"]).output.strip() == "{'steps': 5, 'cache': False}"


def test_a_field_that_the_model_lacks_is_a_mistake_of_the_verb() -> None:
    @click.command("broken", cls=FieldsCommand)
    @fields(f"{__name__}:Example", "nothing")
    def broken(settings: dict[str, Any]) -> None: ...

    with pytest.raises(LookupError, match="nothing"):
        parameters_of(broken)


@pytest.mark.parametrize(("path", "command"), [pytest.param(*leaf, id=" ".join(leaf[0])) for leaf in sub_verbs()])
def test_options_of_verbs_can_be_made(path: tuple[str, ...], command: click.Command) -> None:
    """Every field that a verb names exists, and no two options of a verb share a name."""
    options = [flag for parameter in parameters_of(command) for flag in parameter.opts if flag.startswith("-")]
    assert len(options) == len(set(options))
    for option in parameters_of(command):
        assert not isinstance(option, FieldOption) or option.help, f"{' '.join(path)} {option.opts}"
