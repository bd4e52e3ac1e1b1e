"""Measure the house by room: names, comments, modules, functions, imports and their arrows, of both packages.

    python tools/house.py                  # the tables of foveate and foveate_labs
    python tools/house.py --names caption  # every name outside the field's vocabulary in src/foveate/caption
    python tools/house.py --src OTHER/src --json

It informs whoever reads the house; nothing is enforced.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import statistics
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# docs: STYLE's vocabulary. A bare participle says what happened to a thing, not what it is.
BANNED = frozenset(
    "found one said told made shown asked kept place own given chosen wanted taken "
    "meant beside numbers visit sitting words".split()
)
BOUNDS = re.compile(r"^(most|least|fewest)(_|$)|_(most|least)$", re.IGNORECASE)
BRITISH = re.compile(
    r"\w*(?:colour|centre|neighbour|behaviour|favour|labell|modell|licence|artefact|catalogue|grey\b"
    r"|(?:normal|local|organ|initial|optim|quant|token|summar|recogn|serial|general|standard|regular|visual|minim|maxim)is(?:e|ed|es|er|ers|ing|ation)\b)\w*",
    re.IGNORECASE,
)
# Lower-case words without a mark between them: a sentence has a capital, a comma or a full stop.
WORD_LIST = re.compile(r"\s*(?:[a-z-]+\s+){5,}[a-z-]*\s*")
FLOORS = {
    **dict.fromkeys(("core", "records", "survey", "metrics", "chat"), 0.0),
    **dict.fromkeys(("vision", "language", "training"), 1.0),
    "multimodal": 1.5,
    **dict.fromkeys(
        ("caption", "pretrain", "search", "mllm", "video", "adapt", "calibrate", "federated", "species"), 2.0
    ),
    **dict.fromkeys(("report", "serve"), 3.0),
    "cli": 4.0,
}
WING = 2.0
SMALL, LONG = 60, 600
PACKAGES = ("foveate", "foveate_labs")
LONG_FUNCTIONS = (50, 80)
MAX_PARAMETERS = 9


@dataclass
class Room:
    """Counts of one room."""

    files: int = 0
    lines: int = 0
    file_lengths: list[int] = field(default_factory=list)
    function_lengths: list[int] = field(default_factory=list)
    import_lines: int = 0
    crowded: list[str] = field(default_factory=list)
    comments: int = 0
    names: Counter[str] = field(default_factory=Counter)
    british: Counter[str] = field(default_factory=Counter)
    small: list[str] = field(default_factory=list)
    long: list[str] = field(default_factory=list)


def assigned_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield (name, line) of everything that the module names itself: variables, arguments, functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno


def count_import_lines(tree: ast.AST) -> int:
    """Count the lines of import statements, also of those in functions."""
    statements = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    return sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in statements)


def count_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the parameters of a function, self and cls left out."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    variable = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    return len([name for name in names if name not in ("self", "cls")]) + len(variable)


def is_banned(name: str) -> bool:
    """Whether a name is outside the field's vocabulary (docs: CONTRIBUTING, words)."""
    return name.strip("_").lower() in BANNED or bool(BOUNDS.search(name.strip("_")))


def is_word_list(literal: str) -> bool:
    """Whether a string literal is data rather than prose: one word, a pattern, or words of a dictionary.

    Dictionaries list both spellings, since texts of users have both.
    """
    content = literal.strip("rbfu\"'")
    return len(content.split()) < 2 or bool(WORD_LIST.fullmatch(content))


def imports_of(tree: ast.AST, module: str, modules: set[str]) -> Iterator[tuple[str, int, list[str]]]:
    """Yield (imported module of this package, line, imported names); imports for type checkers count, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, []) for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in modules:
                    yield inner, node.lineno, []
                elif node.module in modules and node.module != module:
                    yield node.module, node.lineno, [alias.name]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan, iterative)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []
    for root in graph:
        if root in index:
            continue
        work = [(root, iter(sorted(graph[root])))]
        index[root] = low[root] = len(index)
        stack.append(root)
        while work:
            node, edges = work[-1]
            step = next(edges, None)
            if step is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = stack[stack.index(node) :]
                    del stack[stack.index(node) :]
                    if len(component) > 1:
                        components.append(sorted(component))
            elif step not in index:
                index[step] = low[step] = len(index)
                stack.append(step)
                work.append((step, iter(sorted(graph[step]))))
            elif step in stack:
                low[node] = min(low[node], index[step])
    return components


def room_of(path: Path, src: Path) -> str:
    """Return the room of a module; those of the package's own folder share one."""
    relative = path.relative_to(src)
    return relative.parts[0] if len(relative.parts) > 1 else "(package)"


def measure(folder: Path, package: str) -> dict[str, object]:
    """Measure all modules of a package in `folder`; importers are counted in all packages there."""
    src = folder / package
    paths = sorted(src.rglob("*.py"))
    every_path = sorted(path for name in PACKAGES for path in (folder / name).rglob("*.py"))
    name_of = {path: ".".join(path.relative_to(folder).with_suffix("").parts) for path in every_path}
    name_of = {path: name.removesuffix(".__init__") for path, name in name_of.items()}
    modules = set(name_of.values())
    rooms: dict[str, Room] = defaultdict(Room)
    graph: dict[str, set[str]] = {}
    up: list[str] = []
    private: list[str] = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        relative = path.relative_to(src)
        room_name = room_of(path, src)
        room = rooms[room_name]
        count = text.count("\n")
        room.files += 1
        room.lines += count
        room.file_lengths.append(count)
        room.import_lines += count_import_lines(tree)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        room.comments += sum(token.type == tokenize.COMMENT for token in tokens)
        prose = (token.string for token in tokens if token.type != tokenize.STRING or not is_word_list(token.string))
        room.british.update(word.lower() for line in prose for word in BRITISH.findall(line))
        for name, line in assigned_names(tree):
            if is_banned(name):
                room.names[f"{relative}:{line} {name}"] += 1
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                room.function_lengths.append(node.end_lineno - node.lineno + 1)
                if (count_of_parameters := count_parameters(node)) > MAX_PARAMETERS:
                    room.crowded.append(f"{relative}:{node.lineno} {node.name} {count_of_parameters}")
        if count > LONG:
            room.long.append(f"{relative} {count}")
        module = name_of[path]
        graph[module] = set()
        for target, line, names in imports_of(tree, module, modules):
            graph[module].add(target)
            parts = target.split(".")
            other = parts[1] if len(parts) > 1 else ""
            if room_name in FLOORS and other in FLOORS and other != room_name:
                here, there = FLOORS[room_name], FLOORS[other]
                if there > here or here == there == WING:
                    up.append(f"{relative}:{line} -> {target}")
            private += [
                f"{relative}:{line} {target}.{name}" for name in names if name.startswith("_") and name != "__version__"
            ]
    # A package that imports its own modules lists them: that is no user of one.
    for path in every_path:
        if (module := name_of[path]) not in graph:
            graph[module] = {target for target, _, _ in imports_of(ast.parse(path.read_text()), module, modules)}
    importers = Counter(
        target for module, targets in graph.items() for target in targets if target.rpartition(".")[0] != module
    )
    for path in paths:
        count = path.read_text(encoding="utf-8").count("\n")
        if count < SMALL and path.name != "__init__.py" and importers[name_of[path]] == 1:
            rooms[room_of(path, src)].small.append(f"{path.relative_to(src)} {count}")
    own = [circle for circle in circles(graph) if any(name.split(".")[0] == package for name in circle)]
    return {"rooms": rooms, "circles": own, "up": sorted(set(up)), "private": sorted(private)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", type=Path, default=Path("src"), help="folder of the packages")
    parser.add_argument("--names", metavar="ROOM", help="list the names outside the vocabulary of a room, or 'all'")
    parser.add_argument("--json", action="store_true", help="print the totals as JSON")
    arguments = parser.parse_args()
    results = {name: measure(arguments.src, name) for name in PACKAGES if (arguments.src / name).is_dir()}
    if arguments.names:
        for result in results.values():
            rooms: dict[str, Room] = result["rooms"]  # type: ignore[assignment]
            for name, room in rooms.items():
                if arguments.names in (name, "all"):
                    print("\n".join(room.names))
    elif arguments.json:
        print(json.dumps({name: summarize(result) for name, result in results.items()}, indent=1))
    else:
        for name, result in results.items():
            print_tables(name, result)


def summarize(result: dict[str, object]) -> dict[str, float]:
    """Sum up a package."""
    rooms: dict[str, Room] = result["rooms"]  # type: ignore[assignment]
    every = list(rooms.values())
    lengths = [length for room in every for length in room.file_lengths]
    functions = [length for room in every for length in room.function_lengths]
    lines = max(1, sum(lengths))
    return {
        "files": len(lengths),
        "lines": sum(lengths),
        "median_file": statistics.median(lengths),
        "mean_file": round(statistics.mean(lengths), 1),
        "import_share": round(sum(room.import_lines for room in every) / lines, 4),
        "median_function": statistics.median(functions),
        **{f"functions_over_{most}": sum(length > most for length in functions) for most in LONG_FUNCTIONS},
        f"functions_over_{MAX_PARAMETERS}_parameters": sum(len(room.crowded) for room in every),
        "comments_per_1000": round(1000 * sum(room.comments for room in every) / lines, 1),
        "names": sum(room.names.total() for room in every),
        "british": sum(room.british.total() for room in every),
        "small_with_one_importer": sum(len(room.small) for room in every),
        "long": sum(len(room.long) for room in every),
        "circles": len(result["circles"]),  # type: ignore[arg-type]
        "arrows_up": len(result["up"]),  # type: ignore[arg-type]
        "private_imports": len(result["private"]),  # type: ignore[arg-type]
    }


def print_tables(package: str, result: dict[str, object]) -> None:
    """Print the rooms of a package, its sums, and what a reader would look at first."""
    rooms: dict[str, Room] = result["rooms"]  # type: ignore[assignment]
    over = "".join(f"{f'>{most}':>5}" for most in LONG_FUNCTIONS)
    print(
        f"{package:<14}{'files':>6}{'lines':>8}{'median':>8}{'mean':>6}{'imports':>9}{over}"
        f"{f'>{MAX_PARAMETERS} par':>7}{'comments/1000':>15}{'names':>7}{'British':>9}{'small':>7}{'long':>6}"
    )
    for name, room in sorted(rooms.items()):
        lines = max(1, room.lines)
        counts = "".join(f"{sum(length > most for length in room.function_lengths):>5}" for most in LONG_FUNCTIONS)
        print(
            f"{name:<14}{room.files:>6}{room.lines:>8}{statistics.median(room.file_lengths):>8.0f}"
            f"{room.lines / room.files:>6.0f}{room.import_lines / lines:>9.1%}{counts}{len(room.crowded):>7}"
            f"{1000 * room.comments / lines:>15.1f}{room.names.total():>7}{room.british.total():>9}"
            f"{len(room.small):>7}{len(room.long):>6}"
        )
    print(json.dumps(summarize(result)))
    for label in ("circles", "up", "private"):
        entries: list[object] = result[label]  # type: ignore[assignment]
        if entries:
            print(f"\n{label}:", *(f"  {entry}" for entry in entries), sep="\n")
    for label in ("small", "long", "crowded"):
        listed = [entry for room in rooms.values() for entry in getattr(room, label)]
        if listed:
            print(f"\n{label}:", "  " + ", ".join(listed), sep="\n")
    print()


if __name__ == "__main__":
    main()
