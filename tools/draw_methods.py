"""Draws where each method of `foveate.adapt` sits in a transformer block (docs/images/adapt/METHOD.svg).

    python tools/draw_methods.py docs/images/adapt

Orange is trained, gray is frozen. The same tool always gives the same bytes; a test compares them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

# name -> (text, y of the middle); an image has one column of operations, from pixels to logits.
OPERATIONS = {
    "patch": ("patch convolution", 40),
    "norm1": ("norm 1", 118),
    "qkv": ("q, k, v", 178),
    "attention": ("attention", 222),
    "proj": ("projection", 266),
    "norm2": ("norm 2", 384),
    "fc1": ("fc1", 444),
    "gelu": ("GELU", 488),
    "fc2": ("fc2", 532),
    "norm": ("last norm", 664),
    "head": ("head", 708),
}
SUMS = {"first": 328, "second": 594}
WIDTH, HEIGHT = 430, 742
MIDDLE, HALF, TALL = 160, 62, 28
FROZEN, TRAINED, INK = ("#eef1f5", "#9aa5b8"), ("#ffe0b8", "#d9480f"), "#1f2937"
LINEAR = ("qkv", "proj", "fc1", "fc2")
NORMS = ("norm1", "norm2", "norm")


@dataclass(frozen=True)
class Branch:
    """A trained box on the right: reads the column at y `source`, comes back at y `target`."""

    source: int
    target: int
    lines: tuple[str, ...]
    sign: str = "+"


@dataclass(frozen=True)
class Diagram:
    """What a method trains.

    whole: operations trained whole. tags: operation -> what of it or behind it is trained. note: at the bottom.
    """

    what: str
    whole: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    branches: tuple[Branch, ...] = ()
    tokens: tuple[int, ...] = ()
    leaves: tuple[int, ...] = ()


def _bottleneck(source: int, target: int) -> Branch:
    return Branch(source, target, ("Down", "ReLU", "Up, times s"))


def _beside(operation: str, *lines: str) -> Branch:
    y = OPERATIONS[operation][1]
    return Branch(y - 22, y + 22, lines)


_BIASES = tuple((name, "bias") for name in ("patch", *NORMS, *LINEAR))
_FACT = tuple(_beside(name, "V T U") for name in LINEAR)
IMAGES = {
    "linear": Diagram("the head alone"),
    "full": Diagram("everything", tuple(name for name in OPERATIONS if name not in ("attention", "gelu"))),
    "bitfit": Diagram("every bias", tags=_BIASES),
    "layernorm": Diagram("every norm", NORMS),
    "difffit": Diagram(
        "every bias, every norm, a scale behind each sublayer",
        NORMS,
        (("patch", "bias"), ("qkv", "bias"), ("fc1", "bias"), ("proj", "bias, times g1"), ("fc2", "bias, times g2")),
    ),
    "ssf": Diagram("a scale and a shift behind every linear operation and norm",
                   tags=tuple((name, "times s, plus t") for name in ("patch", *NORMS, *LINEAR))),
    "vpt-shallow": Diagram("tokens that enter in front of the first block", tokens=(76,)),
    "vpt-deep": Diagram("tokens that enter in front of each block and leave behind it", tokens=(76,), leaves=(616,)),
    "lora": Diagram("a low-rank matrix beside q, k, v", branches=(_beside("qkv", "B A"),)),
    "adaptformer": Diagram("a bottleneck beside norm 2 and MLP", branches=(_bottleneck(352, 566),)),
    "pfeiffer": Diagram("a bottleneck behind the MLP", branches=(_bottleneck(552, 574),)),
    "houlsby": Diagram("a bottleneck behind attention and one behind the MLP",
                       branches=(_bottleneck(286, 308), _bottleneck(552, 574))),
    "convpass": Diagram(
        "a small convolution beside attention and beside the MLP",
        branches=tuple(Branch(a, b, ("Down", "Conv 3 x 3", "Up, times s")) for a, b in ((148, 298), (414, 564))),
    ),
    "repadapter": Diagram(
        "a linear bottleneck in front of q, k, v and of fc1",
        branches=tuple(Branch(a, b, ("B A, times s",)) for a, b in ((138, 154), (404, 420))),
    ),
    "fact-tt": Diagram("low-rank matrices whose factors all blocks share", branches=_FACT),
    "fact-tk": Diagram("low-rank matrices whose factors and cores all blocks share", branches=_FACT),
    "subset": Diagram("named parts, here attention", ("qkv", "proj")),
}  # fmt: skip


def _text(x: float, y: float, words: str, *, size: int = 13, anchor: str = "middle", fill: str = INK) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{fill}">{words}</text>'


def _line(*points: tuple[float, float], trained: bool = False) -> str:
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    color = TRAINED[1] if trained else FROZEN[1]
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>'


def _box(x: float, y: float, width: float, height: float, *, trained: bool) -> str:
    fill, stroke = TRAINED if trained else FROZEN
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" fill="{fill}" stroke="{stroke}"/>'


def _sum(y: float, sign: str = "+", *, trained: bool = False) -> str:
    color = TRAINED[1] if trained else FROZEN[1]
    return f'<circle cx="{MIDDLE}" cy="{y:g}" r="8" fill="#ffffff" stroke="{color}" stroke-width="1.6"/>' + _text(
        MIDDLE, y + 4.5, sign, fill=color
    )


def _branch(branch: Branch) -> list[str]:
    middle = (branch.source + branch.target) / 2
    height = 12 + 16 * len(branch.lines)
    left, width = 264, 120
    top = middle - height / 2
    axis = left + width / 2
    parts = [
        _line((MIDDLE, branch.source), (axis, branch.source), (axis, top), trained=True)
        if branch.source < top
        else _line((MIDDLE, branch.source), (left, branch.source), trained=True),
        _line((axis, top + height), (axis, branch.target), (MIDDLE, branch.target), trained=True)
        if branch.target > top + height
        else _line((left, branch.target), (MIDDLE, branch.target), trained=True),
        _box(left, top, width, height, trained=True),
    ]
    parts += [_text(axis, top + 18.5 + 16 * n, words) for n, words in enumerate(branch.lines)]
    return [*parts, _sum(branch.target, branch.sign, trained=True)]


def draw(name: str) -> str:
    """The image of a method as SVG."""
    said = IMAGES[name]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif" role="img">',
        f"<title>{name}: {said.what}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>',
        f'<rect x="14" y="90" width="{WIDTH - 28}" height="536" rx="8" fill="none" stroke="{FROZEN[1]}" '
        'stroke-dasharray="5 4"/>',
        _text(24, 616, "block", size=12, anchor="start"),
        _line((MIDDLE, 40), (MIDDLE, 708)),
        _line((MIDDLE, 98), (54, 98), (54, SUMS["first"]), (MIDDLE, SUMS["first"])),
        _line((MIDDLE, 346), (54, 346), (54, SUMS["second"]), (MIDDLE, SUMS["second"])),
    ]
    tags = dict(said.tags)
    for key, (words, y) in OPERATIONS.items():
        trained = key in said.whole or key == "head"
        parts += [
            _box(MIDDLE - HALF, y - TALL / 2, 2 * HALF, TALL, trained=trained),
            _text(MIDDLE, y + 4.5, words),
        ]
        if key in tags:
            parts += [_box(264, y - 12, 120, 24, trained=True), _text(324, y + 4.5, tags[key])]
            parts.append(_line((MIDDLE + HALF, y), (264, y), trained=True))
    parts += [_sum(y) for y in SUMS.values()]
    for branch in said.branches:
        parts += _branch(branch)
    for y in said.tokens:
        parts += [_line((264, y), (MIDDLE, y), trained=True), _box(264, y - 12, 120, 24, trained=True)]
        parts += [_text(324, y + 4.5, "n prompts"), _sum(y, "+", trained=True)]
    for y in said.leaves:
        parts += [_line((MIDDLE, y), (264, y), trained=True), _text(270, y + 4.5, "prompts leave", anchor="start")]
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Writes all images into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("to", type=Path, help="folder of the images")
    to: Path = parser.parse_args().to
    to.mkdir(parents=True, exist_ok=True)
    for name in IMAGES:
        (to / f"{name}.svg").write_text(draw(name), encoding="utf-8")
        print(to / f"{name}.svg")


if __name__ == "__main__":
    main()
