"""The docs say what the code does: commands parse, links resolve, every field, option and reason is described."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import shlex
import subprocess
import tomllib
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from pydantic import BaseModel

from foveate.cli.main import cli
from foveate.core import progress
from foveate.core.recipes import load, recipe_names
from foveate.vision.registry import encoder_kinds, tower_options
from verbs import (
    leaves,
    model_of_recipe,
    models_of_recipes,
    named,
    parameters_of,
    recipe_verbs,
    verb_of_recipe,
)

ROOT = Path(__file__).resolve().parents[1]
DOCS, RECIPES = ROOT / "docs", ROOT / "recipes"
PAGES = [*sorted(DOCS.rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
VERBS = sorted(cli.list_commands(click.Context(cli)))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def fenced(page: Path, *languages: str) -> Iterator[str]:
    """The fenced blocks of a page in one of the languages."""
    for language, content in FENCE.findall(page.read_text(encoding="utf-8")):
        if language in languages:
            yield content


def foveate_arguments(line: str) -> list[str] | None:
    """What follows `foveate` in a shell line, or None where the line does not run it."""
    words = shlex.split(line.removeprefix("$ "), comments=True)
    for place, word in enumerate(words):
        program = word == "foveate" or word.endswith("/foveate")
        if program and (place == 0 or words[place - 1] in ("-m", "--", "&&") or "=" in words[place - 1]):
            # What stands behind "&&" or a pipe belongs to another program.
            return list(itertools.takewhile(lambda argument: argument not in ("&&", "|"), words[place + 1 :]))
    return None


def commands() -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        for block in fenced(page, "", "bash", "sh", "shell", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                arguments = foveate_arguments(line)
                if arguments is not None:
                    found.append((name_of(page), arguments))
    return found


COMMANDS = commands()


def test_the_docs_have_commands() -> None:
    assert len(COMMANDS) > 20
    assert {arguments[0] for _, arguments in COMMANDS} >= set(VERBS)


@pytest.mark.parametrize(("page", "arguments"), [pytest.param(*one, id=" ".join(one[1])) for one in COMMANDS])
def test_a_command_parses(page: str, arguments: list[str]) -> None:
    if arguments[0].startswith("-"):
        known = {option for parameter in cli.get_params(click.Context(cli)) for option in parameter.opts}
        assert arguments[0] in known, page
        return
    assert arguments[0] in VERBS, page
    command = cli.get_command(click.Context(cli), arguments[0])
    assert command is not None
    name, *rest = arguments
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name, *rest = rest
        assert name in command.commands, f"{page}: {' '.join(arguments)}"
        command = command.commands[name]
    try:
        context = command.make_context(name, rest)
    except click.exceptions.Exit:
        return  # --help
    finally:
        progress.configure(quiet=False)
    if arguments[0] in recipe_verbs() and context.params.get("recipe"):
        recipe = context.params["recipe"]
        shipped = next(one for one in recipe_names() if verb_of_recipe(RECIPES / f"{one}.yaml") == arguments[0])
        chosen = shipped if recipe.endswith(".yaml") else recipe
        load(model_of_recipe(arguments[0], chosen), chosen, context.params.get("overrides", ()))
    if arguments[0] == "recipes" and context.params["name"]:
        assert context.params["name"] in recipe_names(), page


def without_code(page: Path) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_internal_links_resolve(page: Path) -> None:
    text = without_code(page)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{name_of(page)}: {target}"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{name_of(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_are_python(page: Path) -> None:
    for block in fenced(page, "python"):
        ast.parse(block)  # raises SyntaxError for a block that is none


def imports_of(page: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports in a page's Python blocks, those of examples with prompts among them."""
    examples = (
        "\n".join(re.findall(r"^(?:>>>|\.\.\.) ?(.*)$", block, re.MULTILINE)) for block in fenced(page, "pycon")
    )
    for block in (*fenced(page, "python"), *examples):
        yield from (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import | ast.ImportFrom))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_import_what_is_public(page: Path) -> None:
    """Public are the names of `foveate` and of its rooms; modules below a room are private."""
    with warnings.catch_warnings():
        # A name that has moved still works for a release; the docs say where it is now.
        warnings.simplefilter("error", FutureWarning)
        for node in imports_of(page):
            names = [alias.name for alias in node.names]
            modules = [str(node.module)] if isinstance(node, ast.ImportFrom) else names
            for name in modules:
                if name.split(".")[0] not in ("foveate", "foveate_labs"):
                    continue
                module = importlib.import_module(name)
                # The laboratory has no doors.
                public = dir(module) if name.startswith("foveate_labs") else getattr(module, "__all__", ())
                assert public, f"{name} is private: import from the room, foveate.{name.split('.')[1]}"
                missing = [] if isinstance(node, ast.Import) else sorted({*names} - {*public})
                assert not missing, f"{name} has no {missing}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent != ROOT or page.name == "README.md"], ids=name_of
)
def test_dotted_names_are_public(page: Path) -> None:
    """What a page calls `foveate.ROOM.NAME` can be imported; code that is only to be read is named by its file."""
    for room, name in re.findall(r"\bfoveate\.([a-z]+)\.(\w+)", page.read_text(encoding="utf-8")):
        assert name in importlib.import_module(f"foveate.{room}").__all__, f"foveate.{room}.{name} is private"


def test_every_page_is_in_the_navigation() -> None:
    def paths(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            entry = list(entry.values())
        if isinstance(entry, list):
            for inner in entry:
                yield from paths(inner)

    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(paths(navigation)) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def fields(model: type[BaseModel]) -> Iterator[str]:
    """The names of all fields of a recipe model and of the models in it."""
    for name, field in model.model_fields.items():
        yield name
        for inner in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from fields(inner)


@pytest.mark.parametrize("verb", recipe_verbs())
def test_every_recipe_field_is_described(verb: str) -> None:
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    for model in models_of_recipes(verb).values():
        assert not {name for name in fields(named(model)) if f"`{name}`" not in text}, model


@pytest.mark.parametrize("attribute", ["IMAGE_ENCODER", "TEXT_ENCODER"])
def test_every_encoder_and_its_fields_are_described(attribute: str) -> None:
    recipes = (DOCS / "recipes.md").read_text(encoding="utf-8")
    encoders = (DOCS / "methods" / "encoders.md").read_text(encoding="utf-8")
    for kind in encoder_kinds(attribute):
        assert f"`{kind}`" in encoders
        section = re.search(rf"^### [^\n]*: {kind}\n(.*?)(?=^#|\Z)", recipes, re.MULTILINE | re.DOTALL)
        assert section, kind
        tower = {"IMAGE_ENCODER": "image_encoder", "TEXT_ENCODER": "text_encoder"}[attribute]
        missing = {name for name in tower_options(kind, tower) if f"`{name}`" not in section[1]}
        assert missing <= {"embed_dim"}, kind


def test_every_shipped_recipe_is_described() -> None:
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    assert not [name for name in recipe_names() if f"| `{name}` |" not in text]


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_is_described(verb: str) -> None:
    page = DOCS / "verbs" / f"{verb}.md"
    text = page.read_text(encoding="utf-8")
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    found = [parameter for _, leaf in leaves(command, (verb,)) for parameter in parameters_of(leaf)]
    options = [option for parameter in found for option in parameter.opts if option.startswith("--")]
    assert not [option for option in options if f"`{option}`" not in text]


def test_every_reason_of_the_quarantine_is_described() -> None:
    found = set()
    for path in (ROOT / "src" / "foveate" / "records").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"BadImage\(\s*\"([^\"]+)\"", source))
        found |= set(re.findall(r"Problem\(\s*\"\w+\",\s*\"([^\"]+)\"", source))
        found |= set(re.findall(r"return \"(box [a-z ]+)\"", source))
    assert len(found) > 15
    text = (DOCS / "collections.md").read_text(encoding="utf-8")
    assert not [reason for reason in sorted(found) if f"`{reason}`" not in text]


def test_every_column_of_a_collection_is_described() -> None:
    from foveate.records import tables

    text = (DOCS / "collections.md").read_text(encoding="utf-8")
    schemas = [tables.INDEX, tables.QUARANTINE, tables.REMOVED, tables.SPLITS, *tables.SCHEMAS.values()]
    assert not sorted({name for schema in schemas for name in schema.names if f"`{name}`" not in text})
    assert not [kind for kind in tables.SCHEMAS if f"`{kind}`" not in text]


def test_every_dependency_is_described() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for extra in project["project"].get("optional-dependencies", {}).values():
        listed += extra
    names = {re.split(r"[^A-Za-z0-9_.-]", requirement)[0] for requirement in listed} - {"foveate"}
    text = (DOCS / "dependencies.md").read_text(encoding="utf-8")
    assert not sorted(name for name in names if f"`{name}`" not in text)


def test_every_stored_number_has_a_test_in_the_table() -> None:
    text = (DOCS / "methods" / "cloc.md").read_text(encoding="utf-8")
    for test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        path = ROOT / test[0]
        assert path.is_file(), test[0]
        assert not test[1] or f"def {test[1]}(" in path.read_text(encoding="utf-8"), test
    for path in (ROOT / "tests").rglob("test_cloc_golden_*.py"):
        assert name_of(path) in text


def test_files_to_read_and_places_to_put_things_exist() -> None:
    sources = ROOT / "src"
    for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines():
        if row := re.match(r"\| `(\w+)` \| (`.*) \|$", line):
            room = sources / row[1] if row[1] == "foveate_labs" else sources / "foveate" / row[1]
            missing = [name for name in re.findall(r"`([\w/]+\.py)`", row[2]) if not (room / name).is_file()]
            assert not missing, f"CONTRIBUTING.md, {row[1]}: no {', '.join(missing)}"
    for name in re.findall(r"`([\w/]+\.py)`", (ROOT / "AGENTS.md").read_text(encoding="utf-8")):
        # NAME and ROOM stand for any module of a folder.
        path = Path(name) if not re.search(r"\b(NAME|ROOM)\b", name) else Path(name).parent
        assert any((folder / path).exists() for folder in (ROOT, sources, sources / "foveate")), f"AGENTS.md: no {name}"


def test_what_the_readme_writes_is_not_in_the_repository() -> None:
    """`foveate samples samples` is refused where other samples lie, as in a clone that brings some."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "samples", "runs"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout of git")
    assert not listed.stdout
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert {"/samples/", "/runs/"} <= set(ignored)
