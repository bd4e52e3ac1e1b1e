"""Recipe files and overrides: read and checked, or refused with a sentence."""

from __future__ import annotations

import functools
from typing import Any

import yaml
from fuzz_run import Target, Trial
from fuzz_values import damaged, mutated, odd_text, odd_value

from foveate.core.recipes import dump, load, recipe_names, recipe_path, validate

_LINES = (
    "a: &a [*a]",
    "x: !!python/object/apply:os.system ['true']",
    "x: !!binary '###'",
    "x: 2024-99-99",
    "x: 0x",
    "x: 1:99:99",
    "? [a]\n: b",
    "? {a: b}\n: c",
    "<<: 1",
    "<<: *b",
    "training:\n\tsteps: 1",
    "x: !!int 'a'",
    "x: !!float '.'",
    "---\na: 1",
    "x: !!timestamp '2024-13-45'",
    "x: !!set {a, b}",
    "x: 1_000_",
    "x: .nan",
    "x: -.inf",
    "x: 1e400",
    "embed_dim: " + "9" * 5000,
    "x: !!omap [1]",
    "x: !!pairs [1]",
    "training: {steps: 99999999999999999999}",
    "'\\ud800': 1",
    '"\\ud800": 1',
    "%YAML 9.9",
    "x: !<tag> 1",
    "x: 0b2",
    "x: 0o9",
    "x: 08",
    "x: +",
    "x: 190:20:30.15",
    "x: !!bool q",
    "x: !!null q",
    "x: 9999-12-31T23:59:60Z",
    "- a",
)


def _laughs(depth: int, width: int) -> str:
    """Aliases of aliases, which would be 10 ** depth entries written out."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)]
    return "\n".join(lines) + f"\nimage_encoder: {{kind: open_clip, x: *a{depth - 1}}}\ntraining: *a{depth - 1}\n"


@functools.cache
def _shipped() -> dict[str, tuple[str, Any]]:
    texts = {name: recipe_path(name).read_text(encoding="utf-8") for name in recipe_names()}
    return {name: (text, yaml.safe_load(text)) for name, text in texts.items()}


def _model() -> Any:
    from foveate.pretrain.recipe import PretrainRecipe

    return PretrainRecipe


def _check(recipe: Any) -> str:
    """What was accepted can be written, and is read again as the same."""
    again = validate(_model(), yaml.load(dump(recipe), Loader=yaml.CSafeLoader), where="again")
    assert dump(again) == dump(recipe)
    return "accepted"


def files(trial: Trial) -> str:
    """A shipped recipe with changed values, changed text or changed bytes."""
    random = trial.random
    text, content = _shipped()[random.choice(sorted(_shipped()))]
    choice = random.random()
    if choice < 0.5:
        try:
            text = yaml.safe_dump(mutated(random, content), sort_keys=False, allow_unicode=random.random() < 0.5)
        except (yaml.YAMLError, RecursionError, ValueError):
            text = "{"
    elif choice < 0.75:
        lines = text.splitlines()
        place = random.randrange(len(lines) + 1)
        lines[place:place] = [random.choice(_LINES)]
        text = "\n".join(lines)
    elif choice < 0.8:
        text = random.choice(_LINES)
    elif choice < 0.83:
        text += _laughs(random.choice((3, 9, 30)), random.choice((2, 10)))
    elif choice < 0.86:
        depth = random.choice((50, 900, 3000))
        text += "x: " + random.choice(("[", "{a: ", "- ", "? ", "[[", "!!seq [")) * depth
    data = text.encode("utf-8", "surrogatepass")
    if choice > 0.86 or random.random() < 0.1:
        data = damaged(random, data)
    path = trial.folder / "r.yaml"
    path.write_bytes(data)
    return _check(load(_model(), str(path)))


_FIELDS = (
    "training.steps",
    "training.batch_size",
    "embed_dim",
    "regions.method",
    "regions.prompter.pool",
    "data.captions.alt",
    "data.views.scale",
    "parameter_rules",
    "loss",
    "image_encoder.kind",
    "image_encoder",
    "initial",
    "training",
    "x",
    "",
    ".",
    "training..steps",
    "data.captions",
    "training.steps.x",
    "regions.filter_threshold",
    "a.b.c.d",
    "logit_scale_init",
    "config_version",
    "training.learning_rate",
)
_VALUES = (
    "1",
    "-1",
    "0",
    "1e-3",
    "nan",
    ".nan",
    ".inf",
    "true",
    "null",
    "",
    "[]",
    "{}",
    "[1, 2]",
    "{a: b}",
    "'",
    "[",
    "&a [*a]",
    "9" * 5000,
    "prompter",
    "2024-99-99",
    "!!python/name:os",
    "0x",
    "\t",
    "\0",
    "[" * 3000,
    "1:2:3",
    "*a",
    "%",
    "@",
    "`",
    "|",
    ">",
    "- - -",
    "a: b: c",
)


def overrides(trial: Trial) -> str:
    """`name.of.field=value` of any kind, on any recipe name."""
    random = trial.random
    given = []
    for _ in range(random.choice((1, 1, 2, 4))):
        field = random.choice(_FIELDS) if random.random() < 0.85 else odd_text(random)
        value = random.choice(_VALUES) if random.random() < 0.8 else str(odd_value(random))
        given.append(f"{field}={value}" if random.random() < 0.95 else odd_text(random))
    name = random.choice(recipe_names()) if random.random() < 0.9 else odd_text(random)
    trial.note((name, given))
    return _check(load(_model(), name, given))


RECIPES = {one.name: one for one in (Target("recipes", files), Target("overrides", overrides))}
