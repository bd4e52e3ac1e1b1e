"""Sources of clips: video files, animated images, folders of images, images in memory."""

from __future__ import annotations

import io
import os
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from foveate.core.errors import UserError
from foveate.records.images import (
    MAX_PIXELS,
    SUFFIXES,
    BadImage,
    ImageInput,
    check,
    decode,
    detect_format,
    encode_input,
    iterate_frames,
    read_image_info,
    to_rgb,
)

# The protocol of what a clip is read from, its frames, and its error.
#
# Each source predicts the times of its frames without decoding, and decodes them in one pass.


class BadClip(UserError):
    """A clip that cannot be read; `reason` is a short code that is counted, the message one sentence.

    Attributes:
        num_decoded: how many of its frames can be decoded.
    """

    def __init__(self, reason: str, sentence: str, *, num_decoded: int = 0) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.num_decoded = num_decoded


class Frame(NamedTuple):
    """Seconds at which a frame begins, and its upright RGB pixels; None where nobody looks at it."""

    time: float
    image: Image.Image | None


@runtime_checkable
class Source(Protocol):
    """A clip before it is decoded.

    Attributes:
        name: for errors.
        damage: a sentence for each damaged part that the last pass met, with the number of the frame before it.
        header_frames: how many frames the header promises; 0 where it does not say.
        size: width and height of a frame by the header; (0, 0) where there is none, as of a list of images.
    """

    name: str
    damage: list[str]
    header_frames: int
    size: tuple[int, int]

    def predict_times(self) -> list[float]:
        """Return the seconds of each frame as the file's structure has them, without decoding."""
        ...

    def decode(self, indices: Container[int]) -> Iterator[Frame]:
        """Decode all frames in order; those of `indices` with pixels."""
        ...


# Clips of images: files of a folder, images in memory, a GIF, WebP or PNG with several frames.


def open_images(clip: Any, frame_rate: float) -> ImageList:
    """Open a folder or list of images, `frame_rate` of them per second.

    Raises:
        BadClip: the folder has no images.
        UserError: the rate is not above 0.
    """
    if not 0 < frame_rate < float("inf"):
        raise UserError(f"frame_rate: expected images per second above 0 (got {frame_rate})")
    if isinstance(clip, str | os.PathLike):
        return ImageList(str(clip), _list_images(Path(clip)), frame_rate=frame_rate)
    return ImageList("clip", list(clip), frame_rate=frame_rate)


def _list_images(folder: Path) -> list[Path]:
    """List the images of a folder, names sorted as strings as in the official code; hidden files are left out."""
    suffixes = {*SUFFIXES.values(), "jpeg", "tiff"}
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))
    images = [folder / name for name in names if name.rpartition(".")[2].lower() in suffixes]
    if not images:
        raise BadClip("empty folder", f"{folder}: no images; expected files such as 0001.jpg or 0001.png")
    return images


class ImageList:
    """Images in memory or in files, `frame_rate` of them per second."""

    def __init__(self, name: str, images: Sequence[Any], *, frame_rate: float) -> None:
        self.name, self.images, self.frame_rate = name, images, frame_rate
        self.damage: list[str] = []
        self.header_frames, self.size = 0, (0, 0)

    def predict_times(self) -> list[float]:
        return [index / self.frame_rate for index in range(len(self.images))]

    def decode(self, indices: Container[int]) -> Iterator[Frame]:
        self.damage = []
        num_decoded = 0
        for index, item in enumerate(self.images):
            image = None
            try:
                if isinstance(item, Image.Image) or _is_rgb(item):
                    # Pixels in memory cannot be broken: no detour over an encoded file.
                    image = to_rgb(Image.fromarray(item) if isinstance(item, np.ndarray) else item)
                else:
                    data = encode_input(item)
                    image = decode(data) if num_decoded in indices else None
                    # Frames that are not sampled are checked too, so that every pass counts the same frames.
                    if image is None:
                        check(data)
            except UserError as error:
                name = item.name if isinstance(item, Path) else f"image {index}"
                self.damage.append(f"{name}: {error}")
                continue
            yield Frame(index / self.frame_rate, image if num_decoded in indices else None)
            num_decoded += 1


def _is_rgb(item: object) -> bool:
    """Whether it is an array of uint8 [H, W, 3 or 4] with pixels; `encode_input` names what is wrong with others."""
    if not isinstance(item, np.ndarray) or item.dtype != np.uint8 or item.ndim != 3:
        return False
    return item.shape[2] in (3, 4) and item.size > 0


class AnimatedImage:
    """A GIF, WebP or PNG with several frames; a still image is a clip of one frame."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.data = name, data
        self.damage: list[str] = []
        try:
            info = read_image_info(data)[0]
            self.header_frames, self.size = info.frames, (info.width, info.height)
        except BadImage as error:
            raise BadClip(error.reason, f"{name}: {error}") from error

    def predict_times(self) -> list[float]:
        # Only decoding tells how long each frame is shown; 100 ms is the usual time.
        return [index / 10 for index in range(self.header_frames)]

    def decode(self, indices: Container[int]) -> Iterator[Frame]:
        self.damage = []
        num_decoded = 0
        try:
            for time, image in iterate_frames(self.data, indices=indices):
                yield Frame(time, image)
                num_decoded += 1
        except BadImage as error:
            self.damage.append(f"after frame {num_decoded}: {error}")


# Clips of video files, read by PyAV in one thread, with every sign of damage noted.


_INSTALL = "pip install 'foveate[video]'"
# Formats of FFmpeg that hold one clip. Playlists and scripts (HLS, DASH, concat) are left out: they name other files
# and addresses, which a clip of a stranger must not open. Those of sound are there to be recognized as such.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,av1,obu,flv,asf,ogg,mxf,mxf_opatom,nut,dv,"
    "mjpeg,yuv4mpegpipe,rm,swf,gxf,vob,wav,mp3,flac,aac"
)
_EBML = b"\x1a\x45\xdf\xa3"
# FFmpeg and Pillow both count rotations counterclockwise.
_TRANSPOSES = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
    -90: Image.Transpose.ROTATE_270,
}
# A demuxer that fails this often in a row will not come to the end of the file.
_MAX_FAILURES = 100


def load_decoder(path: Path | str) -> Any:
    """Import PyAV to read a video file; raise UserError where it is missing."""
    try:
        import av
    except ImportError as error:
        raise UserError(f"{path}: reading videos needs PyAV: run {_INSTALL}") from error
    return av


def _to_unicode(text: str) -> str:
    """Replace bytes that are not UTF-8, which PyAV 19 gives as surrogates: no file and no page could hold them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class VideoFile:
    """A video file, or its bytes, read by PyAV.

    Attributes:
        tags: metadata of the container, and of its stream where the container has none of a name.
        frame_rate: mean frames a second by the header; 0 where it does not say.
    """

    def __init__(self, source: Path | bytes) -> None:
        self.source, self.name = source, "clip" if isinstance(source, bytes) else str(source)
        self._av = load_decoder(self.name)
        self.damage: list[str] = []
        self.header_frames, self.size = 0, (0, 0)
        with self._open() as container:
            stream = self._find_stream(container)
            tags = {**stream.metadata, **container.metadata}
            self.tags: dict[str, str] = {_to_unicode(name): _to_unicode(value) for name, value in tags.items()}
            self.frame_rate = float(stream.average_rate or stream.guessed_rate or 0)
            self.header_frames = max(0, stream.frames)
            self.size = (stream.codec_context.width, stream.codec_context.height)

    def _open(self) -> Any:
        # The prefix keeps a name such as "concat:a|b" a name; the protocol list holds for what a file refers to, and of
        # bytes it allows nothing.
        is_file = isinstance(self.source, Path)
        options = {"protocol_whitelist": "file" if is_file else "none", "format_whitelist": _CONTAINERS}
        try:
            file = f"file:{self.source}" if isinstance(self.source, Path) else io.BytesIO(self.source)
            # Before 19, PyAV refused a file whose tags are not UTF-8; since then it keeps their bytes as surrogates.
            lenient = {} if int(self._av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
            return self._av.open(file, format=self._find_demuxer(), options=options, **lenient)
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            # A truncated MP4 lacks its index, which usually stands at the end.
            sentence = f"{self.name}: not a video, or one that is cut off ({_describe(error)})"
            raise BadClip("not a video", sentence) from error

    def _find_demuxer(self) -> str | None:
        """Return the demuxer of bytes that begin as MP4 or WebM; FFmpeg's guess counts later bytes, too."""
        if not isinstance(self.source, bytes):
            return None
        return "matroska" if self.source[:4] == _EBML else "mov" if self.source[4:8] == b"ftyp" else None

    def _find_stream(self, container: Any) -> Any:
        # Covers of songs are streams of one image.
        cover = self._av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no streams"
            raise BadClip("no video", f"{self.name}: no video stream (got {kinds}); expected a video")
        best = container.streams.best("video")
        stream = best if best in streams else streams[0]
        context = stream.codec_context
        if context is None:
            raise BadClip("unknown codec", f"{self.name}: FFmpeg has no decoder for its video stream")
        if context.width * context.height > MAX_PIXELS:
            size = f"{context.width} x {context.height}"
            raise BadClip("too many pixels", f"{self.name}: frames of {size} pixels; expected at most {MAX_PIXELS:,}")
        # Decoders that work on several frames at once lose reports of damage: of 40 clips with one damaged part, 3
        # passed as whole with 2 threads.
        context.thread_count = 1
        # Frames may grow behind the header.
        context.options = {"max_pixels": str(MAX_PIXELS)}
        return stream

    def predict_times(self) -> list[float]:
        """Return times from the packets, in the order in which their frames are shown."""
        with self._open() as container:
            stream = self._find_stream(container)
            clock = _Clock(container, stream)
            # No packet outlives its turn: together they are as large as the file.
            # An empty packet only flushes the decoder; a discarded one is decoded, but its frame is never shown.
            packets = (packet for packet in self._demux(container, stream, []) if packet.size and not packet.is_discard)
            return sorted(clock.read(packet.pts, index) for index, packet in enumerate(packets))

    def decode(self, indices: Container[int]) -> Iterator[Frame]:
        self.damage = []
        with self._open() as container:
            stream = self._find_stream(container)
            clock = _Clock(container, stream)
            reformatter = self._av.video.reformatter.VideoReformatter()
            num_decoded = num_packets = 0
            for packet in self._demux(container, stream, self.damage):
                num_packets += packet.size > 0
                try:
                    frames = packet.decode()
                except (self._av.error.FFmpegError, ValueError) as error:
                    self.damage.append(f"after frame {num_decoded}: {_describe(error)}")
                    continue
                if packet.is_corrupt:
                    self.damage.append(f"after frame {num_decoded}: a part of the data is missing")
                for frame in frames:
                    if frame.is_corrupt:
                        self.damage.append(f"frame {num_decoded}: parts of it are made up")
                    image = self._render(frame, reformatter) if num_decoded in indices else None
                    yield Frame(clock.read(frame.pts, num_decoded), image)
                    num_decoded += 1
            # The index of an MP4 lists every frame; headers of other files are guesses, or 0.
            if "mp4" in container.format.name and num_packets < self.header_frames:
                self.damage.append(f"after frame {num_decoded}: {self.header_frames - num_packets} frames are cut off")
            if missing := _count_missing_bytes(self.source):
                self.damage.append(f"after frame {num_decoded}: {missing:,} bytes are cut off")

    def _demux(self, container: Any, stream: Any, damage: list[str]) -> Iterator[Any]:
        """Yield packets; behind a damaged part, go on where the container finds the next."""
        for _ in range(_MAX_FAILURES):
            try:
                yield from container.demux(stream)
                return
            except self._av.error.EOFError:
                return
            except (self._av.error.FFmpegError, OSError) as error:
                damage.append(f"the file cannot be read on: {_describe(error)}")

    def _render(self, frame: Any, reformatter: Any) -> Image.Image:
        has_alpha = any(component.is_alpha for component in frame.format.components)
        mode = "RGBA" if has_alpha else "RGB"
        # One reformatter for all frames keeps FFmpeg's tables, and Pillow reads the plane itself: one copy less.
        pixels = reformatter.reformat(frame, format="rgba" if has_alpha else "rgb24", threads=1)
        plane = pixels.planes[0]
        image = Image.frombuffer(mode, (pixels.width, pixels.height), plane, "raw", mode, plane.line_size, 1)
        image = to_rgb(image)
        return image.transpose(_TRANSPOSES[frame.rotation]) if frame.rotation in _TRANSPOSES else image


class _Clock:
    """Seconds of a stream's timestamps, from the start of its container, as players show them."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.unit = stream.time_base
        # FFmpeg gives the start of a container in microseconds, whatever the unit of its streams.
        self.start = (container.start_time or 0) / 1_000_000
        self.rate = float(stream.average_rate or 25)

    def read(self, pts: int | None, index: int) -> float:
        """Return seconds; streams without timestamps have a frame at every 1 / rate seconds."""
        return (
            index / self.rate
            if pts is None or not self.unit
            else pts * self.unit.numerator / self.unit.denominator - self.start
        )


def _count_missing_bytes(source: Path | bytes) -> int:
    """Return how many bytes a WebM, Matroska or AVI file lacks; FFmpeg takes its end for that of the clip.

    Source: RFC 8794 (sizes of EBML elements), RFC 9559 (Matroska), Microsoft's RIFF.
    """
    if isinstance(source, bytes):
        start, size = source[:4096], len(source)
    else:
        with source.open("rb") as handle:
            start, size = handle.read(4096), source.stat().st_size
    end = 0
    if start[:4] == b"RIFF":
        # RIFF's size field excludes its own four bytes and the four of the name before it.
        end = 8 + int.from_bytes(start[4:8], "little")
    elif start[:4] == _EBML and (segment := start.find(b"\x18\x53\x80\x67")) >= 0:
        # 18 53 80 67 is the ID of the Segment, the element that holds the whole clip (RFC 9559, section 5.1).
        field = start[segment + 4 : segment + 12]
        # The number of leading zero bits, plus one, is how many bytes the size takes (RFC 8794, section 4).
        length = 9 - field[0].bit_length() if field and field[0] else 9
        value = int.from_bytes(field[:length], "big") & ((1 << 7 * length) - 1)
        # All ones: a live recording, whose size nobody knows.
        if length <= len(field) and value != (1 << 7 * length) - 1:
            end = segment + 4 + length + value
    return max(0, end - size)


def _describe(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# Open a clip, recognized by its content.


ClipInput = str | os.PathLike[str] | bytes | Sequence[ImageInput] | np.ndarray | Source
"""A clip of the Python API: a video file, GIF, WebP or folder of images; images; uint8 pixels [T, H, W, 3]; the bytes
of a file; or a source that `open_source` opened."""


def open_source(clip: ClipInput, *, frame_rate: float | None = None) -> Source:
    """Open a clip, recognized by its content; see `foveate.vision.video.reading.read_clip`.

    Raises:
        BadClip: it cannot be opened, or is no clip.
        UserError: PyAV is needed and missing.
    """
    if isinstance(clip, Source):
        return clip
    is_path = isinstance(clip, str | os.PathLike)
    if (is_path and Path(clip).is_dir()) or not (is_path or isinstance(clip, bytes)):
        return open_images(clip, 1.0 if frame_rate is None else frame_rate)
    if frame_rate is not None:
        raise UserError(
            f"frame_rate: is for folders and lists of images (got {frame_rate}); this clip has its own times"
        )
    if isinstance(clip, bytes):
        if not clip:
            raise BadClip("empty file", "clip: 0 bytes; expected a video")
        return AnimatedImage("clip", clip) if _is_image(clip) else VideoFile(clip)
    path = Path(clip)
    if not path.is_file():
        problem = "a pipe, socket or device" if path.exists() else "no such file"
        raise BadClip("unreadable", f"{path}: {problem}; expected a video file or a folder of images")
    # Image signatures are at the start of a file, so a long video is not read for them.
    with path.open("rb") as handle:
        start = handle.read(512)
    if not start:
        raise BadClip("empty file", f"{path}: the file has 0 bytes; expected a video")
    return AnimatedImage(str(path), encode_input(path)) if _is_image(start) else VideoFile(path)


def _is_image(start: bytes) -> bool:
    try:
        detect_format(start)
    except BadImage:
        return False
    return True
