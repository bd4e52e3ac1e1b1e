"""Maps of points: one SVG path per group, names at the groups' middles where asked, a legend of the groups."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup, escape

from foveate.report.charts import Scale

COLORS = 10  # classes g0 to g9 of the style sheet; all further groups share the gray class `rest`


def ranked(groups: Sequence[str]) -> dict[str, str]:
    """Map groups to styles: the most frequent ones, in order of their names, get a color each."""
    counts = Counter(groups)
    # The largest groups get a color, but by the order of their names: a legend is read by name.
    colored = sorted(sorted(counts, key=lambda group: (-counts[group], group))[:COLORS], key=natural)
    styles = {name: f"g{number}" for number, name in enumerate(colored)}
    return styles | {name: "rest" for name in sorted(counts, key=natural) if name not in styles}


def natural(name: str) -> tuple[int, float, str]:
    """Return a sort key: numbers by value, then words by their last number (client 2 before client 10)."""
    if name.lstrip("-").isdecimal():
        return 0, float(name), ""
    head = name.rstrip("0123456789")
    return 1, 0.0, head + name[len(head) :].zfill(9)


def scatter(
    places: Sequence[Sequence[float]],
    groups: Sequence[str],
    styles: dict[str, str],
    *,
    title: str,
    size: int = 400,
    named: bool = False,
) -> Markup:
    """Draw a square map with equal scales; of three dimensions the third is dropped. Empty without a point.

    Args:
        named: each group's name stands at the median of its points (those with a color of their own).
    """
    if not places:
        return Markup("")
    xs, ys = [float(point[0]) for point in places], [float(point[1]) for point in places]
    # One scale for both axes: otherwise a distance would depend on its direction.
    reach = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
    middle = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    x_of = Scale(middle[0] - reach / 2, middle[0] + reach / 2, 10, size - 10)
    y_of = Scale(middle[1] - reach / 2, middle[1] + reach / 2, size - 10, 10)
    # Dots shrink as their number grows, so that all of them together cover about the same area.
    width = min(8.0, max(2.6, 160 / math.sqrt(len(places))))
    parts = [
        f'<svg class="map" viewBox="0 0 {size} {size}" role="img" '
        f'aria-label="{escape(f"{title}: {len(places):,} points of {len(styles)} groups")}">'
    ]
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    # Gray groups first, so that they lie under the colored ones.
    for group in sorted(members, key=lambda name: (styles[name] != "rest", natural(name))):
        # A line of length 0 with round ends is a dot: one path for a group instead of thousands of circles.
        drawn = "".join(f"M{x_of(xs[index]):.1f} {y_of(ys[index]):.1f}h0" for index in members[group])
        parts.append(f'<path class="pts {styles[group]}" style="stroke-width:{width:.1f}" d="{drawn}"/>')
    if named:
        for group, indices in sorted(members.items(), key=lambda item: natural(item[0])):
            if styles[group] != "rest":
                x, y = _median([xs[index] for index in indices]), _median([ys[index] for index in indices])
                parts.append(f'<text class="at" x="{x_of(x):.1f}" y="{y_of(y) + 4:.1f}">{escape(group[:18])}</text>')
    parts.append("</svg>")
    return Markup("".join(parts))


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def legend(styles: dict[str, str]) -> Markup:
    """Draw the groups with their colors; those without a color are counted."""
    colored = [(name, style) for name, style in styles.items() if style != "rest"]
    items = [f'<li><i class="{style}"></i>{escape(name)}</li>' for name, style in colored]
    rest = len(styles) - len(colored)
    if rest:
        items.append(f'<li><i class="rest"></i>{rest} more</li>')
    return Markup(f'<ul class="groups">{"".join(items)}</ul>')
