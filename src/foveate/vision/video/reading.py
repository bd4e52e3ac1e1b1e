"""Read a clip: which frames are sampled, and their images one by one or as a list, in memory that does not grow.

Frames are selected by the times that the file's structure promises, and decoded in the same pass. What was decoded
decides: where it differs, the pass is repeated with the right selection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

from PIL import Image

from foveate.core.errors import UserError
from foveate.vision.video.sampling import NUM_FRAMES, SampleRule, format_time, sample
from foveate.vision.video.sources import BadClip, ClipInput, Source, open_source

T = TypeVar("T")


@dataclass(frozen=True)
class ClipRecord:
    """Which frames of a clip were sampled.

    Attributes:
        name: the path, or "clip" for images in memory.
        size: width and height of the first sampled frame in pixels, upright.
        indices: number of each sampled frame among all decoded ones, from 0.
        times: seconds at which each sampled frame begins, on the file's clock.
        num_decoded: frames that were decoded in the part of the clip that was asked for.
        seconds: beginning of the first and the last of them.
        warnings: a sentence for each thing that was not as the file promises.
    """

    name: str
    size: tuple[int, int]
    indices: list[int]
    times: list[float]
    num_decoded: int
    seconds: tuple[float, float]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clip(ClipRecord):
    """Frames of a clip.

    Attributes:
        frames: the sampled frames in order, RGB and upright; a frame that is sampled twice is the same object twice.
    """

    frames: list[Image.Image] = field(default_factory=list)


class ClipReader:
    """A clip whose sampled frames are decoded one by one, as often as they are needed.

    Args: see `read_clip`.

    Attributes:
        indices: of the sampled frames in order, as the file promises them until a pass has counted its frames.

    Raises:
        BadClip: it is no clip.
        UserError: an option is out of range, or the extra `video` is missing.

    Example:
        >>> images = [Image.new("RGB", (8, 6), (gray, gray, gray)) for gray in range(100)]
        >>> reader = ClipReader(images, 4)
        >>> reader.read(lambda frames: [frame.getpixel((0, 0))[0] for frame in frames])
        [12, 37, 62, 86]
        >>> reader.record.num_decoded
        100
    """

    def __init__(
        self,
        clip: ClipInput,
        num_frames: int = NUM_FRAMES,
        *,
        rule: SampleRule = "official",
        fps: float | None = None,
        start: float | None = None,
        end: float | None = None,
        frame_rate: float | None = None,
        allow_damaged: bool = False,
    ) -> None:
        if start is not None and end is not None and not start < end:
            raise UserError(f"end: {end} s; expected a time after the start at {start} s")
        self._source = open_source(clip, frame_rate=frame_rate)
        self._rule: SampleRule = rule
        self._fps, self._start, self._end, self._allow_damaged = fps, start, end, allow_damaged
        # Where a file promises no times, its first frame is read, and the pass counts the others.
        self._times: Sequence[float] = self._source.predict_times() or [0.0]
        self._is_counted = False
        self._size = (0, 0)
        self.sample(num_frames)

    def sample(self, num_frames: int) -> None:
        """Select frames anew, for the next passes."""
        self._num_frames = num_frames
        inside = self._list_inside()
        self.indices: list[int] = []
        if inside:
            times = [self._times[index] for index in inside]
            selected = sample(len(inside), num_frames, rule=self._rule, times=times, fps=self._fps)
            self.indices = [inside[position] for position in selected]

    def read(self, consume: Callable[[Iterator[Image.Image]], T]) -> T:
        """Decode the clip, and return what a function makes of its sampled frames.

        Args:
            consume: gets the frames of `indices` in order, RGB and upright; a frame that is sampled twice is the same
                object twice. It is called again where the file promised other frames than can be decoded; only the
                last result counts.

        Raises:
            BadClip: the clip is damaged (the error says how many frames can be decoded), or nothing is left of it.
            UserError: as `consume`.
        """
        while True:
            times: list[float] = []
            frames = self._decode(times)
            result, problem = None, None
            try:
                result = consume(frames) if self.indices else None
            except BadClip:
                raise
            except UserError as error:
                # Perhaps for want of frames that the file promised: the count decides.
                problem = error
            # To the end, also where the function left frames out: damage may stand there.
            for _ in frames:
                pass
            if self._is_counted and times != self._times:
                raise self._refuse_unsteady(times)
            if self._source.damage and not self._allow_damaged:
                raise _refuse_damage(self._source, len(times))
            before, self._times, self._is_counted = self.indices, times, True
            self.sample(self._num_frames)
            if not self.indices:
                raise _refuse_empty(self._source, times, self._start, self._end)
            # Packets and frames may differ (hidden frames, fields, a cut-off end): what was decoded decides.
            if self.indices == before:
                if problem is not None:
                    raise problem
                return cast(T, result)

    def count(self) -> None:
        """Decode the clip to count its frames, unless that was done; errors are those of `read`."""
        if not self._is_counted:
            self.read(lambda frames: None)

    @property
    def record(self) -> ClipRecord:
        """Which frames were sampled. Known after a pass."""
        assert self._is_counted, "frames are counted by decoding"
        inside, damage = self._list_inside(), list(self._source.damage)
        header = self._source.header_frames
        # A pass stops at `end`, so only a pass over the whole clip can contradict the header.
        if header and self._end is None and header != len(self._times):
            damage.append(f"the header promises {header} frames; {len(self._times)} can be decoded")
        return ClipRecord(
            name=self._source.name,
            size=self._size,
            indices=list(self.indices),
            times=[self._times[index] for index in self.indices],
            num_decoded=len(inside),
            seconds=(self._times[inside[0]], self._times[inside[-1]]),
            warnings=tuple(f"{self._source.name}: {sentence}" for sentence in damage),
        )

    def _list_inside(self) -> list[int]:
        low = float("-inf") if self._start is None else self._start
        high = float("inf") if self._end is None else self._end
        return [index for index, time in enumerate(self._times) if low <= time < high]

    def _decode(self, times: list[float]) -> Iterator[Image.Image]:
        """Yield the frames of `indices`, and note the seconds of all frames up to the end in `times`."""
        repeats = Counter(self.indices)
        for index, frame in enumerate(self._source.decode(repeats)):
            if self._end is not None and frame.time >= self._end:
                break
            # Frames before `start` are counted too: indices number all decoded frames of the file.
            times.append(frame.time)
            if frame.image is not None:
                if index == self.indices[0]:
                    self._size = frame.image.size
                for _ in range(repeats[index]):
                    yield frame.image

    def _refuse_unsteady(self, times: Sequence[float]) -> BadClip:
        sentence = f"{len(self._times)} frames were decoded, then {len(times)}, or with other times; was it replaced?"
        return BadClip("unsteady", f"{self._source.name}: {sentence}")


def read_clip(
    clip: ClipInput,
    num_frames: int = NUM_FRAMES,
    *,
    rule: SampleRule = "official",
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    transform: Callable[[Image.Image], Image.Image] | None = None,
    frame_rate: float | None = None,
    allow_damaged: bool = False,
) -> Clip:
    """Read the sampled frames of a clip.

    Frames are counted by decoding, never by the header. Only sampled ones are held; `transform`, called on each when it
    is decoded, keeps them small.

    Args:
        clip: path of a video file (extra `video`), animated GIF or WebP, or folder of images, by name; or images.
        num_frames, rule, fps: see `foveate.sample`.
        start, end: seconds; only frames that begin in [start, end) are sampled. Default: the whole clip.
        transform: changes each frame as it is decoded, such as `lambda image: image.resize((336, 336))`.
        frame_rate: images per second of a folder or list, which has no times; default 1.
        allow_damaged: use what can be decoded of a damaged clip, with warnings, instead of refusing it.

    Raises:
        BadClip: it is no clip, is damaged (the error says how many frames can be decoded), or nothing is left of it.
        UserError: an option is out of range, or the extra `video` is missing.

    Example:
        >>> images = [Image.new("RGB", (8, 6), (gray, gray, gray)) for gray in range(100)]
        >>> clip = read_clip(images, 4, frame_rate=25, start=1, end=3)
        >>> clip.indices, clip.times, clip.num_decoded
        ([31, 43, 55, 68], [1.24, 1.72, 2.2, 2.72], 50)
    """
    reader = ClipReader(
        clip,
        num_frames,
        rule=rule,
        fps=fps,
        start=start,
        end=end,
        frame_rate=frame_rate,
        allow_damaged=allow_damaged,
    )

    def collect(frames: Iterator[Image.Image]) -> list[Image.Image]:
        images: list[Image.Image] = []
        last: Image.Image | None = None
        for frame in frames:
            # A repeated frame arrives as the same object: it is transformed once, and held once.
            images.append(images[-1] if frame is last else frame if transform is None else transform(frame))
            last = frame
        return images

    images = reader.read(collect)
    return Clip(**vars(reader.record), frames=images)


def _refuse_damage(source: Source, num_decoded: int) -> BadClip:
    more = f" and {len(source.damage) - 1} more" if len(source.damage) > 1 else ""
    if not num_decoded:
        return BadClip("no frames", f"{source.name}: no frame can be decoded ({source.damage[0]}{more})")
    sentence = (
        f"{source.name}: damaged ({source.damage[0]}{more}); {num_decoded} frames can be decoded: "
        "--allow-damaged (allow_damaged=True) uses them"
    )
    return BadClip("damaged", sentence, num_decoded=num_decoded)


def _refuse_empty(source: Source, times: list[float], start: float | None, end: float | None) -> BadClip:
    # With an `end`, an intact clip may begin after it: no frame was decoded, yet nothing is broken.
    if not times and (end is None or source.damage):
        return BadClip("no frames", f"{source.name}: no frame can be decoded")
    span = f"--start {format_time(start or 0)}" + ("" if end is None else f" --end {format_time(end)}")
    last = f"its last frame begins at {format_time(max(times))}" if times else "its first frame begins later"
    return BadClip("outside", f"{source.name}: no frame in {span}; {last}", num_decoded=len(times))
