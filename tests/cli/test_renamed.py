"""Old names of options and old forms of commands: each works for a release, hidden, with a line that names the new."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from command_line import Run
from processes import environment

from foveate.cli.renamed import rename_options, renamed_options
from verbs import parameters_of, sub_verbs

COMMANDS = {" ".join(path): command for path, command in sub_verbs()}
RENAMED = [(command, old, new) for command, names in renamed_options().items() for old, new in names.items()]


@pytest.mark.parametrize(("command", "old", "new"), RENAMED, ids=lambda text: text)
def test_an_old_name_is_read_as_the_new_one(
    command: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {name for parameter in parameters_of(COMMANDS[command]) for name in parameter.opts}
    assert new in options
    assert old not in options
    words = command.split()
    assert rename_options([*words, "a", old, "b", f"{old}=c=d"]) == [*words, "a", new, "b", f"{new}=c=d"]
    # One line, however often the name was used.
    assert capsys.readouterr().err == f"foveate {command}: {old} is now {new}; the old name works until 0.3\n"
    # Behind "--" a word is an argument, and other commands may have an option of the old name.
    assert rename_options([*words, "--", old]) == [*words, "--", old]
    assert rename_options(["doctor", old]) == ["doctor", old]


def test_every_command_with_a_run_folder_took_run_before() -> None:
    shown = {
        name
        for name, command in COMMANDS.items()
        if any(parameter.name == "run" and "--out" in parameter.opts for parameter in parameters_of(command))
    }
    assert {name for name, names in renamed_options().items() if "--run" in names} == shown


def test_what_is_written_is_out_and_a_format_is_to() -> None:
    formats = {"export", "mllm export", "species export"}
    for name, command in COMMANDS.items():
        options = {flag: parameter for parameter in parameters_of(command) for flag in parameter.opts}
        assert "--run" not in options, name
        assert ("--to" in options) == (name in formats), name
        for flag in ("--judge-key-env", "--judge-model"):
            assert (flag in options) == ("--judge-url" in options), name
        # A judge without an address is a folder or a name.
        assert "--judge" not in options or name == "audit"


def test_an_old_name_works_on_the_command_line(foveate: Run, tmp_path: Path) -> None:
    new, old = foveate("recipes", "tour", "--out", "new.yaml"), foveate("recipes", "tour", "--to", "old.yaml")
    assert (new.code, old.code, new.err) == (0, 0, "")
    assert old.err == "foveate recipes: --to is now --out; the old name works until 0.3\n"
    assert Path("new.yaml").read_bytes() == Path("old.yaml").read_bytes()
    assert "--to" not in foveate("recipes", "--help").out


@pytest.mark.parametrize("command", sorted({command for command, _, _ in RENAMED}))
def test_help_shows_no_old_name(foveate: Run, command: str) -> None:
    ended = foveate(*command.split(), "--help")
    old_names = {old for name, old, _ in RENAMED if name == command}
    old_names |= {"--recipe"} if command == "species train" else set()
    assert (ended.code, ended.err) == (0, "")
    assert not old_names & set(re.findall(r"(?<![\w-])--[a-z-]+", ended.out))


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (("--to=a.yaml", "tour"), "a.yaml"),
        (("--to", "a.yaml", "tour"), "a.yaml"),
        (("tour", "--to=a=b.yaml"), "a=b.yaml"),
        # As with any option that is given twice, the last one counts.
        (("tour", "--to", "a.yaml", "--to", "b.yaml"), "b.yaml"),
        (("tour", "--to", "a.yaml", "--out", "b.yaml"), "b.yaml"),
        (("tour", "--out", "a.yaml", "--to", "b.yaml"), "b.yaml"),
    ],
)
def test_an_old_name_in_any_place(foveate: Run, tmp_path: Path, arguments: tuple[str, ...], written: str) -> None:
    ended = foveate("recipes", *arguments, "--json")
    assert ended.json["paths"] == {"recipe": written}
    assert [path.name for path in tmp_path.iterdir()] == [written]
    assert ended.err.count("\n") == 1


def test_wrong_use_of_an_old_name_is_a_usage_error(foveate: Run) -> None:
    assert foveate("recipes", "tour", "--to").code == 2
    assert foveate("adapt", "--run", "x", "train").code == 2
    assert foveate("--run", "x", "adapt", "train").code == 2
    assert foveate("pretrain", "tour", "--runs", "x").code == 2
    # Commands that never had the name.
    assert foveate("doctor", "--run", "x").code == 2


def test_one_process_of_torchrun_names_the_new_option(foveate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert foveate("recipes", "tour", "--to", "first.yaml").err
    monkeypatch.setenv("RANK", "1")
    assert not foveate("recipes", "tour", "--to", "second.yaml").err


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("foveate adapt train --run x --met", ["plain,--method"]),
        ("foveate adapt train --ru", []),
        ("foveate species train --rec", []),
        ("foveate unknown --re", []),
    ],
)
def test_completion_prints_no_line_and_no_old_name(line: str, completions: list[str]) -> None:
    question = {"_FOVEATE_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    command = [sys.executable, "-m", "foveate"]
    ended = subprocess.run(command, env=environment() | question, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == completions


TRAININGS = {
    "pretrain": ("foveate.pretrain.train:pretrain", "tour", ""),
    "mllm train": ("foveate.mllm.train:train_mllm", "mllm-tour", "stages.0."),
    "adapt train": ("foveate.adapt.train:train_adapter", "adapt.yaml", ""),
    "species train": ("foveate.species.train:train_species", "species", ""),
}


@pytest.fixture
def resolve(foveate: Run, monkeypatch: pytest.MonkeyPatch, tiny_collection: Path) -> Any:
    """Returns the recipe that a training command would train; nothing is trained."""

    def run(command: str, *arguments: object) -> Any:
        recipes: list[Any] = []

        def capture(*values: Any, **options: Any) -> None:
            recipes.extend(value for value in values if hasattr(value, "model_dump"))
            raise click.exceptions.Exit(0)

        target = TRAININGS[command][0]
        monkeypatch.setattr(target.replace(":", "."), capture)
        ended = foveate(*command.split(), *arguments)
        assert ended.code == 0, ended.err
        return recipes[0]

    return run


@pytest.mark.parametrize("command", TRAININGS)
def test_an_option_beats_an_override_and_both_beat_the_recipe(
    command: str, resolve: Any, tiny_collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, recipe, stage = TRAININGS[command]
    Path("adapt.yaml").write_text(
        "{backbone: {kind: lite0}, method: {method: linear}, training: {seed: 5}}\n", encoding="utf-8"
    )

    def trained(*arguments: object) -> tuple[int, int]:
        resolved = resolve(command, recipe, *arguments, "--collection", tiny_collection)
        training = resolved.stages[0].training if stage else resolved.training
        return training.seed, training.workers

    plain = trained()
    overrides = (f"{stage}training.seed=41", f"{stage}training.workers=42")
    assert trained(*overrides) == (41, 42) != plain
    assert trained("--seed", 51, "--workers", 52) == (51, 52)
    # The order on the command line decides nothing.
    assert trained("--seed", 51, *overrides) == (51, 42)
    assert trained(*overrides, "--workers", 52) == (41, 52)


@pytest.mark.parametrize("command", TRAININGS)
def test_training_commands_share_their_grammar(command: str) -> None:
    parameters = parameters_of(COMMANDS[command])
    arguments = [parameter.name for parameter in parameters if isinstance(parameter, click.Argument)]
    options = {name for parameter in parameters for name in parameter.opts}
    assert arguments == ["recipe", "overrides"]
    assert {"--collection", "--out", "--dry-run", "--workers", "--seed", "--device", "--json", "--quiet"} <= options


def test_a_recipe_of_an_adapter_is_changed_by_options(resolve: Any, tiny_collection: Path) -> None:
    Path("adapt.yaml").write_text(
        "{backbone: {kind: lite0}, method: {method: lora, rank: 4}, training: {epochs: 3, checkpoint_every: 200}}\n",
        encoding="utf-8",
    )
    shared = ("adapt.yaml", "--collection", tiny_collection)
    assert resolve("adapt train", *shared).method == {"method": "lora", "rank": 4}
    assert resolve("adapt train", *shared, "rank=8").method == {"method": "lora", "rank": 8}
    assert resolve("adapt train", *shared, "--method", "lora").method == {"method": "lora", "rank": 4}
    # Options of one method say nothing to another.
    other = resolve("adapt train", *shared, "--method", "bitfit", "--epochs", 5, "training.epochs=4")
    assert other.method == {"method": "bitfit"}
    assert other.training.epochs == 5
    # A saved recipe has every field: those at their defaults are not what a user set.
    assert "checkpoint_every" not in other.training.model_fields_set


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{backbone: {kind: lite0}, method: lora}", ("field 'method'", "'lora'")),
        ("{backbone: lite0, method: {method: lora}}", ("field 'backbone'", "'lite0'")),
        ("{backbone: {kind: lite0}, method: {method: lora}, training: fast}", ("field 'training'", "'fast'")),
        ("{backbone: {kind: lite0}, method: {method: lora}, traning: {}}", ("traning", "Did you mean 'training'")),
        ("[1, 2]", ("expected a mapping",)),
    ],
)
def test_mistakes_in_a_recipe_of_an_adapter(foveate: Run, content: str, words: tuple[str, ...]) -> None:
    Path("mine.yaml").write_text(content, encoding="utf-8")
    ended = foveate("adapt", "train", "mine.yaml", "--collection", "c")
    for word in words:
        assert word in ended.sentence


def test_the_old_form_of_a_species_training(foveate: Run, resolve: Any, tiny_collection: Path) -> None:
    old = resolve("species train", tiny_collection, "--recipe", "cosmo-iwildcam", "training.epochs=3")
    new = resolve("species train", "cosmo-iwildcam", "training.epochs=3", "--collection", tiny_collection)
    assert old == new
    assert new.training.epochs == 3
    assert resolve("species train", tiny_collection) == resolve("species train", "--collection", tiny_collection)


def test_the_old_form_names_the_new_one(
    foveate: Run, tiny_collection: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = foveate("species", "train", tiny_collection, "--recipe", "species", "training.epochs=none")
    assert "--recipe RECIPE is now the first argument, RECIPE" in ended.err
    assert "the argument SOURCE is now --collection SOURCE" in ended.err
    assert foveate("species", "train", tiny_collection, "--recipe", "species", "--collection", "c").code == 2


def test_the_old_form_of_a_folder_with_an_equals_sign(resolve: Any, tiny_collection: Path) -> None:
    Path("surveys").mkdir()
    for name in ("year=3", "surveys/year=3"):
        Path(name).symlink_to(tiny_collection)
        new = resolve("species train", "cosmo-iwildcam", "--collection", name)
        assert resolve("species train", name, "--recipe", "cosmo-iwildcam") == new
        assert resolve("species train", name) == resolve("species train", "--collection", name)


def test_the_old_form_is_named_with_quiet_too(foveate: Run) -> None:
    ended = foveate("species", "train", "missing", "--recipe", "species", "--run", "x", "--quiet")
    assert ended.code == 1
    lines = ended.err.splitlines()
    assert [line.partition(" is now ")[0].partition(": ")[2] for line in lines[:-1]] == [
        "--run",
        "--recipe RECIPE",
        "the argument SOURCE",
    ]


ADAPTER = ("--backbone", "lite0", "--method", "linear")


def test_an_override_stands_where_a_recipe_may_be_left_out(resolve: Any, tiny_collection: Path) -> None:
    data = ("--collection", tiny_collection)
    assert resolve("adapt train", "training.epochs=5", *ADAPTER, *data).training.epochs == 5
    assert resolve("species train", "training.epochs=5", *data).training.epochs == 5
    # Spaces, further equals signs, slashes, and more letters than the name of a file may have.
    for value in ("a b", "a=b", "a/b", "x" * 300):
        assert resolve("adapt train", f"data.field={value}", *ADAPTER, *data).data.field == value
    # An existing file is a recipe, whatever its name.
    content = "{backbone: {kind: lite0}, method: {method: linear}, training: {epochs: 7}}\n"
    Path("data.field=x").write_text(content, encoding="utf-8")
    assert resolve("adapt train", "data.field=x", *data).training.epochs == 7


@pytest.mark.parametrize("recipe", ["folder", "year=3", "runs/a=b/recipe.yaml", "C:\\year=3\\recipe.yaml", ""])
def test_what_is_no_recipe_is_named(foveate: Run, recipe: str) -> None:
    for folder in ("folder", "year=3"):
        Path(folder).mkdir()
    ended = foveate("adapt", "train", recipe, *ADAPTER, "--collection", "c")
    assert f"recipe '{recipe}': no such file or shipped recipe" in ended.sentence


def test_a_file_does_not_hide_a_shipped_recipe(resolve: Any, tiny_collection: Path) -> None:
    data = ("--collection", tiny_collection)
    shipped = resolve("species train", "species", *data)
    Path("species").write_text("{training: {epochs: 7}}\n", encoding="utf-8")
    Path("species.yaml").write_text("{training: {epochs: 7}}\n", encoding="utf-8")
    assert resolve("species train", "species", *data) == shipped
    assert resolve("species train", "species.yaml", *data).training.epochs == 7


@pytest.mark.parametrize("command", TRAININGS)
def test_a_training_needs_data(foveate: Run, command: str) -> None:
    Path("adapt.yaml").write_text("{backbone: {kind: lite0}, method: {method: linear}}\n", encoding="utf-8")
    ended = foveate(*command.split(), TRAININGS[command][1])
    assert ended.code == 2
    assert "Missing option '--collection'" in ended.err


def test_what_a_recipe_lacks_is_asked_for(foveate: Run) -> None:
    Path("adapt.yaml").write_text("{backbone: {kind: lite0}}\n", encoding="utf-8")
    for command, option in (
        (("adapt", "train"), "--backbone"),
        (("adapt", "train", "adapt.yaml"), "--method"),
        (("adapt", "compare"), "--backbone"),
        (("adapt", "compare", "adapt.yaml"), "--tasks"),
    ):
        ended = foveate(*command, "--dry-run")
        assert ended.code == 2
        assert f"Missing option '{option}'" in ended.err
