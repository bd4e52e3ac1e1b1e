"""Every verb with arguments at random: it ends with 0, or with one sentence and 1 or 2, never with a traceback."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
import sys
from random import Random
from typing import Any

import click
from fuzz_images import good
from fuzz_models import home
from fuzz_run import Target, Trial
from fuzz_values import odd_text

from foveate.cli.main import cli, main
from foveate.core import progress
from foveate.core.errors import UserError
from verbs import parameters_of

# What these do for minutes is not what arguments break: they end where the work would begin.
_LONG = (
    ("foveate_labs.tour.run", "tour"),
    ("foveate_labs.studies.runner", "run_study"),
    ("foveate.pretrain.train", "pretrain"),
    ("foveate_labs.worlds.scenes", "build_scenes"),
    ("foveate.pretrain.doctor", "examine"),
    ("foveate.pretrain.export", "export"),
    ("foveate.pretrain.evaluate", "evaluate"),
    ("foveate.caption.evaluate", "evaluate_model"),
)
_WORDS = (
    "c",
    "c",
    "m",
    "i",
    "s",
    "p.jpg",
    "t.csv",
    "none",
    "c/index",
    "c/collection.json",
    ".",
    "..",
    "",
    "a red boat",
    "tour",
    "cloc",
    "cloc-vit-b16",
    "captioner",
    "clip-vit-b16",
    "r.yaml",
    "webdataset",
    "coco",
    "folder",
    "builtin",
    "clipart",
    "table",
    "datasets",
    "x=y",
    "training.steps=3",
    "k1",
    "k2",
    "train",
    "test",
    "0.1,0.2,0.5,0.6",
    "nan,0,1,1",
    "1",
    "0",
    "-1",
    "1e400",
    "nan",
    "cpu",
    "cuda",
    "cuda:99",
    "none/none/none",
    "p.jpg/x",
    "train=1",
    "train=0.5,test=0.5",
    "train=nan",
    "words=2",
    "words=-1",
    "color=red",
    "open_clip",
    "onnx",
    "auto",
    "grid",
    "float16",
    "h100-80gb",
)


@functools.cache
def command_lines() -> dict[str, click.Command]:
    """Every verb, and every sub-verb of a group, by the words that call it."""
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return dict(pair for name, verb in found.items() if verb is not None for pair in _leaves(name, verb))


def _leaves(name: str, verb: click.Command) -> list[tuple[str, click.Command]]:
    """A verb, or the sub-verbs of a group under all of their words."""
    if not isinstance(verb, click.Group):
        return [(name, verb)]
    return [pair for inner, sub in verb.commands.items() for pair in _leaves(f"{name} {inner}", sub)]


def _refuse(*arguments: Any, **options: Any) -> Any:
    raise UserError("not in a fuzz run")


@contextlib.contextmanager
def _short() -> Any:
    import importlib

    kept = []
    for module, name in _LONG:
        loaded = importlib.import_module(module)
        kept.append((loaded, name, getattr(loaded, name)))
        setattr(loaded, name, _refuse)
    try:
        yield
    finally:
        for loaded, name, value in kept:
            setattr(loaded, name, value)


def _word(random: Random, parameter: click.Parameter | None = None) -> str:
    kind = getattr(parameter, "type", None)
    if isinstance(kind, click.Choice) and random.random() < 0.7:
        return str(random.choice(list(kind.choices)))
    if isinstance(kind, click.types.IntParamType | click.types.FloatParamType) and random.random() < 0.7:
        return random.choice(("1", "2", "3", "0", "-1", "99999999999999999999", "1.5", "nan", "inf", "1e3", "x"))
    if random.random() < 0.9:
        return random.choice(_WORDS)
    # A process gets its arguments without NUL; half a surrogate pair stands for a byte that is no UTF-8.
    text = odd_text(random).replace("\0", "")
    return os.fsdecode(text.encode("utf-8", "surrogatepass")).lstrip("/")


def words_for(random: Random) -> list[str]:
    """One argument vector."""
    if random.random() < 0.03:
        return [_word(random) for _ in range(random.randrange(4))]
    name = random.choice(sorted(command_lines()))
    verb, words = command_lines()[name], name.split()
    for parameter in parameters_of(verb):
        if isinstance(parameter, click.Argument):
            count = 1 if parameter.nargs == 1 else random.randrange(3)
            words += [_word(random, parameter) for _ in range(count if random.random() < 0.93 else 0)]
        elif isinstance(parameter, click.Option) and random.random() < (0.8 if parameter.required else 0.12):
            words.append(random.choice(parameter.opts))
            if not parameter.is_flag:
                words.append(_word(random, parameter))
    if random.random() < 0.08:
        words.insert(
            random.randrange(len(words) + 1),
            random.choice(("--", "-x", "--help", "--no", "-h", "--json=1", "--seed=-1", "-")),
        )
    return words


def arguments(trial: Trial) -> str:
    """One argument vector, in a folder that has a collection, a model, an index, images and a table."""
    random, place = trial.random, trial.folder
    for name in ("c", "m", "i"):
        if random.random() < 0.8:
            shutil.copytree(home() / name, place / name)
    (place / "s").mkdir()
    (place / "s" / "a.jpg").write_bytes(good(1))
    (place / "s" / "a.txt").write_text("a boat", encoding="utf-8")
    (place / "p.jpg").write_bytes(good(2))
    (place / "t.csv").write_text("path,caption\ns/a.jpg,x\n", encoding="utf-8")
    (place / "r.yaml").write_text("training: {steps: 1}\n", encoding="utf-8")
    words = words_for(random)
    trial.note(words)
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    before, argv, stdin = os.getcwd(), sys.argv, sys.stdin
    code: Any = 0
    os.chdir(place)
    sys.argv, sys.stdin = ["foveate", *words], io.StringIO("")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _short():
            main(words)
    except SystemExit as end:
        code = end.code or 0
    finally:
        os.chdir(before)
        sys.argv, sys.stdin = argv, stdin
        progress.configure(quiet=True)
    err.flush()
    said = err.buffer.getvalue().decode("utf-8", "replace")
    assert code in (0, 1, 2), f"it ended with {code!r}"
    assert "Traceback" not in said, said[-2000:]
    if code == 1 and words[:1] != ["doctor"]:
        assert "foveate: " in said, said[-500:]
    return f"ended with {code}"


CLI = {"arguments": Target("arguments", arguments)}
