"""What is tried: the published grids by name, or a YAML file of one's own.

The published ones are those of "Lessons and Insights from a Unifying Study of PEFT in Visual Recognition"
(arXiv 2409.16434), in the order in which the study lists them: among equal candidates the last one is chosen.

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

from foveate.adapt.registry import method, method_names, settings_of
from foveate.core.errors import UserError, choose, nearest
from foveate.core.yaml_text import read_yaml

RATE, DECAY, DROP_PATH = "training.learning_rate", "training.weight_decay", "training.drop_path"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*")
# Where a method's own options stand among learning rate and the rest: the study sorts by the names of its fields.
_OWN_FIRST = ("adaptformer", "pfeiffer", "houlsby", "convpass")
_OWN_BEHIND_RATE = ("repadapter", "vpt-shallow", "vpt-deep")

Axes = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Candidate:
    """One row of a grid.

    Attributes:
        variant: the line of the table that it belongs to. number: its place in the grid, from 0.
        method: `method` and its options. training: fields of `AdaptTraining` that it sets.
    """

    variant: str
    number: int
    method: dict[str, Any]
    training: dict[str, Any]

    @property
    def said(self) -> str:
        """Its options in words: `rank 8, learning rate 0.001`."""
        own = {name: value for name, value in self.method.items() if name != "method"} | self.training
        return ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in own.items())


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Grid:
    """Variants with their axes; the last axis changes fastest.

    Attributes:
        training: fields of `AdaptTraining` that hold for all candidates where the user says nothing else.
        what: for people.
    """

    name: str
    axes: dict[str, Axes]
    methods: dict[str, str]
    training: dict[str, Any] = field(default_factory=dict)
    what: str = ""

    def candidates(self, variant: str) -> list[Candidate]:
        """All of a variant, in the order of the grid."""
        axes, found = self.axes[variant], []
        for number, values in enumerate(itertools.product(*axes.values())):
            chosen = dict(zip(axes, values, strict=True))
            training = {name.removeprefix("training."): v for name, v in chosen.items() if name.startswith("training.")}
            own = {name: value for name, value in chosen.items() if not name.startswith("training.")}
            found.append(Candidate(variant, number, {"method": self.methods[variant], **own}, training))
        return found

    def chosen(self, wanted: Sequence[str]) -> list[str]:
        """Names of variants: `all`, variants, or methods with all their variants; each once, in the grid's order.

        Raises:
            UserError: for a name that is neither, with the nearest.
        """
        names = [part for text in wanted for part in text.replace(",", " ").split()]
        if not names:
            raise UserError("methods: name at least one, or all")
        found: set[str] = set()
        for name in names:
            plain = name.replace("_", "-")
            of_method = {variant for variant in self.axes if self.methods[variant] == plain}
            if name == "all":
                found |= set(self.axes)
            elif name in self.axes:
                found.add(name)
            elif of_method:
                found |= of_method
            elif plain in method_names():
                raise UserError(f"grid '{self.name}' has nothing for method '{name}': it has {', '.join(self.axes)}")
            else:
                choose(plain, sorted({*self.axes, *method_names()}), "method")
        return [variant for variant in self.axes if variant in found]


def _merged(name: str, own: Axes, common: Axes) -> Axes:
    if name in _OWN_FIRST:
        return {**own, **common}
    rest = dict(common)
    front = {DROP_PATH: rest.pop(DROP_PATH)} if DROP_PATH in rest else {}
    if name in _OWN_BEHIND_RATE and RATE in rest:
        front[RATE] = rest.pop(RATE)
    return {**front, **own, **rest}


def _published(
    name: str,
    what: str,
    own: Mapping[str, Axes],
    common: Axes,
    methods: Mapping[str, str] | None = None,
    **training: Any,
) -> Grid:
    of = {variant: (methods or {}).get(variant, variant) for variant in own}
    axes = {variant: _merged(of[variant], axes, common) for variant, axes in own.items()}
    return Grid(name, axes, of, training, what)


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
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def _by_size(scales: Mapping[str, Sequence[float]]) -> tuple[dict[str, Axes], dict[str, str]]:
    """Methods of the study's comparison by size, a variant each: lora-1 to lora-256 and the like."""
    own: dict[str, Axes] = {name: {} for name in ("linear", "full", "bitfit", "ssf")}
    of: dict[str, str] = {}
    for name in ("lora", "houlsby", "fact-tk"):
        for size in _SIZES:
            own[f"{name}-{size}"] = {"rank": (size,), **({"scale": tuple(scales[name])} if name in scales else {})}
            of[f"{name}-{size}"] = name
    return own, of


def _wider() -> tuple[dict[str, Axes], dict[str, str]]:
    """What the study's file for CIFAR-100 lists beside them: the other methods by size, parts of the last blocks."""
    sizes: list[tuple[str, str, Sequence[int], Axes]] = [
        ("pfeiffer", "rank", (8, 32, 128, 512), {"scale": (0.1, 1.0)}),
        ("adaptformer", "rank", (8, 32, 128, 512), {"scale": (0.05, 0.1, 0.2)}),
        ("convpass", "rank", (4, 8, 64, 128), {"scale": (0.01, 0.1), "convolution": ("xavier", "identity")}),
        ("repadapter", "rank", (8, 16, 128, 256), {"scale": (0.1, 0.5, 1.0)}),
        ("fact-tt", "rank", (8, 32, 64, 128), {"scale": (0.01, 0.1, 1.0)}),
        ("vpt-shallow", "prompts", (50, 100, 200), {}),
        ("vpt-deep", "prompts", (10, 50, 200), {}),
    ]
    own: dict[str, Axes] = {name: {} for name in ("difffit", "layernorm")}
    of: dict[str, str] = {}
    for name, option, values, axes in sizes:
        own |= {f"{name}-{size}": {option: (size,), **axes} for size in values}
        of |= {f"{name}-{size}": name for size in values}
    last = {"attention": (1, 2, 3), "mlp": (1, 2), "block": (1,)}
    for part, counts in last.items():
        parts = ["attention", "mlp", "norms"] if part == "block" else [part]
        own |= {f"{part}-last{n}": {"blocks": (list(range(-n, 0)),), "parts": (parts,)} for n in counts}
        of |= {f"{part}-last{n}": "subset" for n in counts}
    return own, of


def _many(name: str, what: str, scales: Sequence[float], warmup: float, *, wide: bool = False) -> Grid:
    own, of = _by_size({"houlsby": scales, "fact-tk": scales})
    if wide:
        more, of_more = _wider()
        own, of = {**own, **more}, {**of, **of_more}
    common: Axes = {DROP_PATH: (0.0, 0.1, 0.2), RATE: (5e-4, 1e-3), DECAY: (1e-4, 1e-3)}
    return _published(name, what, own, common, of, epochs=40, warmup=warmup, final_learning_rate=1e-5, batch_size=64)


def _clever() -> Grid:
    own, of = _by_size({"houlsby": (0.1,), "fact-tk": (0.01,)})
    common: Axes = {DROP_PATH: (0.0,), RATE: (5e-4, 1e-3), DECAY: (1e-4,)}
    what = "the study's Clevr distance: sizes 1 to 256, a domain far from the pre-training"
    return _published("many-shot-far", what, own, common, of, epochs=40, warmup=0.1, final_learning_rate=1e-5)


def _robust(*, wide: bool = False) -> Grid:
    own: dict[str, Axes] = {
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
    training["first_learning_rate"] = 1e-7  # where a user takes the released schedule
    what = "the study's CLIP on ImageNet with 100 images a class"
    if not wide:
        return _published("clip", what, own, common, **training)
    sizes, of = _by_size({"houlsby": (0.01,), "fact-tk": (0.01,)})
    others = {name: axes for name, axes in own.items() if name not in of.values()}
    return _published("clip-wide", f"{what}, sizes 1 to 256", {**others, **sizes}, common, of, **training)


def _quick() -> Grid:
    # Every method with its defaults; full tuning breaks at rates that small parts need.
    own: dict[str, Axes] = {name: {} for name in _VTAB}
    grid = _published("quick", "every method with its defaults at two learning rates", own, {RATE: (1e-3, 1e-2)})
    grid.axes["full"] = {RATE: (1e-4, 1e-3)}
    return grid


def _fair() -> Grid:
    what = "vtab1k, and for full also the learning rates 0.00001 and 0.0001, which the study did not try"
    grid = _published("fair", what, _VTAB, _VTAB_COMMON, **_VTAB_TRAINING)
    grid.axes["full"] = {**grid.axes["full"], RATE: (1e-5, 1e-4, 1e-3, 1e-2)}
    return grid


GRIDS: dict[str, Grid] = {
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


def grid_of(text: str) -> Grid:
    """A published grid by its name, or one's own from a YAML file.

    Raises:
        UserError: when it is neither, or a field of the file is wrong.
    """
    if text in GRIDS:
        return GRIDS[text]
    path = Path(text)
    if path.suffix not in (".yaml", ".yml"):
        choose(text, GRIDS, "grid (or a YAML file)")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"), where=str(path))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"grid '{text}': no such file; grids by name are {', '.join(GRIDS)}") from error
    return _of_content(path, content)


def _of_content(path: Path, content: Any) -> Grid:
    if not isinstance(content, dict) or not isinstance(content.get("methods"), dict) or not content["methods"]:
        raise UserError(f"{path}: field 'methods' is missing: a grid names methods with lists of values")
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
    for name, own in content["methods"].items():
        if not _NAME.fullmatch(str(name)):
            raise UserError(f"{path}: name '{name}': allowed are letters, digits, _, . and single - between them")
        own = dict(own or {}) if isinstance(own, dict | None) else {"": own}
        of[name] = method(str(own.pop("method", name))).name.replace("_", "-")
        axes[name] = {**common, **dict(_axes(path, f"methods.{name}", own))}
    grid = Grid(path.stem, axes, of, dict(training), f"of {path.name}")
    for name in axes:
        for candidate in grid.candidates(name):
            settings_of(candidate.method)  # names a wrong option here, not in the middle of the work
    return grid


def _axes(path: Path, where: str, given: Any) -> Iterator[tuple[str, Sequence[Any]]]:
    if not isinstance(given, dict) or "" in given:
        raise UserError(f"{path}: field '{where}' must be a mapping of options to lists of values")
    for name, values in given.items():
        listed = values if isinstance(values, list) else [values]
        if not listed:
            raise UserError(f"{path}: field '{where}.{name}' lists no value")
        yield str(name), tuple(listed)
