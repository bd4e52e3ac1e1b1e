"""Read a clip: the sampled frames with their indices and times, from one pass in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from foveate.core.errors import UserError
from foveate.vision.video.sampling import NUM_FRAMES, SampleRule, format_time, sample
from foveate.vision.video.sources import BadClip, ClipInput, Source, open_source


@dataclass(frozen=True)
class Clip:
    """Frames of a clip.

    Attributes:
        name: the path, or "clip" for images in memory.
        frames: the sampled frames in order, RGB and upright; a frame that is sampled twice is the same object twice.
        indices: number of each sampled frame among all decoded ones, from 0.
        times: seconds at which each sampled frame begins, on the file's clock.
        num_decoded: frames that were decoded in the part of the clip that was asked for.
        seconds: beginning of the first and the last of them.
        warnings: a sentence for each thing that was not as the file promises.
    """

    name: str
    frames: list[Image.Image]
    indices: list[int]
    times: list[float]
    num_decoded: int
    seconds: tuple[float, float]
    warnings: tuple[str, ...] = ()


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
        transform: such as `lambda image: squash(image, 336)` of `foveate.vision.preprocess`.
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
    if start is not None and end is not None and not start < end:
        raise UserError(f"end: {end} s; expected a time after the start at {start} s")
    source = open_source(clip, frame_rate=frame_rate)

    def select(times: Sequence[float]) -> list[int]:
        inside = _list_inside(times, start, end)
        if not inside:
            return []
        selected = sample(len(inside), num_frames, rule=rule, times=[times[index] for index in inside], fps=fps)
        return [inside[position] for position in selected]

    predicted = source.predict_times() or [0.0]
    indices = select(predicted)
    images, times = _decode_pass(source, set(indices), end, transform)
    damage = list(source.damage)
    if damage and not allow_damaged:
        raise _refuse_damage(source, len(times))
    if select(times) != indices:
        # Packets and frames differ (hidden frames, fields, a cut-off end): what was decoded decides.
        indices = select(times)
        images, times = _decode_pass(source, set(indices), end, transform)
    inside = _list_inside(times, start, end)
    if not inside:
        raise _refuse_empty(source, times, start, end)
    if missing := set(indices) - set(images):
        raise BadClip("unsteady", f"{source.name}: frame {min(missing)} was decoded once and not again")
    header = source.header_frames
    if header and end is None and header != len(times):
        damage.append(f"the header promises {header} frames; {len(times)} can be decoded")
    return Clip(
        name=source.name,
        frames=[images[index] for index in indices],
        indices=indices,
        times=[times[index] for index in indices],
        num_decoded=len(inside),
        seconds=(times[inside[0]], times[inside[-1]]),
        warnings=tuple(f"{source.name}: {sentence}" for sentence in damage),
    )


def _list_inside(times: Sequence[float], start: float | None, end: float | None) -> list[int]:
    low, high = float("-inf") if start is None else start, float("inf") if end is None else end
    return [index for index, time in enumerate(times) if low <= time < high]


def _decode_pass(
    source: Source, indices: set[int], end: float | None, transform: Callable[[Image.Image], Image.Image] | None
) -> tuple[dict[int, Image.Image], list[float]]:
    """Return the images of `indices`, and the seconds of all frames up to `end`."""
    images: dict[int, Image.Image] = {}
    times: list[float] = []
    for index, frame in enumerate(source.decode(indices)):
        if end is not None and frame.time >= end:
            break
        times.append(frame.time)
        if frame.image is not None:
            images[index] = frame.image if transform is None else transform(frame.image)
    return images, times


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
    if not times and (end is None or source.damage):
        return BadClip("no frames", f"{source.name}: no frame can be decoded")
    span = f"--from {format_time(start or 0)}" + ("" if end is None else f" --to {format_time(end)}")
    last = f"its last frame begins at {format_time(max(times))}" if times else "its first frame begins later"
    return BadClip("outside", f"{source.name}: no frame in {span}; {last}", num_decoded=len(times))
