"""Check the health of cameras by thumbnails: black nights, weak batteries, turned cameras, fogged lenses.

Each camera is compared with its own usual images, because places differ more than faults. Thresholds were measured
on 40 real frames and on generated cameras with planted faults (docs/surveys.md). A finding is a doubt: it names days
and images, and nothing is changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from foveate.core.arrow_tables import read_parquet
from foveate.core.errors import UserError
from foveate.core.files import atomic_file
from foveate.core.progress import track
from foveate.records.images import BadImage, decode
from foveate.records.layout import CACHE_FOLDER
from foveate.records.source_files import hash_text
from foveate.survey.checks import (
    MAX_EXAMPLES,
    CheckResult,
    DayImages,
    Finding,
    check_survey,
    is_silent,
    select_codes,
    sort_findings,
)
from foveate.survey.hours import DAY, format_day, hours_of_day
from foveate.survey.survey import Survey

HEALTH_CODES = ("no night images", "no flash at night", "turned", "fogged or covered")

# Images that are looked at.
_PER_HOUR = 2  # of a deployment in an hour of a day: enough to see a lasting fault, and a burst costs no more
_CHUNK = 256  # images in flight, so that a signal ends the run soon
_SIDE = 256  # pixels of the longer side: a JPEG of 2048 pixels is decoded at 1/8
_VIEW = (64, 48)  # width and height in which edges and backgrounds are compared; noise is averaged out
_STRIP = 0.12  # of the height, left out at top and bottom: info strips are 2 to 8 % high in real frames

# Levels are of 255. 40 real frames: the brightest percent of a frame begins at 62 at the least, at 125 at night.
MAX_BLACK = 30.0
# Standard deviation of the differences of color channels: 0 to 1.5 in 25 infra-red frames, 7.1 and more in 15 others.
MAX_INFRARED = 4.0
_DAYLIGHT = (9, 15)  # hours of the clock at which a black image means a covered lens, even with a clock 3 hours off
_MAX_BY_DAY = 0.1  # share of a run of black images: no flash is needed by day
_MIN_RUN = 3  # images in a row that are black, before it is a finding: a flash that recharges misses one or two

# Shares of the upper quartile of the camera's own images of the same light; see docs/surveys.md for the false alarms.
MAX_FOGGED_EDGES, MAX_FOGGED_CONTRAST = 0.45, 0.6
_MIN_FOGGED, _MIN_FOGGED_HOURS = 4, 6.0
_MIN_USUAL = 8  # images from which a camera has a usual

# Cosine of the median backgrounds before and after a change, beside that of the two halves of each side.
_WINDOW, _MIN_WINDOW = 8, 4  # images on each side
MAX_TURNED, MIN_STEADY = 0.3, 0.4
MAX_SAG = 2  # pixels of the view: a strap that gives way a little shows the same place
_MIN_LASTING_HOURS = 6.0  # a cow that rests in front of the camera leaves sooner
_SAME_CHANGE_HOURS = 36.0  # the change is seen once by day and once by night
_WEAK_EDGE = 4.0  # levels; an edge counts fully from there, so that the strength of the light does not matter


@dataclass(frozen=True, slots=True)
class FrameMeasures:
    """What a thumbnail shows; levels are of 255.

    Attributes:
        brightest: 99th percentile. contrast: between the 5th and the 95th percentile.
        edges: mean difference of neighboring pixels of `view_HW`.
        is_infrared: no colors.
        view_HW: gray levels, uint8 [48, 64], without info strips.
    """

    brightest: float
    contrast: float
    edges: float
    is_infrared: bool
    view_HW: NDArray[np.uint8]


def measure_frame(data: bytes) -> FrameMeasures:
    """Measure the thumbnail of an image.

    Raises:
        BadImage: it cannot be decoded.
    """
    image = decode(data, longest_side=_SIDE)
    cut = round(_STRIP * image.height)
    # A strip of a few pixels has no rows to spare.
    image = image.crop((0, cut, image.width, image.height - cut)) if image.height > 4 * cut > 0 else image
    pixels_HW3 = np.asarray(image, np.float32)
    red_HW, green_HW, blue_HW = np.moveaxis(pixels_HW3, -1, 0)
    # Deviations, not differences: an infra-red image with a tint has the same difference everywhere.
    colors = float(np.hypot((red_HW - green_HW).std(), (green_HW - blue_HW).std()))
    low, high, brightest = np.percentile(pixels_HW3.mean(axis=2), (5, 95, 99)).tolist()
    view_HW = np.asarray(image.convert("L").resize(_VIEW, Image.Resampling.BOX))
    levels_HW = view_HW.astype(np.float32)
    edges = float(np.abs(np.diff(levels_HW, axis=0)).mean() + np.abs(np.diff(levels_HW, axis=1)).mean())
    return FrameMeasures(brightest, high - low, edges, colors < MAX_INFRARED, view_HW)


@dataclass(frozen=True)
class CameraFrames:
    """Measured frames (F) of a deployment in the order of time.

    Args:
        rows_F: of the survey. clock_F: seconds of the local clock, NaN where unknown.
        views_FHW: see `FrameMeasures`.
    """

    rows_F: NDArray[np.int64]
    clock_F: NDArray[np.float64]
    brightest_F: NDArray[np.float64]
    contrast_F: NDArray[np.float64]
    edges_F: NDArray[np.float64]
    is_infrared_F: NDArray[np.bool_]
    views_FHW: NDArray[np.uint8]

    @classmethod
    def stack(cls, rows: Sequence[int], clock: NDArray[np.float64], measures: Sequence[FrameMeasures]) -> CameraFrames:
        """Return the frames of `rows`, with the clock of each."""
        return cls(
            np.array(rows, np.int64),
            clock,
            np.array([entry.brightest for entry in measures]),
            np.array([entry.contrast for entry in measures]),
            np.array([entry.edges for entry in measures]),
            np.array([entry.is_infrared for entry in measures], np.bool_),
            np.array([entry.view_HW for entry in measures], np.uint8),
        )

    def __len__(self) -> int:
        return len(self.rows_F)

    @property
    def is_black_F(self) -> NDArray[np.bool_]:
        return self.brightest_F < MAX_BLACK

    @property
    def is_blurred_F(self) -> NDArray[np.bool_]:
        """Whether a frame has far fewer edges than this camera's other frames of the same light."""
        return self._is_below(self.edges_F, MAX_FOGGED_EDGES)

    @property
    def is_dull_F(self) -> NDArray[np.bool_]:
        """Whether a frame is blurred and flat, beside this camera's other frames of the same light."""
        # Both: a far meadow has few edges, an overcast day little contrast.
        return self.is_blurred_F & self._is_below(self.contrast_F, MAX_FOGGED_CONTRAST)

    def _is_below(self, values_F: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
        is_below_F = np.zeros(len(self), np.bool_)
        for mode_F in (self.is_infrared_F, ~self.is_infrared_F):
            usual_F = mode_F & ~self.is_black_F
            if usual_F.sum() >= _MIN_USUAL:
                # The upper quartile: also a camera that was fogged for half of its time has clear images.
                is_below_F |= usual_F & (values_F < share * np.percentile(values_F[usual_F], 75))
        return is_below_F

    def hours_between(self, first: int, last: int) -> float:
        """Return the hours from one frame to another; NaN if a clock is unknown."""
        return float(self.clock_F[last] - self.clock_F[first]) / 3600


def find_runs(mask_F: NDArray[np.bool_], *, min_length: int) -> list[NDArray[np.int64]]:
    """Return the positions of runs of true values; a single other value between two does not end a run.

    >>> [run.tolist() for run in find_runs(np.array([0, 1, 1, 0, 1, 0, 0, 1], bool), min_length=3)]
    [[1, 2, 4]]
    """
    positions = np.flatnonzero(mask_F)
    runs = np.split(positions, np.flatnonzero(np.diff(positions) > 2) + 1) if len(positions) else []
    return [run for run in runs if len(run) >= min_length]


def find_black_runs(frames: CameraFrames) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield code and positions of runs of black frames among those without daylight."""
    dark = np.flatnonzero(frames.is_black_F | frames.is_infrared_F)
    # Images by day in between are left out: a night may have only a few images.
    for run in find_runs(frames.is_black_F[dark], min_length=_MIN_RUN):
        hours = hours_of_day(frames.clock_F[dark[run]])
        by_day = ((hours >= _DAYLIGHT[0]) & (hours < _DAYLIGHT[1])).mean()
        yield "fogged or covered" if by_day > _MAX_BY_DAY else "no flash at night", dark[run]


def find_dull_runs(frames: CameraFrames) -> Iterator[NDArray[np.int64]]:
    """Yield positions of frames in a row that are blurred and flat for hours."""
    for run in find_runs(frames.is_dull_F, min_length=_MIN_FOGGED):
        # A comparison with NaN is false: without a clock nobody knows how long it lasted.
        if frames.hours_between(run[0], run[-1]) >= _MIN_FOGGED_HOURS:
            yield run


def compute_outlines(views_FHW: NDArray[np.uint8]) -> NDArray[np.floating]:
    """Return the directions of edges (F, 2 (H - 1) (W - 1)) of gray views: light changes them less than gray levels."""
    levels = views_FHW.astype(np.float32)
    down, right = np.diff(levels, axis=1)[:, :, 1:], np.diff(levels, axis=2)[:, 1:]
    strength = np.sqrt(down**2 + right**2 + _WEAK_EDGE**2)
    return np.stack([down / strength, right / strength], axis=1).reshape(len(levels), -1)


def cosine(first_E: NDArray[np.floating], second_E: NDArray[np.floating]) -> float:
    """Return the cosine of two vectors; 0 where one has no length."""
    length = float(np.linalg.norm(first_E) * np.linalg.norm(second_E))
    return float(first_E @ second_E) / length if length else 0.0


def compare_shifted(first_E: NDArray[np.floating], second_E: NDArray[np.floating]) -> float:
    """Return the highest cosine of two outlines over shifts by up to 2 pixels of their views, 3 % of the width."""
    width, height = _VIEW[0] - 1, _VIEW[1] - 1
    first, second = (outline.reshape(2, height, width) for outline in (first_E, second_E))
    reach = range(-MAX_SAG, MAX_SAG + 1)
    best = -1.0
    for down, right in ((down, right) for down in reach for right in reach):
        rows, columns = slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0))
        back = slice(max(-down, 0), height + min(-down, 0)), slice(max(-right, 0), width + min(-right, 0))
        best = max(best, cosine(first[:, rows, columns].ravel(), second[:, back[0], back[1]].ravel()))
    return best


def _compare_halves(outlines_WE: NDArray[np.floating]) -> float:
    """Return how steady a window is: the cosine of the medians of its even and odd frames."""
    return cosine(np.median(outlines_WE[::2], axis=0), np.median(outlines_WE[1::2], axis=0))


def find_turns(outlines_FE: NDArray[np.floating], clock_F: NDArray[np.float64]) -> list[tuple[int, float]]:
    """Return the first frames behind lasting changes of the background, with the cosine of both backgrounds.

    Args:
        outlines_FE: see `compute_outlines`; of frames in one light, in the order of time.
        clock_F: seconds.
    """
    num = len(outlines_FE)
    similarity_F = np.ones(num)
    # Every second one, in half the time: the change is located below, and runs pass over single gaps.
    for split in range(_MIN_WINDOW, num - _MIN_WINDOW + 1, 2):
        before, after = outlines_FE[max(0, split - _WINDOW) : split], outlines_FE[split : split + _WINDOW]
        similarity_F[split] = cosine(np.median(before, axis=0), np.median(after, axis=0))
    turns = []
    for run in find_runs(similarity_F < MAX_TURNED, min_length=1):
        # Medians of windows that lie beside all candidates: the change itself may be at any of them.
        start, stop = max(0, int(run[0]) - _WINDOW), min(num, int(run[-1]) + _WINDOW)
        before, after = outlines_FE[start : run[0]], outlines_FE[run[-1] : stop]
        before_E, after_E = np.median(before, axis=0), np.median(after, axis=0)
        similarity = compare_shifted(before_E, after_E)
        # Leaves that move, or a mixture of several cameras, have no background that could change.
        if similarity >= MAX_TURNED or min(_compare_halves(before), _compare_halves(after)) < MIN_STEADY:
            continue
        is_new_F = np.array([cosine(outline, after_E) > cosine(outline, before_E) for outline in outlines_FE])
        split = start + _split_best(is_new_F[start:stop])
        old, new = find_runs(~is_new_F[:split], min_length=1), find_runs(is_new_F[split:], min_length=1)
        if old and new:
            # Both views must last: what comes and goes is an animal that lies in front of the camera.
            spans = clock_F[split - 1] - clock_F[old[-1][0]], clock_F[split + new[0][-1]] - clock_F[split]
            if min(spans) >= 3600 * _MIN_LASTING_HOURS:
                turns.append((split, similarity))
    return turns


def _split_best(is_new_F: NDArray[np.bool_]) -> int:
    """Return the position before which the fewest frames are new, and behind which the fewest are old."""
    old_before = np.concatenate([[0], np.cumsum(~is_new_F)])
    new_behind = np.concatenate([np.cumsum(is_new_F[::-1])[::-1], [0]])
    # At least one frame on each side: a change has a last frame before it and a first one behind it.
    return 1 + int((old_before + new_behind)[1:-1].argmax())


@dataclass(frozen=True, slots=True)
class _Turn:
    before: int
    after: int
    similarity: float


def find_camera_turns(frames: CameraFrames) -> list[_Turn]:
    """Return the changes of a camera's background: positions of the last frame before, the first one after."""
    turns: list[_Turn] = []
    for mode_F in (frames.is_infrared_F, ~frames.is_infrared_F):
        # Without images that show little: their outlines are noise, and fog is no other view.
        members = np.flatnonzero(mode_F & ~frames.is_black_F & ~frames.is_blurred_F)
        if len(members) >= 2 * _MIN_WINDOW:
            outlines = compute_outlines(frames.views_FHW[members])
            found = find_turns(outlines, frames.clock_F[members])
            turns += [_Turn(int(members[at - 1]), int(members[at]), similarity) for at, similarity in found]
    merged: list[_Turn] = []
    for turn in sorted(turns, key=lambda turn: turn.after):
        if merged and frames.hours_between(merged[-1].after, turn.before) <= _SAME_CHANGE_HOURS:
            # Both lights saw it: it happened after the later of the frames before, and before the earlier one after.
            first = merged[-1]
            before = turn.before if turn.before < first.after else first.before
            merged[-1] = _Turn(max(first.before, before), first.after, min(first.similarity, turn.similarity))
        else:
            merged.append(turn)
    return merged


# From runs of frames to findings.


def find_faults(survey: Survey, subject: str, frames: CameraFrames) -> Iterator[Finding]:
    """Yield the findings about one deployment."""
    runs: dict[str, list[NDArray[np.int64]]] = {"no flash at night": [], "fogged or covered": []}
    for code, run in find_black_runs(frames):
        runs[code].append(run)
    runs["fogged or covered"] += find_dull_runs(frames)
    for code, members in runs.items():
        if members:
            positions = np.unique(np.concatenate(members))
            yield _describe(survey, code, subject, frames, positions, _span(frames, positions))
    for turn in find_camera_turns(frames):
        detail = (
            f"{_span(frames, np.array([turn.before, turn.after]))}; the backgrounds have cosine {turn.similarity:.2f}"
        )
        # The last image of the old view, then the first ones of the new: the pair shows it.
        positions = np.array([turn.before, *range(turn.after, min(turn.after + MAX_EXAMPLES - 1, len(frames)))])
        finding = _describe(survey, "turned", subject, frames, positions, detail)
        yield replace(finding, count=len(frames) - turn.after)
    yield from _find_missing_nights(survey, subject, frames)


def _find_missing_nights(survey: Survey, subject: str, frames: CameraFrames) -> Iterator[Finding]:
    known_F = ~np.isnan(frames.clock_F)
    night = np.flatnonzero(frames.is_infrared_F & ~frames.is_black_F & known_F)
    black = np.flatnonzero(frames.is_black_F & known_F)
    # Black images are nights as well, and a finding of their own.
    if not len(night) or (len(black) and black[-1] > night[-1]):
        return
    # Noon to noon, so that a night is one.
    night_F = np.floor((frames.clock_F - DAY / 2) / DAY)
    last_day = np.nanmax(night_F)
    nights = np.unique(night_F[night])
    if len(nights) > 2 and is_silent(nights, last_day):
        later = np.flatnonzero(night_F > nights[-1])
        last = np.datetime64(int(frames.clock_F[night[-1]]), "s")
        detail = f"{int(last_day - nights[-1])} nights; last infra-red image {str(last).replace('T', ' ')}"
        yield _describe(survey, "no night images", subject, frames, later, detail)


def _span(frames: CameraFrames, positions: NDArray[np.int64]) -> str:
    ends = [frames.clock_F[positions[0]], frames.clock_F[positions[-1]]]
    if np.isnan(ends).any():
        return ""
    first, last = (str(np.datetime64(int(end), "s")).replace("T", " ") for end in ends)
    return f"from {first} to {last}"


def _describe(
    survey: Survey, code: str, subject: str, frames: CameraFrames, positions: NDArray[np.int64], detail: str
) -> Finding:
    day_F = np.floor(frames.clock_F[positions] / DAY)
    days = []
    for day in dict.fromkeys(format_day(day) for day in day_F.tolist()):
        members = [int(at) for at, name in zip(positions, map(format_day, day_F.tolist()), strict=True) if name == day]
        keys = tuple(survey.keys[frames.rows_F[at]] for at in members[:MAX_EXAMPLES])
        days.append(DayImages(day, len(members), keys))
    examples = tuple(survey.keys[row] for row in frames.rows_F[positions[:MAX_EXAMPLES]].tolist())
    return Finding(code, subject, len(positions), detail, examples, tuple(days))


# Reading thumbnails of a survey.


def select_rows(survey: Survey) -> NDArray[np.int64]:
    """Return the rows that are looked at, by deployment and time: at most two of a deployment and hour.

    Images without a time are all looked at; those of no deployment are left out.
    """
    clock_N = survey.unmasked_clock_N
    rows = np.flatnonzero(survey.deployment_N[: len(survey.collection)] >= 0)
    # Stable: without a time the order is that of the collection, which is that of file names on a card.
    rows = rows[np.lexsort((clock_N[rows], survey.deployment_N[rows]))]
    hour = np.floor(clock_N[rows] / 3600)
    starts = np.flatnonzero((np.diff(survey.deployment_N[rows], prepend=-1) != 0) | (np.diff(hour, prepend=-1) != 0))
    parts = np.split(rows, starts[1:]) if len(rows) else []
    # First and middle one: neighbors are of one burst.
    chosen = [part[[len(part) * number // _PER_HOUR for number in range(min(_PER_HOUR, len(part)))]] for part in parts]
    return np.concatenate(chosen) if chosen else rows


class _Kept:
    """Measures of frames that earlier checks of a collection made, and those of this one, by the image's hash.

    They lie with the collection's other caches, so that `foveate remove` and `foveate cache` know them.
    """

    _SCHEMA = pa.schema(
        [("sha256", pa.string()), *((name, pa.float64()) for name in ("brightest", "contrast", "edges"))]
        + [("is_infrared", pa.bool_()), ("view", pa.binary(_VIEW[0] * _VIEW[1]))]
    )

    def __init__(self, collection: Path) -> None:
        # With the release of Pillow, which decides how a JPEG is reduced.
        rule = hash_text(f"{_SIDE} {_STRIP} {_VIEW} {PIL.__version__}")[:12]
        self._folder = collection / CACHE_FOLDER / f"thumbnails-{rule}"
        self._of: dict[str, FrameMeasures] = {}
        for path in sorted(self._folder.glob("*.parquet")):
            try:
                table = read_parquet(path)
            except UserError:  # damaged: what it held is measured again
                continue
            if table.schema.equals(self._SCHEMA):
                for sha256, brightest, contrast, edges, is_infrared, view in zip(
                    *(column.to_pylist() for column in table.columns), strict=True
                ):
                    view_HW = np.frombuffer(view, np.uint8).reshape(_VIEW[::-1])
                    self._of[sha256] = FrameMeasures(brightest, contrast, edges, is_infrared, view_HW)

    def get(self, sha256: str) -> FrameMeasures | None:
        """Return the measures of an image, or None."""
        return self._of.get(sha256)

    def add(self, measures: Mapping[str, FrameMeasures]) -> None:
        """Keep measures by hash, in a file of their own; a collection that cannot be written keeps none."""
        fresh = {name: entry for name, entry in measures.items() if name not in self._of}
        if not fresh:
            return
        self._of |= fresh
        rows = [
            {
                "sha256": name,
                **{field: getattr(entry, field) for field in self._SCHEMA.names[1:-1]},
                "view": entry.view_HW.tobytes(),
            }
            for name, entry in fresh.items()
        ]
        path = self._folder / f"{hash_text(' '.join(fresh))[:16]}.parquet"
        # A card or an archive may be read-only: the check itself needs nothing kept.
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                pq.write_table(pa.Table.from_pylist(rows, self._SCHEMA), file, compression="zstd")


def _measure(survey: Survey, row: int) -> FrameMeasures | None:
    try:
        return measure_frame(survey.collection.image_bytes(row))
    except BadImage:
        return None


def check_images(survey: Survey, *, only: Iterable[str] = (), workers: int | None = None) -> CheckResult:
    """Check a survey as `check_survey` does, and the health of its cameras by thumbnails.

    What an image shows is kept in the collection's cache: a second check decodes the new images alone.

    Args:
        only: see `check_survey`; without one of `HEALTH_CODES` no image is read.
        workers: threads that decode.

    Returns:
        `counts` also has the images that were looked at, and those that could not be read.

    Raises:
        UserError: a code is unknown.

    Example:
        >>> result = check_images(Survey.open(survey_folder))
        >>> result.counts["looked at for the health of cameras"]
        64
        >>> [finding.code for finding in result.findings]
        []
    """
    codes = select_codes(only)
    result = check_survey(survey, only=codes)
    if not set(codes) & set(HEALTH_CODES):
        return result
    rows, unreadable = select_rows(survey), 0
    frames: dict[int, list[tuple[int, FrameMeasures]]] = {}
    chunks = np.split(rows, range(_CHUNK, len(rows), _CHUNK))
    kept, hashes = _Kept(survey.collection.path), survey.collection.index["sha256"]

    def measure(row: int) -> FrameMeasures | None:
        return kept.get(hashes[row]) or _measure(survey, row)

    with ThreadPoolExecutor(workers or 2) as pool:
        for chunk in track(chunks, description="thumbnails"):
            found = {int(row): entry for row, entry in zip(chunk, pool.map(measure, chunk.tolist()), strict=True)}
            kept.add({hashes[row]: entry for row, entry in found.items() if entry is not None})
            for row, entry in found.items():
                if entry is None:
                    unreadable += 1
                else:
                    frames.setdefault(int(survey.deployment_N[row]), []).append((row, entry))
    findings = list(result.findings)
    for deployment, pairs in frames.items():
        members = [row for row, _ in pairs]
        camera = CameraFrames.stack(members, survey.unmasked_clock_N[members], [measures for _, measures in pairs])
        faults = find_faults(survey, survey.deployments[deployment].id, camera)
        findings += [finding for finding in faults if finding.code in codes]
    counts = result.counts | {"looked at for the health of cameras": len(rows) - unreadable}
    absent = len(survey) - len(survey.collection)
    counts |= {"not looked at: they cannot be read": unreadable} if unreadable else {}
    counts |= {"not looked at: they are not here": absent} if absent else {}
    return CheckResult(counts, sort_findings(findings))
