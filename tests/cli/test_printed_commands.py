"""Commands that the program prints or shows in help, messages and pages exist, with options by their present names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from foveate.cli.renamed import renamed_options
from verbs import ROOT, parameters_of, sub_verbs

SOURCES = ROOT / "src"
COMMANDS = {" ".join(path): command for path, command in sub_verbs()}
OPTIONS = {
    name: {"--help", *(flag for one in parameters_of(command) for flag in (*one.opts, *one.secondary_opts))}
    for name, command in COMMANDS.items()
}
GROUPS = {" ".join(path[:length]) for path, _ in sub_verbs() for length in range(1, len(path))}
# A command ends with its line, at a quote of Markdown or a semicolon, or where the next one begins; pages hold the end
# of a line as two letters.
COMMAND = re.compile(r"\bfoveate ([a-z][a-z0-9-]*(?: [a-z][a-z0-9-]*){0,2})(?:(?!\bfoveate |\\n)[^`;\n])*")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# What is said of a shipped model is what happened: it was trained by this command.
HISTORY = {"foveate/data/smollm2-mini/README.md"}


def files() -> Iterator[tuple[str, Path]]:
    """The files of the package whose texts a user may see, by name."""
    for path in sorted(SOURCES.rglob("*")):
        name = str(path.relative_to(SOURCES))
        if path.suffix in (".py", ".j2", ".js", ".html", ".md") and name not in HISTORY:
            yield name, path


def texts(path: Path) -> Iterator[str]:
    """The literals of a module, with X for the values of f-strings, or a whole file of another kind."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield content
        return
    nodes = list(ast.walk(ast.parse(content)))
    formatted = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    inner = {id(part) for node in formatted for part in node.values}
    for node in formatted:
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value


def find_mistakes(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a text, with what is wrong about it: nothing, an option, or that there is no such command."""
    for found in COMMAND.finditer(text.replace("\\\n", " ")):
        words, options = found[1].split(), OPTION.findall(found[0])
        starts = [" ".join(words[:length]) for length in range(len(words), 0, -1)]
        name = next((name for name in starts if name in COMMANDS), None)
        if name is not None:
            yield found[0], " ".join(option for option in options if option not in OPTIONS[name])
        elif options or (words[0] in GROUPS and found[1] not in GROUPS):
            yield found[0], "no such command"


def test_mistakes_are_found() -> None:
    def mistakes(text: str) -> list[str]:
        return [mistake for _, mistake in find_mistakes(text)]

    assert mistakes("run `foveate pretrain tour --run X`, or foveate recipes tour --out Y") == ["--run", ""]
    assert mistakes("foveate adapt train \\\n  --data X\nfoveate mllm evaluate X --judge Y") == ["--data", "--judge"]
    assert mistakes("foveate adapt tune X, foveate tune --out X, foveate is") == ["no such command"] * 2
    assert mistakes("foveate federated policy show X --json, `foveate federated policy`, foveate federated") == [""]
    assert mistakes("foveate federated policy write X") == ["no such command"]


def test_printed_commands_exist() -> None:
    count, wrong = 0, []
    for name, path in files():
        for text in texts(path):
            for command, mistake in find_mistakes(text):
                count += 1
                wrong += [f"{name}: {command}: {mistake}"] if mistake else []
    assert not wrong
    assert count > 400


def test_no_text_names_an_option_that_no_command_has_any_more() -> None:
    gone = {old for names in renamed_options().values() for old in names} - set().union(*OPTIONS.values())
    assert gone >= {"--run", "--endpoint-model"}
    for name, path in files():
        if name != "foveate/cli/renamed.py":
            assert not gone & {option for text in texts(path) for option in OPTION.findall(text)}, name
