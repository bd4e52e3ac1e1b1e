"""Grids of candidates: the published ones by name, or a YAML file of the user.

The published ones are those of "Lessons and Insights from a Unifying Study of PEFT in Visual Recognition"
(arXiv 2409.16434), in the order in which the study lists them: among equal candidates the last one is selected.

A file:

```yaml
training: {epochs: 30}                          # of all candidates
common: {training.learning_rate: [0.001, 0.01]}  # every method tries these
methods:
  lora: {rank: [4, 8]}
  lora-wide: {method: lora, rank: 64}
```
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.adapt.registry import get_method, method_names, parse_settings
from foveate.core.errors import UserError, choose, nearest
from foveate.core.yaml_text import read_yaml

RATE, DECAY, DROP_PATH = "training.learning_rate", "training.weight_decay", "training.drop_path"
# Names become parts of file names, in which a double - separates fields.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*")
# Whether a method's options come before the learning rate or behind it: the study sorts by the names of its fields, and
# the order decides which of equal candidates is the last.
_OPTIONS_FIRST = ("adaptformer", "pfeiffer", "houlsby", "convpass")
_OPTIONS_BEHIND_RATE = ("repadapter", "vpt-shallow", "vpt-deep")

Axes = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Candidate:
    """One row of a grid.

    Attributes:
        variant: the line of the table that it belongs to.
        number: its index among the candidates of the variant.
        method: `method` and its options.
        training: fields of `AdaptTraining` that it sets.
    """

    variant: str
    number: int
    method: dict[str, Any]
    training: dict[str, Any]

    def describe(self) -> str:
        """Format its options as text: `rank 8, learning rate 0.001`."""
        options = {name: value for name, value in self.method.items() if name != "method"} | self.training
        return ", ".join(f"{name.replace('_', ' ')} {_format_value(value)}" for name, value in options.items())


def _format_value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class VariantGrid:
    """Variants with their axes; the last axis changes fastest.

    Attributes:
        training: fields of `AdaptTraining` of all candidates, below what the user sets.
        description: for tables.
    """

    name: str
    axes: dict[str, Axes]
    methods: dict[str, str]
    training: dict[str, Any] = field(default_factory=dict)
    description: str = ""

    def candidates(self, variant: str) -> list[Candidate]:
        """Return all candidates of a variant, in the order of the grid."""
        axes, candidates = self.axes[variant], []
        for number, values in enumerate(itertools.product(*axes.values())):
            fields = dict(zip(axes, values, strict=True))
            training = {name.removeprefix("training."): v for name, v in fields.items() if name.startswith("training.")}
            options = {name: value for name, value in fields.items() if not name.startswith("training.")}
            candidates.append(Candidate(variant, number, {"method": self.methods[variant], **options}, training))
        return candidates

    def select(self, methods: Sequence[str]) -> list[str]:
        """Return names of variants in the grid's order, each once.

        Args:
            methods: `all`, variants, or methods with all their variants; separated by commas, too.

        Raises:
            UserError: a name is none of these; the nearest is named.
        """
        names = [part for text in methods for part in text.replace(",", " ").split()]
        if not names:
            raise UserError("methods: expected at least one name, or all")
        variants: set[str] = set()
        for name in names:
            # Methods may also be written with `_`; names of variants must match exactly.
            plain = name.replace("_", "-")
            of_method = {variant for variant in self.axes if self.methods[variant] == plain}
            if name == "all":
                variants |= set(self.axes)
            elif name in self.axes:
                variants.add(name)
            elif of_method:
                variants |= of_method
            elif plain in method_names():
                raise UserError(
                    f"grid '{self.name}' has no candidates of method '{name}': it has {', '.join(self.axes)}"
                )
            else:
                choose(plain, sorted({*self.axes, *method_names()}), "method")
        return [variant for variant in self.axes if variant in variants]


def _merge_axes(name: str, options: Axes, common: Axes) -> Axes:
    if name in _OPTIONS_FIRST:
        return {**options, **common}
    rest = dict(common)
    front = {DROP_PATH: rest.pop(DROP_PATH)} if DROP_PATH in rest else {}
    if name in _OPTIONS_BEHIND_RATE and RATE in rest:
        front[RATE] = rest.pop(RATE)
    return {**front, **options, **rest}


def _published(
    name: str,
    description: str,
    options: Mapping[str, Axes],
    common: Axes,
    methods: Mapping[str, str] | None = None,
    **training: Any,
) -> VariantGrid:
    of = {variant: (methods or {}).get(variant, variant) for variant in options}
    # The study trains its linear probe as every other method, and chooses its learning rate.
    training.setdefault("head_solver", "steps")
    axes = {variant: _merge_axes(of[variant], axes, common) for variant, axes in options.items()}
    return VariantGrid(name, axes, of, training, description)


_NO_OPTIONS = ("linear", "full", "bitfit", "difffit", "layernorm", "ssf")
_VTAB: dict[str, Axes] = {
    **{name: {} for name in ("linear", "full")},
    "vpt-shallow": {"prompts": (5, 10, 50, 100, 200)},
    "vpt-deep": {"prompts": (5, 10, 50, 100)},
    **{name: {} for name in ("bitfit", "difffit", "layernorm", "ssf")},
    "pfeiffer": {"rank": (4, 8, 16, 32, 64), "scale": (0.01, 0.1, 1.0, 10.0)},
    "houlsby": {"rank": (4, 8, 16, 32), "scale": (0.01, 0.1, 1.0, 10.0)},
    "adaptformer": {"rank": (4, 16, 32), "scale": (0.05, 0.1, 0.2)},
    "repadapter": {"rank": (8, 16, 32), "scale": (0.1, 0.5, 1.0, 5.0, 10.0)},
    "convpass": {
        "rank": (8, 16),
        "scale": (0.01, 0.1, 1.0, 10.0, 100.0),
        "convolution": ("xavier", "identity"),
    },
    "lora": {"rank": (1, 8, 16, 32)},
    "fact-tt": {"rank": (8, 16, 32), "scale": (0.01, 0.1, 1.0, 10.0, 100.0)},
    "fact-tk": {"rank": (16, 32, 64), "scale": (0.01, 0.1, 1.0, 10.0, 100.0)},
}
_VTAB_COMMON: Axes = {DROP_PATH: (0.1,), RATE: (1e-3, 1e-2), DECAY: (1e-4, 1e-3)}
_VTAB_TRAINING: dict[str, Any] = {"epochs": 100, "warmup": 0.1, "final_learning_rate": 1e-5, "batch_size": 64}
# Ranks of the study's comparison by size.
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def _by_size(scales: Mapping[str, Sequence[float]]) -> tuple[dict[str, Axes], dict[str, str]]:
    """Return the methods of the study's comparison by size, a variant each: lora-1 to lora-256 and the like."""
    options: dict[str, Axes] = {name: {} for name in ("linear", "full", "bitfit", "ssf")}
    of: dict[str, str] = {}
    for name in ("lora", "houlsby", "fact-tk"):
        for size in _SIZES:
            options[f"{name}-{size}"] = {"rank": (size,), **({"scale": tuple(scales[name])} if name in scales else {})}
            of[f"{name}-{size}"] = name
    return options, of


def _wider() -> tuple[dict[str, Axes], dict[str, str]]:
    """Return what the study's file for CIFAR-100 adds to them: the other methods by size, parts of the last blocks."""
    sizes: list[tuple[str, str, Sequence[int], Axes]] = [
        ("pfeiffer", "rank", (8, 32, 128, 512), {"scale": (0.1, 1.0)}),
        ("adaptformer", "rank", (8, 32, 128, 512), {"scale": (0.05, 0.1, 0.2)}),
        ("convpass", "rank", (4, 8, 64, 128), {"scale": (0.01, 0.1), "convolution": ("xavier", "identity")}),
        ("repadapter", "rank", (8, 16, 128, 256), {"scale": (0.1, 0.5, 1.0)}),
        ("fact-tt", "rank", (8, 32, 64, 128), {"scale": (0.01, 0.1, 1.0)}),
        ("vpt-shallow", "prompts", (50, 100, 200), {}),
        ("vpt-deep", "prompts", (10, 50, 200), {}),
    ]
    options: dict[str, Axes] = {name: {} for name in ("difffit", "layernorm")}
    of: dict[str, str] = {}
    for name, option, values, axes in sizes:
        options |= {f"{name}-{size}": {option: (size,), **axes} for size in values}
        of |= {f"{name}-{size}": name for size in values}
    last = {"attention": (1, 2, 3), "mlp": (1, 2), "block": (1,)}
    for part, counts in last.items():
        parts = ["attention", "mlp", "norms"] if part == "block" else [part]
        options |= {f"{part}-last{n}": {"blocks": (list(range(-n, 0)),), "parts": (parts,)} for n in counts}
        of |= {f"{part}-last{n}": "subset" for n in counts}
    return options, of


def _many(name: str, description: str, scales: Sequence[float], warmup: float, *, wide: bool = False) -> VariantGrid:
    options, of = _by_size({"houlsby": scales, "fact-tk": scales})
    if wide:
        more, of_more = _wider()
        options, of = {**options, **more}, {**of, **of_more}
    # As the study's files for many labels list them.
    common: Axes = {DROP_PATH: (0.0, 0.1, 0.2), RATE: (5e-4, 1e-3), DECAY: (1e-4, 1e-3)}
    return _published(
        name, description, options, common, of, epochs=40, warmup=warmup, final_learning_rate=1e-5, batch_size=64
    )


def _clever() -> VariantGrid:
    options, of = _by_size({"houlsby": (0.1,), "fact-tk": (0.01,)})
    common: Axes = {DROP_PATH: (0.0,), RATE: (5e-4, 1e-3), DECAY: (1e-4,)}
    description = "the study's Clevr distance: sizes 1 to 256, a domain far from the pre-training"
    return _published(
        "many-shot-far", description, options, common, of, epochs=40, warmup=0.1, final_learning_rate=1e-5
    )


def _robust(*, wide: bool = False) -> VariantGrid:
    options: dict[str, Axes] = {
        **{name: {} for name in _NO_OPTIONS},
        "vpt-deep": {"prompts": (50,)},
        "pfeiffer": {"rank": (32,), "scale": (0.1,)},
        "houlsby": {"rank": (32,), "scale": (0.01,)},
        "adaptformer": {"rank": (32,), "scale": (0.1,)},
        "repadapter": {"rank": (32,), "scale": (1.0,)},
        "convpass": {"rank": (32,), "scale": (1.0,), "convolution": ("xavier",)},
        "lora": {"rank": (32,)},
        "fact-tt": {"rank": (32,), "scale": (1.0,)},
        "fact-tk": {"rank": (32,), "scale": (0.01,)},
    }
    common: Axes = {DROP_PATH: (0.0, 0.1), RATE: (3e-5,), DECAY: (5e-3,)}
    training: dict[str, Any] = {"epochs": 100, "warmup": 0.1, "final_learning_rate": 1e-6, "batch_size": 256}
    training["first_learning_rate"] = 1e-7  # read with the released schedule only
    description = "the study's CLIP on ImageNet with 100 images a class"
    if not wide:
        return _published("clip", description, options, common, **training)
    sizes, of = _by_size({"houlsby": (0.01,), "fact-tk": (0.01,)})
    others = {name: axes for name, axes in options.items() if name not in of.values()}
    return _published("clip-wide", f"{description}, sizes 1 to 256", {**others, **sizes}, common, of, **training)


def _quick() -> VariantGrid:
    # Every method with its defaults; full tuning breaks at rates that small parts need.
    options: dict[str, Axes] = {name: {} for name in _VTAB}
    grid = _published(
        "quick",
        "every method with its defaults at two learning rates; linear is solved",
        options,
        {RATE: (1e-3, 1e-2)},
        head_solver="lbfgs",
    )
    grid.axes["full"] = {RATE: (1e-4, 1e-3)}
    grid.axes["linear"] = {}
    return grid


def _fair() -> VariantGrid:
    description = "vtab1k, and for full also the learning rates 0.00001 and 0.0001, which the study did not try"
    grid = _published("fair", description, _VTAB, _VTAB_COMMON, **_VTAB_TRAINING)
    grid.axes["full"] = {**grid.axes["full"], RATE: (1e-5, 1e-4, 1e-3, 1e-2)}
    return grid


GRIDS: dict[str, VariantGrid] = {
    grid.name: grid
    for grid in (
        _quick(),
        _published("vtab1k", "the study's VTAB-1K", _VTAB, _VTAB_COMMON, **_VTAB_TRAINING),
        _fair(),
        _many("many-shot", "the study's CIFAR-100: sizes 1 to 256 at many labels", (0.01, 0.1), 0.1),
        _many("many-shot-aerial", "the study's RESISC45: sizes 1 to 256 at many labels", (0.1, 1.0), 0.125),
        _many("many-shot-wide", "all that the study lists for CIFAR-100", (0.01, 0.1), 0.1, wide=True),
        _clever(),
        _robust(),
        _robust(wide=True),
    )
}


def load_grid(text: str) -> VariantGrid:
    """Return a published grid by its name, or read one from a YAML file.

    Raises:
        UserError: it is neither, or a field of the file is wrong.
    """
    if text in GRIDS:
        return GRIDS[text]
    path = Path(text)
    # Not a file: then it is a misspelled name, and the nearest one is named.
    if path.suffix not in (".yaml", ".yml"):
        choose(text, GRIDS, "grid (or a YAML file)")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"), where=str(path))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"grid '{text}': no such file; grids by name are {', '.join(GRIDS)}") from error
    return _parse_grid(path, content)


def _parse_grid(path: Path, content: Any) -> VariantGrid:
    if not isinstance(content, dict) or not isinstance(content.get("methods"), dict) or not content["methods"]:
        raise UserError(f"{path}: field 'methods' is missing; a grid names methods with lists of values")
    for key in content:
        if key not in ("training", "common", "methods"):
            allowed = ("training", "common", "methods")
            raise UserError(f"{path}: unknown field '{key}': allowed are {', '.join(allowed)}{nearest(key, allowed)}")
    common = dict(_axes(path, "common", content.get("common") or {}))
    training = content.get("training") or {}
    if not isinstance(training, dict):
        raise UserError(f"{path}: field 'training' must be a mapping of fields to values")
    axes: dict[str, Axes] = {}
    of: dict[str, str] = {}
    for name, fields in content["methods"].items():
        if not _NAME.fullmatch(str(name)):
            raise UserError(f"{path}: name '{name}' must consist of letters, digits, _, . and single - between them")
        fields = dict(fields or {}) if isinstance(fields, dict | None) else {"": fields}
        of[name] = get_method(str(fields.pop("method", name))).name.replace("_", "-")
        axes[name] = {**common, **dict(_axes(path, f"methods.{name}", fields))}
    grid = VariantGrid(path.stem, axes, of, dict(training), f"of {path.name}")
    for name in axes:
        for candidate in grid.candidates(name):
            parse_settings(candidate.method)  # names a wrong option here, not in the middle of the work
    return grid


def _axes(path: Path, where: str, fields: Any) -> Iterator[tuple[str, Sequence[Any]]]:
    if not isinstance(fields, dict) or "" in fields:
        raise UserError(f"{path}: field '{where}' must be a mapping of options to lists of values")
    for name, values in fields.items():
        listed = values if isinstance(values, list) else [values]
        if not listed:
            raise UserError(f"{path}: field '{where}.{name}' lists no value")
        yield str(name), tuple(listed)
