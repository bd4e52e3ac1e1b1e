"""The house's rules, held by the sources themselves: who may import whom, what loads torch, what every part has."""

from __future__ import annotations

import ast
import functools
import itertools
import json
import os
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from naming import raises_naming
from verbs import (
    VERBS,
    model_of_recipe,
    models_of_recipes,
    module_of,
    named,
    parameters_of,
    sub_verbs,
    verb_of_recipe,
)

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src" / "foveate"
LABS = ROOT / "src" / "foveate_labs"
# All rules of code hold for the laboratory, too.
MODULES = sorted([*SOURCES.rglob("*.py"), *LABS.rglob("*.py")])
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

GROUND = ("survey", "records", "metrics", "chat", "core")
FIRST = ("vision", "language", "training")
SECOND = ("multimodal",)
WINGS = ("caption", "pretrain", "search", "mllm", "video", "adapt", "calibrate", "federated", "species")
ROOF = ("report", "serve", "cli")
FLOOR = {room: floor for floor, rooms in enumerate((GROUND, FIRST, SECOND, WINGS, ROOF)) for room in rooms}
WITHOUT_TORCH = (*GROUND, "report")
HEAVY = {"torch", "torchvision", "open_clip", "transformers", "safetensors.torch", "timm"}
# Loaded inside a function, when tensors are read or written, or a model of transformers is loaded.
LAZY = {
    ("hub.py", "transformers.utils"),
    ("devices.py", "torch"),
    *((name, module) for name in ("model_folder.py", "peft_folder.py") for module in ("safetensors.torch", "torch")),
}
# Arrows that a floor does not allow by itself: within the ground floor and the roof.
SAME_FLOOR = {
    ("records", "core"),
    ("metrics", "core"),
    ("chat", "core"),
    ("metrics", "records"),
    ("survey", "records"),
    ("survey", "core"),
    ("cli", "report"),
    ("cli", "serve"),
}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


class Facts(NamedTuple):
    """What the rules ask of a file: with the line, each imported module and name, dotted call and caught exception."""

    imports: list[tuple[int, str]]
    calls: list[tuple[int, str]]
    caught: list[tuple[int, str]]
    public_classes: list[str]


@functools.cache
def facts_of(path: Path) -> Facts:
    """Read a file once for all rules; what is imported inside functions or `if TYPE_CHECKING` counts as well."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    facts = Facts([], [], [], public)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            facts.imports.extend((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: imports are absolute"
            module = node.module or ""
            facts.imports.append((node.lineno, module))
            if module.split(".")[0] in ("foveate", "foveate_labs"):
                facts.imports.extend((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and (name := dotted(node.func)):
            safe = any(key.arg == "weights_only" and getattr(key.value, "value", None) is True for key in node.keywords)
            facts.calls.append((node.lineno, f"{name} of weights only" if name == "torch.load" and safe else name))
        elif isinstance(node, ast.ExceptHandler):
            facts.caught.append((node.lineno, "" if node.type is None else ast.unparse(node.type)))
    return facts


def dotted(node: ast.expr) -> str:
    """The name of `a.b.c`; empty for what is no such name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{inner}.{node.attr}" if (inner := dotted(node.value)) else ""
    return ""


def imports_of(path: Path) -> list[tuple[int, str]]:
    return facts_of(path).imports


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "foveate" and len(parts) > 1 and parts[1] in FLOOR else None


def test_every_folder_is_a_room_of_the_house() -> None:
    folders = {path.name for path in SOURCES.iterdir() if path.is_dir() and path.name not in ("__pycache__", "data")}
    assert folders <= set(FLOOR), folders - set(FLOOR)
    for folder in folders:
        assert len(list((SOURCES / folder).rglob("*.py"))) > 1, f"{folder} is empty: a room exists once it is built"


def test_the_product_never_imports_the_laboratory() -> None:
    wrong = [
        f"{relative(path)}:{line} imports {module}"
        for path in SOURCES.rglob("*.py")
        for line, module in imports_of(path)
        if module.split(".")[0] == "foveate_labs"
    ]
    assert not wrong, "\n".join(wrong)


def test_arrows_run_down() -> None:
    wrong = []
    for path in sorted(SOURCES.rglob("*.py")):
        room = path.relative_to(SOURCES).parts[0]
        if room not in FLOOR:
            continue
        for line, module in imports_of(path):
            other = room_of(module)
            if other is None or other == room or (room, other) in SAME_FLOOR:
                continue
            if FLOOR[other] >= FLOOR[room]:
                wrong.append(f"{relative(path)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_no_room_knows_its_neighbors() -> None:
    for here, there in itertools.permutations((*FIRST, *SECOND), 2):
        if here in SECOND and there != "training":
            continue
        for path in (SOURCES / here).rglob("*.py"):
            assert all(room_of(module) != there for _, module in imports_of(path)), relative(path)


def test_ground_floor_and_report_are_without_torch() -> None:
    wrong = [
        f"{relative(path)}:{line} imports {module}"
        for room in WITHOUT_TORCH
        for path in (SOURCES / room).rglob("*.py")
        for line, module in imports_of(path)
        if (module.split(".")[0] in HEAVY or module in HEAVY) and (path.name, module) not in LAZY
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_unpickled() -> None:
    # Logits that a user saved with PyTorch are plain tensors alone.
    user_files = "logit_files.py"
    for path in MODULES:
        for line, module in imports_of(path):
            assert module.split(".")[0] not in ("pickle", "dill", "joblib", "shelve"), f"{relative(path)}:{line}"
        for line, name in facts_of(path).calls:
            assert name not in ("torch.save", "torch.load"), f"{relative(path)}:{line}: {name}"
            if name == "torch.load of weights only":
                allowed = ("lite0.py", user_files)
                assert path.name in allowed, f"{relative(path)}:{line}: only a packaged file, after its hash"
        assert "allow_pickle=True" not in path.read_text(encoding="utf-8"), relative(path)


# Flower sends the text of an exception to the server; what a client's data hold must not get into it.
# A served model that fails on one call, by whatever error, goes on with the others.
CATCH_ALL = (
    "federated/node.py", "federated/flower/client_app.py", "training/trackers/__init__.py", "core/plugins.py",
    "search/databases.py",
)  # fmt: skip


def test_no_catch_all_and_no_global_numpy_state() -> None:
    allowed = ("default_rng", "Generator", "SeedSequence", "Philox", "PCG64", "BitGenerator")
    for path in MODULES:
        for line, caught in facts_of(path).caught:
            if not relative(path).endswith(CATCH_ALL):
                assert caught not in ("", "Exception"), f"{relative(path)}:{line}: catches everything"
        for line, name in facts_of(path).calls:
            if name.startswith(("np.random.", "numpy.random.")):
                assert name.split(".")[2] in allowed, f"{relative(path)}:{line}: {name}"


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")


def room_of_path(path: Path) -> str:
    """The room of a file: of the product "vision", of the laboratory "foveate_labs.worlds"."""
    package, room, *_ = path.relative_to(ROOT / "src").parts
    return room if package == "foveate" else f"{package}.{room}"


def test_every_module_with_a_public_class_has_a_test() -> None:
    """A test imports the module, or one of the same room that is made of it (a writer and its quarantine, say)."""
    tested = {module for path in (ROOT / "tests").rglob("*.py") for _, module in imports_of(path)}
    for _ in range(2):
        for path in MODULES:
            if name_of(path) in tested:
                inner = {module for _, module in imports_of(path)}
                room = room_of_path(path)
                tested |= {module for module in inner if module.startswith((f"foveate.{room}.", f"{room}."))}
    untested = []
    for path in MODULES:
        public = facts_of(path).public_classes
        if public and name_of(path) not in tested:
            untested.append(f"{name_of(path)} ({', '.join(public)})")
    assert not untested, "no test imports " + "; ".join(untested)


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "code",
    [
        "import foveate; foveate.Collection, foveate.Box, foveate.UserError, dir(foveate)",
        "import foveate, importlib, pkgutil; [dir(importlib.import_module(f'foveate.{room.name}')) for room in "
        "pkgutil.iter_modules(foveate.__path__) if room.ispkg]",
        "from foveate.cli.main import cli; cli(['--help'], standalone_mode=False)",
        "from foveate.cli.main import cli; cli(['recipes'], standalone_mode=False)",
        "from foveate.cli.main import cli; cli(['pretrain', '--help'], standalone_mode=False)",
        "from foveate.cli.main import cli; cli(['captioner', 'evaluate', '--help'], standalone_mode=False)",
        "from foveate.cli.main import cli; cli(['adapt', 'train', '--help'], standalone_mode=False)",
        "from foveate.cli.main import cli; cli(['mllm', 'plan', '--help'], standalone_mode=False)",
        "from foveate.cli.main import cli; cli(['federated', 'embed', '--help'], standalone_mode=False)",
        "import foveate.serve; from foveate.cli.main import cli; cli(['serve', '--help'], standalone_mode=False)",
    ],
)
def test_what_needs_no_torch_loads_none(code: str) -> None:
    done = python(f"{code}\nimport sys, json\nprint(json.dumps([n for n in sys.modules if '.' not in n]))")
    assert done.returncode == 0, done.stderr
    assert not (HEAVY | {"starlette", "uvicorn"}) & set(json.loads(done.stdout.splitlines()[-1]))


def test_help_loads_no_settings() -> None:
    """pydantic and yaml more than double the time of `foveate --help`."""
    code = "import sys; from foveate.cli.main import cli; cli(['--help'], standalone_mode=False); print(*sys.modules)"
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert not {"pydantic", "yaml"} & set(done.stdout.splitlines()[-1].split())


def test_help_is_quick() -> None:
    """Less than 0.3 s of a processor's time more than the bare interpreter takes on this machine; best of three."""

    def seconds(code: str) -> float:
        spent = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            assert python(code).returncode == 0
            spent.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
        return min(spent)

    assert seconds("from foveate.cli.main import cli; cli(['--help'], standalone_mode=False)") < 0.3 + seconds("pass")


def test_lazy_names_exist() -> None:
    import foveate

    for name in foveate.__all__:
        assert getattr(foveate, name) is not None
    with raises_naming(AttributeError, "nothing"):
        _ = foveate.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_build_on_the_meta_device(path: Path) -> None:
    import torch

    from foveate.core.recipes import load

    module, verb = module_of(verb_of_recipe(path)), verb_of_recipe(path)
    recipe = load(model_of_recipe(verb, path.stem), path.stem)
    if path.stem in models_of_recipes(verb):
        return  # its network is that of a base, which no recipe ships
    with torch.device("meta"):
        model = named(module.MODEL)(recipe)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) > 10_000


def test_the_promised_recipes_are_there() -> None:
    names = {path.stem for path in RECIPES}
    assert {"tour", "tour-clip", "tour-roi", "clip-vit-b16", "cloc-vit-b16", "captioner"} <= names


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_have_an_example(verb: str) -> None:
    command = module_of(verb).command
    assert isinstance(command, click.Command)
    assert command.name == verb
    assert "Example:" in (command.help or "")
    assert f"foveate {verb}" in (command.help or "")
    assert command.short_help


@pytest.mark.parametrize(("path", "command"), [pytest.param(*leaf, id=" ".join(leaf[0])) for leaf in sub_verbs()])
def test_what_verbs_do_has_an_example_and_json(path: tuple[str, ...], command: click.Command) -> None:
    called = " ".join(path)
    assert command.name == path[-1]
    assert "Example:" in (command.help or ""), called
    assert f"foveate {called}" in (command.help or ""), called
    assert command.short_help, called
    assert "--json" in {option for parameter in parameters_of(command) for option in parameter.opts}, called
    for parameter in parameters_of(command):
        if isinstance(parameter, click.Option) and parameter.name not in ("run",):
            assert parameter.help, f"{called} {parameter.opts}: no help"


def encoder_kinds() -> list[str]:
    return sorted(
        path.stem
        for path in (SOURCES / "vision").glob("*.py")
        if any(f"{name} = " in path.read_text(encoding="utf-8") for name in ("IMAGE_ENCODER", "TEXT_ENCODER"))
    )


def test_encoders_and_methods_are_documented() -> None:
    from typing import get_args

    from foveate.vision.localizer.settings import RegionSettings

    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))
    methods = [name for name in get_args(RegionSettings.model_fields["method"].annotation) if name != "none"]
    missing = [
        name for name in (*encoder_kinds(), *methods, *(f"foveate {verb}" for verb in VERBS)) if name not in pages
    ]
    assert not missing, f"docs do not name {', '.join(missing)}"


def test_no_machine_paths() -> None:
    folders = tuple(f"/{name}/" for name in ("work", "root", "tmp"))
    for path in [*MODULES, *RECIPES, *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not [folder for folder in folders if folder in text], relative(path)


def test_every_test_module_has_a_name_of_its_own() -> None:
    """Without packages pytest imports a module by its file's name, and refuses a second one of that name."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_the_lines_that_mutations_change_exist() -> None:
    command = [sys.executable, str(ROOT / "tools" / "mutations.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"tools/mutations.py names lines that are gone: {done.stdout}{done.stderr}"
