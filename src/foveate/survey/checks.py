"""Check a survey before training: clocks, deployments, places, names, duplicates, bursts.

Findings are reported and, if they make an hour unknown, masked (`Survey.count_missing`). Nothing is corrected: each
finding names the repair that a person can make.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foveate.core.errors import choose
from foveate.survey.hours import DAY, TimeStatus, format_day
from foveate.survey.store import SEPARATOR, join_names
from foveate.survey.survey import Survey
from foveate.survey.videos import BY_FILE_DATE, TIME_SOURCE

MAX_EXAMPLES = 5
_SHIFT = (
    "find the true time of one image (a person with a watch, the start of the deployment) and state the difference as "
    "clock_shift in deployments.csv, or timestampIssues=true if it cannot be known; then collect again"
)
_COORDINATES = "correct latitude and longitude in deployments.csv and collect again"
# Code -> its meaning, and the repair.
MEANINGS: dict[str, tuple[str, str]] = {
    "no time": (
        "the images have no time: no hour and no season is learned from them, and each is an event of its own",
        "copy the files with a tool that keeps EXIF; images saved by an editor or a messenger have lost it",
    ),
    "dated by file": (
        "the videos state no time, neither in the file nor in its name: they have that of the file's last change, "
        "which copying with some tools replaces",
        "compare with the time that the camera prints on the frames; if it differs, copy the card again with a tool "
        "that keeps the times of files, or name the files by their time (VID_20260531_082538.MP4)",
    ),
    "impossible time": ("the time is no date that exists", _SHIFT),
    "factory date": ("the clock was reset, probably by new batteries, and begins in the first days of a year", _SHIFT),
    "years off": ("the clock is off by almost a year or more", _SHIFT),
    "outside the deployment": (
        "the times lie more than a day outside deploymentStart and deploymentEnd",
        f"check the dates of the deployment and whether the card belongs to it; else {_SHIFT}",
    ),
    "later than the import": ("the times lie in the future", _SHIFT),
    "set back": (
        "the clock runs backwards between files that follow each other: it was set while the camera was out",
        "move the files before and after the jump into two folders with a row each, and state the clock_shift of the "
        "wrong one",
    ),
    "gap of months": (
        "no image for 90 days or more between others of the deployment: two seasons in one row, or the camera failed",
        "give each season a folder and a row with its deploymentStart and deploymentEnd; nights without a working "
        "camera must not count as effort",
    ),
    "stopped early": (
        "no image on the last nights before deploymentEnd, far longer than the camera was ever silent: the battery "
        "died, the card was full, or the camera was blocked",
        "set deploymentEnd to the day of the last image, so that the nights behind it are no effort; if the camera was "
        "still working at pick-up, leave it",
    ),
    "no night images": (
        "the last nights have no infra-red image while the camera still worked by day: batteries are often too weak "
        "for the flash long before they are empty",
        "leave these nights out of an analysis of nocturnal species; check the batteries",
    ),
    "no flash at night": (
        "images of the night are black: the flash failed, was switched off, or the battery was too weak for it",
        "do not count these images as empty; leave their nights out of an analysis of nocturnal species",
    ),
    "turned": (
        "the background changes from one image to the next and stays so: the camera was knocked over, turned or moved",
        "look at the images before and after; if it shows another area since, give what follows a folder and a row of "
        "its own, or end the deployment there",
    ),
    "fogged or covered": (
        "images in a row are far more blurred and flat than this camera's others: the lens was fogged, dirty or "
        "covered, or there was fog for hours",
        "do not count these images as empty; leave their days out of the effort if nothing could be recognized",
    ),
    "stuck clock": ("many images have the same second: the clock stood still, or a program rewrote the times", _SHIFT),
    "timestamp issues": ("timestampIssues is true: no hour is used", "state clock_shift and false if it is known"),
    "UTC at a place with another offset": (
        "times end in Z (UTC), but the deployment starts in another offset: the written hour is not that of the place",
        "state utc_offset in deployments.csv, such as +02:00, and collect again",
    ),
    "times with and without offset": (
        "some images of the deployment have an offset from UTC and others have none; they are ordered as written",
        "state utc_offset in deployments.csv and collect again",
    ),
    "images without a deployment": (
        "the images belong to no deployment: they have no place",
        "add a row with the folder to deployments.csv and collect again",
    ),
    "deployment without a row": (
        "images name a deployment that the table does not have: they have no place and no dates",
        "add a row to deployments.csv (column folder or deploymentID) and collect again",
    ),
    "deployment without images": (
        "no image belongs to the deployment",
        "check the spelling of its folder, or import its card",
    ),
    "similar names": ("names differ only in case, blanks or one letter", "use one spelling in the source"),
    "no coordinates": (
        "the deployment has no coordinates: no place is learned from it",
        "state latitude and longitude in deployments.csv and collect again, if they may be stored",
    ),
    "coordinates 0, 0": ("the place is in the Atlantic: 0, 0 stands for unknown", _COORDINATES),
    "far from the others": ("the place is far from all others of the survey", _COORDINATES),
    "place with several coordinates": (
        "deployments of one place lie more than a kilometer apart",
        "correct the coordinates, or give them different locations",
    ),
    "equal files": (
        "files have the same bytes: a card was copied twice, maybe to another camera",
        "remove one of the copies (foveate remove) or import only one folder",
    ),
    "equal ids": ("observations have the same id", "give every observation an id of its own in the source"),
    "long burst": (
        "an event has more than 500 images or lasts more than 6 hours: the camera was triggered by wind, sun or water, "
        "or files of one sequence do not belong together",
        "check a few of its images; it counts as one event",
    ),
    "sequence over deployments": (
        "images of several deployments have one sequence id: it makes an event in each",
        "use ids that are unique in the survey",
    ),
    "animal without a name": (
        "observations say animal and no taxon: they are no labels",
        "name the taxon, or leave it",
    ),
    "several kinds in one image": (
        "the image shows several kinds, or people disagree: it is not used for training",
        "nothing, or correct the observations",
    ),
}
# Number of images in one second; a fast burst puts a few there as well.
_MIN_STUCK = 20
_MAX_EVENT_IMAGES, _MAX_EVENT_SECONDS = 500, 6 * 3600
_MIN_GAP_DAYS = 90  # longer than quiet months of a working camera, shorter than the pause between two seasons
_MAX_CHANCE = 1e-3  # that a working camera is silent for so long, see `is_silent`: one deployment in a thousand
_MIN_SILENCE, _MIN_SILENCE_AT_ONCE = 3, 14  # nights, however often the camera was triggered before
_MIN_SILENT_IMAGES = 10
_FAR_KM, _NEAR_KM = 500.0, 1.0
_MAX_NAMES = 3000  # comparing names of one genus is quadratic in their number


@dataclass(frozen=True, slots=True)
class DayImages:
    """The images of one day that show a finding: their number, and keys of a few; `day` as 2026-05-31, or ""."""

    day: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One doubt about a survey.

    Args:
        code: key of `MEANINGS`.
        subject: deployment, place or name that it is about; "" for the survey.
        count: images, or rows where there are no images.
        detail: values, in one sentence; "" if the code is enough.
        examples: keys of a few images.
        days: of a finding about a camera's health, what shows it on each day.
    """

    code: str
    subject: str
    count: int
    detail: str = ""
    examples: tuple[str, ...] = ()
    days: tuple[DayImages, ...] = ()

    @property
    def meaning(self) -> str:
        return MEANINGS[self.code][0]

    @property
    def repair(self) -> str:
        return MEANINGS[self.code][1]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Result of `check_survey`.

    Args:
        counts: images, deployments, cameras, and images without hour, place or label by reason.
        findings: grouped by code, in the order of `MEANINGS`.
    """

    counts: dict[str, int]
    findings: tuple[Finding, ...]

    def as_dict(self) -> dict[str, object]:
        """Return JSON values; each finding with its meaning and repair."""
        findings = [{**asdict(entry), "meaning": entry.meaning, "repair": entry.repair} for entry in self.findings]
        return {"counts": self.counts, "findings": findings}

    def lines(self, *, max_per_code: int = 10) -> list[str]:
        """Format the result for people: each finding, its meaning, and the repair.

        Args:
            max_per_code: further findings of a code, and further days of a finding, are counted.
        """
        width = max((len(f"{count:,}") for count in self.counts.values()), default=1)
        lines = [f"{count:>{width},} {name}" for name, count in self.counts.items()]
        grouped: dict[str, list[Finding]] = defaultdict(list)
        for entry in self.findings:
            grouped[entry.code].append(entry)
        for code, entries in grouped.items():
            meaning, repair = MEANINGS[code]
            lines += ["", f"{code}: {meaning}", f"  repair: {repair}"]
            for entry in entries[:max_per_code]:
                parts = [f"{entry.subject}: {entry.count:,}" if entry.subject else f"{entry.count:,}", entry.detail]
                example = f"e.g. {entry.examples[0]}" if entry.examples else ""
                lines.append("  " + "; ".join(part for part in (*parts, example) if part))
                for images in entry.days[:max_per_code]:
                    lines.append(f"    {images.day or 'day unknown'}: {images.count:,}, e.g. {images.examples[0]}")
                if len(entry.days) > max_per_code:
                    lines.append(f"    and {len(entry.days) - max_per_code} more days")
            if len(entries) > max_per_code:
                lines.append(f"  and {len(entries) - max_per_code} more")
        return lines if self.findings else [*lines, "", "nothing is doubtful"]


def check_survey(survey: Survey, *, only: Iterable[str] = ()) -> CheckResult:
    """Look for what is doubtful in a survey; nothing is changed.

    What images show of the health of a camera is found by `foveate.survey.check_images`.

    Args:
        only: codes of `MEANINGS`; all by default.

    Raises:
        UserError: a code is unknown.

    Example:
        >>> result = check_survey(Survey.open(survey_folder))
        >>> result.counts["images"]
        64
        >>> [(finding.code, finding.count) for finding in result.findings]
        []
    """
    codes = select_codes(only)
    # A check finds several codes in one pass, so all of them run and what was not asked for is dropped.
    findings = [entry for check in _CHECKS for entry in check(survey) if entry.code in codes]
    return CheckResult(dict(survey.describe()), sort_findings(findings))


def select_codes(only: Iterable[str]) -> list[str]:
    """Return codes of `MEANINGS` as they are, or all if there are none; raise UserError for an unknown one."""
    return [choose(code, MEANINGS, "check") for code in only] or list(MEANINGS)


def sort_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Order findings as `MEANINGS`, the largest of a code first, since `CheckResult.lines` shows only some of them."""
    order = {code: number for number, code in enumerate(MEANINGS)}
    return tuple(sorted(findings, key=lambda entry: (order[entry.code], -entry.count, entry.subject)))


def _by_deployment(
    survey: Survey,
    code: str,
    mask_N: NDArray[np.bool_],
    describe: Callable[[NDArray[np.int64]], str] = lambda rows: "",
) -> Iterator[Finding]:
    """Yield one finding per deployment that has images of the mask."""
    rows = np.flatnonzero(mask_N)
    order = rows[np.argsort(survey.deployment_N[rows], kind="stable")]
    # -2 is no index: the first group begins at 0 also where it is that of no deployment, -1.
    starts = np.flatnonzero(np.diff(survey.deployment_N[order], prepend=-2))
    for part in np.split(order, starts[1:]) if len(order) else []:
        index = int(survey.deployment_N[part[0]])
        subject = survey.deployments[index].id if index >= 0 else ""
        yield Finding(code, subject, len(part), describe(part), _examples(survey, part))


def _examples(survey: Survey, rows: Iterable[int]) -> tuple[str, ...]:
    return tuple(survey.keys[row] for row in list(rows)[:MAX_EXAMPLES])


def _format(seconds: float) -> str:
    return str(np.datetime64(int(np.floor(seconds)), "s")).replace("T", " ")


def _check_times(survey: Survey) -> Iterator[Finding]:
    status_N = survey.parsed_times.status_N
    texts = survey.times

    def quote(rows: NDArray[np.int64]) -> str:
        return f"such as {texts[int(rows[0])].as_py()[:40]!r}"

    missing_N = status_N == TimeStatus.EMPTY
    yield from _by_deployment(survey, "no time", missing_N)
    yield from _by_deployment(survey, "no time", status_N == TimeStatus.DATE_ONLY, quote)
    by_file_N = pc.call_function(
        "match_substring", [survey.media["extra"]], pc.MatchSubstringOptions(f'"{TIME_SOURCE}": "{BY_FILE_DATE}"')
    ).to_numpy()
    yield from _by_deployment(survey, "dated by file", by_file_N)
    wrong_N = (status_N == TimeStatus.UNREADABLE) | (status_N == TimeStatus.IMPOSSIBLE)
    yield from _by_deployment(survey, "impossible time", wrong_N, quote)
    yield from _by_deployment(survey, "timestamp issues", survey.has_issues_N)
    yield from _by_deployment(survey, "UTC at a place with another offset", survey.is_unplaced_utc_N, quote)
    mixed_N = survey.has_mixed_offsets_N & (status_N == TimeStatus.OK)
    yield from _by_deployment(survey, "times with and without offset", mixed_N)


def _check_clocks(survey: Survey) -> Iterator[Finding]:
    clock_N = survey.unmasked_clock_N

    def describe(rows: NDArray[np.int64]) -> str:
        detail = f"from {_format(clock_N[rows].min())} to {_format(clock_N[rows].max())}"
        index = int(survey.deployment_N[rows[0]])
        start, end = (survey.deployments[index].start, survey.deployments[index].end) if index >= 0 else ("", "")
        return f"{detail}, deployment {start or '?'} to {end or '?'}" if start or end else detail

    for fault, mask_N in survey.clock_faults.items():
        yield from _by_deployment(survey, fault, mask_N, describe)
    for index in np.flatnonzero(survey.gaps_D >= _MIN_GAP_DAYS).tolist():
        rows = np.flatnonzero((survey.deployment_N == index) & ~np.isnan(survey.clock_N))
        rows = rows[np.argsort(survey.clock_N[rows], kind="stable")]
        later = 1 + int(np.argmax(np.diff(survey.clock_N[rows])))
        ends = [_format(survey.clock_N[row]) for row in (rows[later - 1], rows[later])]
        detail = f"{survey.gaps_D[index]:.0f} days, from {ends[0]} to {ends[1]}"
        examples = _examples(survey, rows[[later - 1, later]])
        yield Finding("gap of months", survey.deployments[index].id, len(rows), detail, examples)
    known = np.flatnonzero(~np.isnan(clock_N))
    # Compare within a deployment: two cameras may well take an image in the same second.
    pairs = np.stack([survey.deployment_N[known].astype(np.float64), clock_N[known]], axis=1)
    _, inverse, counts = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    stuck_N = np.zeros(len(survey), np.bool_)
    stuck_N[known[counts[inverse.ravel()] >= _MIN_STUCK]] = True
    yield from _by_deployment(survey, "stuck clock", stuck_N, lambda rows: f"at {_format(clock_N[rows[0]])}")


def is_silent(active_days: NDArray[np.float64], last_day: float) -> bool:
    """Return whether a camera was silent until `last_day` for longer than its own gaps explain.

    If images came at random, the silence would be one more gap. Of n gaps with exponential lengths, one more is c times
    the longest of them or longer with the probability prod k / (k + c), k = 1 to n; below .001 it is a finding. Days
    instead of images are counted, because images of one visit are not independent.

    Args:
        active_days: numbers of the days with images, in ascending order.

    >>> is_silent(np.arange(20.0), 21), is_silent(np.arange(20.0), 22)
    (False, True)
    """
    silence = last_day - active_days[-1]
    gaps = np.diff(active_days)
    if len(gaps) < 2:
        # Two days say nothing about gaps. One is that of the set-up: the camera may have died at once.
        return bool(not len(gaps) and silence >= _MIN_SILENCE_AT_ONCE)
    factor, ranks = silence / gaps.max(), np.arange(1, len(gaps) + 1)
    return bool(silence >= _MIN_SILENCE and np.prod(ranks / (ranks + factor)) < _MAX_CHANCE)


def _check_ends(survey: Survey) -> Iterator[Finding]:
    for index in range(survey.num_listed):
        end = survey.bounds_D2[index, 1]
        rows = np.flatnonzero((survey.deployment_N == index) & ~np.isnan(survey.clock_N))
        # A few images may be a sample that somebody selected.
        if np.isnan(end) or len(rows) < _MIN_SILENT_IMAGES:
            continue
        rows = rows[np.argsort(survey.clock_N[rows], kind="stable")]
        day_R = np.floor(survey.clock_N[rows] / DAY)
        # The day of the pick-up itself: a mere date ends it, and nobody knows the hour.
        last_day = np.floor((end - 1) / DAY)
        if is_silent(np.unique(day_R), last_day):
            nights = int(last_day - day_R[-1])
            detail = f"{nights} nights without an image at the end, the last one at {_format(survey.clock_N[rows[-1]])}"
            last = rows[day_R == day_R[-1]][::-1]
            examples = _examples(survey, last)
            days = (DayImages(format_day(day_R[-1]), len(last), examples),)
            yield Finding("stopped early", survey.deployments[index].id, len(last), detail, examples, days)


def _check_deployments(survey: Survey) -> Iterator[Finding]:
    yield from _by_deployment(survey, "images without a deployment", survey.deployment_N < 0)
    yield from _by_deployment(survey, "deployment without a row", survey.deployment_N >= survey.num_listed)
    # Images without a deployment are -1; they are counted first and dropped.
    images = np.bincount(survey.deployment_N + 1, minlength=len(survey.deployments) + 1)[1:]
    for index in np.flatnonzero(images[: survey.num_listed] == 0).tolist():
        yield Finding("deployment without images", survey.deployments[index].id, 0)
    places = {entry.location for entry in survey.deployments if entry.location}
    for names in (places, {entry.id for entry in survey.deployments}):
        # Places and cameras are often numbered, so names that differ in one letter are no mistake here.
        for first, second in _similar(names, cutoff=1.0):
            yield Finding("similar names", first, 2, f"and {second!r}")


def _check_places(survey: Survey) -> Iterator[Finding]:
    images = np.bincount(survey.deployment_N + 1, minlength=len(survey.deployments) + 1)[1:]
    placed: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for entry, count in zip(survey.deployments, images.tolist(), strict=True):
        if entry.latitude is None or entry.longitude is None:
            # Nothing is learned from the place of a deployment without images, so none is missed.
            if count:
                yield Finding("no coordinates", entry.id, count)
        elif entry.latitude == 0 and entry.longitude == 0:
            yield Finding("coordinates 0, 0", entry.id, count)
        else:
            placed[entry.camera].append((entry.latitude, entry.longitude))
    for name, coordinates in placed.items():
        # Measure from the first place: that is enough to see that they differ, and linear in their number.
        distances = measure_km(np.array(coordinates), np.array(coordinates[:1]))
        if distances.max() > _NEAR_KM:
            yield Finding("place with several coordinates", name, len(coordinates), f"{distances.max():.0f} km apart")
    yield from _check_far(placed)


def _check_far(placed: dict[str, list[tuple[float, float]]]) -> Iterator[Finding]:
    """Yield places that are far from the survey's center, with the exchange that would bring them near."""
    if len(placed) < 3:
        return  # with two places, either may be the wrong one
    names = list(placed)
    places_P2 = np.array([placed[name][0] for name in names])
    for index, name in enumerate(names):
        # Leave the place itself out, and take the median: one wrong place must not move the center.
        center = np.median(np.delete(places_P2, index, axis=0), axis=0, keepdims=True)
        others = np.median(measure_km(np.delete(places_P2, index, axis=0), center))
        distance = float(measure_km(places_P2[index : index + 1], center)[0])
        # Beside the survey's own extent: one over a continent has places 500 km apart.
        if distance < max(_FAR_KM, 20 * float(others)):
            continue
        latitude, longitude = places_P2[index]
        repairs = {
            "latitude and longitude may be swapped": (longitude, latitude),
            "the sign of the latitude may be wrong": (-latitude, longitude),
            "the sign of the longitude may be wrong": (latitude, -longitude),
        }
        # No coordinates in the text: what `check` prints is often sent to others.
        detail = f"{distance:,.0f} km from the middle of the survey"
        for hint, (first, second) in repairs.items():
            # A longitude beyond 90 degrees is no latitude, so the two were not swapped.
            if abs(first) <= 90 and measure_km(np.array([[first, second]]), center)[0] < distance / 10:
                detail += f"; {hint}"
        yield Finding("far from the others", name, len(placed[name]), detail)


def measure_km(places_P2: NDArray[np.float64], center_12: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return great-circle distances (P,) in kilometers between places in degrees, by the haversine formula."""
    first, second = np.radians(places_P2), np.radians(center_12)
    half = np.sin((first - second) / 2) ** 2
    chord = half[:, 0] + np.cos(first[:, 0]) * np.cos(second[:, 0]) * half[:, 1]
    # Mean radius of the Earth in km. Rounding leaves [0, 1] at antipodes, where arcsin would give NaN.
    return 2 * 6371.0 * np.arcsin(np.sqrt(np.clip(chord, 0, 1)))


def _check_files(survey: Survey) -> Iterator[Finding]:
    hashes = pa.array(survey.collection.index["sha256"], pa.string())
    encoded = pc.call_function("dictionary_encode", [hashes]).indices.to_numpy()
    copies = np.flatnonzero(np.bincount(encoded)[encoded] > 1)
    order = copies[np.argsort(encoded[copies], kind="stable")]
    starts = np.flatnonzero(np.diff(encoded[order], prepend=-1))
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for part in np.split(order, starts[1:]) if len(order) else []:
        # A card that was copied as a whole gives one finding, not one for each of its files.
        groups[tuple(sorted({str(survey.camera_N[row]) for row in part}))] += part.tolist()
    for cameras, rows in groups.items():
        detail = "" if len(cameras) == 1 else "in " + " and ".join(cameras[:MAX_EXAMPLES])
        yield Finding("equal files", cameras[0], len(rows), detail, _examples(survey, rows))


def _check_observations(survey: Survey) -> Iterator[Finding]:
    rows = survey.collection.table("observations")
    # Look for repeated ids within one import: a row of a later import with the same id is a correction.
    imported = join_names(rows["id"], rows["created"]).value_counts()
    repeated = imported.filter(pc.call_function("greater", [imported.field("counts"), pa.scalar(1)]))
    names = Counter({entry["values"].partition(SEPARATOR)[0]: entry["counts"] for entry in repeated.to_pylist()})
    # Rows without an id do not repeat each other.
    del names[""]
    for name in list(names)[:_MAX_NAMES]:
        yield Finding("equal ids", name, names[name])
    table = survey.observations
    taxa = Counter({entry["values"]: entry["counts"] for entry in table["taxon"].value_counts().to_pylist()})
    del taxa[""]
    for first, second in _similar(taxa, cutoff=0.9):
        yield Finding(
            "similar names", first, taxa[first] + taxa[second], f"{taxa[first]} and {taxa[second]} {second!r}"
        )
    for reason, count in survey.label_counts("all").items():
        # The other reasons raise no doubt: most surveys have images without a label.
        if reason in MEANINGS:
            yield Finding(reason, "", count)


def _similar(names: Iterable[str], *, cutoff: float) -> Iterator[tuple[str, str]]:
    """Yield pairs of names that differ in case and blanks, or whose similarity is at least `cutoff`.

    Only names of one first or last part are compared: a genus or an epithet is rarely misspelled together.
    """
    folded: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        folded["".join(name.casefold().split())].append(name)
    for variants in folded.values():
        yield from ((variants[0], variant) for variant in variants[1:])
    singles = sorted(variants[0] for variants in folded.values())
    if cutoff >= 1 or len(singles) > _MAX_NAMES:
        return
    parts: dict[str, list[str]] = defaultdict(list)
    for name in singles:
        # A set, because first and last part are the same in a name of one word.
        for part in {name.split()[0].casefold(), name.split()[-1].casefold()}:
            parts[part].append(name)
    pairs = {
        (first, second)
        for group in parts.values()
        for position, first in enumerate(group)
        for second in group[position + 1 :]
        if difflib.SequenceMatcher(None, first.casefold(), second.casefold()).ratio() >= cutoff
    }
    yield from sorted(pairs)


def _check_bursts(survey: Survey) -> Iterator[Finding]:
    events = survey.events()
    sizes = np.diff(events.starts)
    instants = survey.instant_N[events.order_N]
    spans = instants[events.starts[1:] - 1] - instants[events.starts[:-1]] if len(events) else np.zeros(0)
    # Spans of events without a time are NaN: not long, and no reason for NumPy's warning.
    with np.errstate(invalid="ignore"):
        long = np.flatnonzero((sizes > _MAX_EVENT_IMAGES) | (spans > _MAX_EVENT_SECONDS))
    for event in long.tolist():
        rows = events.rows(event)
        index = int(survey.deployment_N[rows[0]])
        subject = survey.deployments[index].id if index >= 0 else ""
        detail = "" if np.isnan(spans[event]) else f"in {spans[event] / 3600:.1f} hours"
        yield Finding("long burst", subject, len(rows), detail, _examples(survey, rows))
    in_sequence = survey.sequence_N >= 0
    pairs = np.unique(np.stack([survey.sequence_N[in_sequence], survey.deployment_N[in_sequence]], axis=1), axis=0)
    shared = np.flatnonzero(np.bincount(pairs[:, 0]) > 1) if len(pairs) else np.zeros(0, np.int64)
    if len(shared):
        rows = np.flatnonzero(np.isin(survey.sequence_N, shared))
        names = survey.media["sequence"].take(pa.array(rows[:MAX_EXAMPLES])).to_pylist()
        detail = f"{len(shared)} sequences, such as {names[0]!r}"
        yield Finding("sequence over deployments", "", len(rows), detail, _examples(survey, rows))


_CHECKS: tuple[Callable[[Survey], Iterator[Finding]], ...] = (
    _check_times,
    _check_clocks,
    _check_ends,
    _check_deployments,
    _check_places,
    _check_files,
    _check_observations,
    _check_bursts,
)
