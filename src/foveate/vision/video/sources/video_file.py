"""Clips of video files, read by PyAV in one thread, with every sign of damage noted."""

from __future__ import annotations

import io
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.core.errors import UserError
from foveate.records.images import MAX_PIXELS, to_rgb
from foveate.vision.video.sources.source import BadClip, Frame

_INSTALL = "pip install 'foveate[video]'"
# Formats of FFmpeg that hold one clip. Playlists and scripts (HLS, DASH, concat) are left out: they name other files
# and addresses, which a clip of a stranger must not open. Those of sound are there to be recognized as such.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,av1,obu,flv,asf,ogg,mxf,mxf_opatom,nut,dv,"
    "mjpeg,yuv4mpegpipe,rm,swf,gxf,vob,wav,mp3,flac,aac"
)
_EBML = b"\x1a\x45\xdf\xa3"
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


class VideoFile:
    """A video file, or its bytes, read by PyAV."""

    def __init__(self, source: Path | bytes) -> None:
        self.source, self.name = source, "clip" if isinstance(source, bytes) else str(source)
        self._av = load_decoder(self.name)
        self.damage: list[str] = []
        self.header_frames, self.size = 0, (0, 0)
        with self._open() as container:
            stream = self._find_stream(container)
            self.header_frames = max(0, stream.frames)
            self.size = (stream.codec_context.width, stream.codec_context.height)

    def _open(self) -> Any:
        # The prefix keeps a name such as "concat:a|b" a name; the protocol list holds for what a file refers to, and of
        # bytes it allows nothing.
        is_file = isinstance(self.source, Path)
        options = {"protocol_whitelist": "file" if is_file else "none", "format_whitelist": _CONTAINERS}
        try:
            file = f"file:{self.source}" if isinstance(self.source, Path) else io.BytesIO(self.source)
            return self._av.open(file, format=self._find_demuxer(), options=options, metadata_errors="replace")
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            # Of a truncated MP4 the index is missing, which usually stands at its end.
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
        end = 8 + int.from_bytes(start[4:8], "little")
    elif start[:4] == _EBML and (segment := start.find(b"\x18\x53\x80\x67")) >= 0:
        field = start[segment + 4 : segment + 12]
        length = 9 - field[0].bit_length() if field and field[0] else 9
        value = int.from_bytes(field[:length], "big") & ((1 << 7 * length) - 1)
        # All ones: a live recording, whose size nobody knows.
        if length <= len(field) and value != (1 << 7 * length) - 1:
            end = segment + 4 + length + value
    return max(0, end - size)


def _describe(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
