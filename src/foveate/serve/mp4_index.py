"""Count the samples that FFmpeg would list for an MP4 file, before it opens the file.

It writes a row for each sample that the index promises: two kB of file become gigabytes, where all samples have one
size.

Source: ISO/IEC 14496-12 (boxes); FFmpeg's libavformat/mov.c (which of them it reads, and where).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Of a chunk of PCM, FFmpeg lists a sample for every 160 or more of the file's.
_PCM_SAMPLES = 160
_SAMPLE_BYTES = 24
# A fragment for each frame of the longest clips has fewer; millions would take seconds.
_MAX_BOXES = 100_000
_KINDS = (b"stsz", b"stz2", b"stsc", b"stco", b"co64", b"elst")
_UNKNOWN = 2**32


def count_samples(data: bytes, *, max_samples: int) -> int:
    """Return an upper bound of the samples of an MP4; the first above `max_samples` ends the count.

    FFmpeg reads its index boxes wherever they stand, within descriptions of codecs and texts as well. So their tags are
    searched for at every byte but the media's, instead of in the boxes where they belong, and not told apart by track.
    """
    index = _cut_media(data)
    if b"cmov" in index:
        return _UNKNOWN  # packed
    # Fragments can be addressed from an index of their own, to lie within the media.
    fragments = data if b"sidx" in index or b"tfra" in index else index
    if fragments.count(b"trun") + sum(index.count(kind) for kind in _KINDS) > _MAX_BOXES:
        return _UNKNOWN
    total = 0
    for boxes, kind, offset in ((index, b"stsz", 12), (index, b"stz2", 12), (fragments, b"trun", 8)):
        for number in _read_numbers(boxes, kind, offset):
            # It refuses fragments of so many, which are rather words such as "trunk".
            is_text = kind == b"trun" and number * _SAMPLE_BYTES >= 2**32
            total += 1 if is_text else max(1, number)
            if total > max_samples:
                return total
    # The lists of PCM follow from its chunks alone.
    chunks = sum(number for kind in (b"stco", b"co64") for number in _read_numbers(index, kind, 8))
    total = max(total, chunks * -(-_find_largest_chunk(index, max_samples) // _PCM_SAMPLES))
    # Each entry of an edit list may show all samples again.
    return total * max((1, *(_count_edits(index, start) for start in _find(index, b"elst"))))


def _cut_media(data: bytes) -> bytes:
    """Return a file without its media, by the sizes of its outer boxes."""
    start, num_boxes, parts = 0, 0, list[bytes]()
    while start < len(data):
        size, kind, head = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16]), 16
        elif size == 0:
            size = len(data) - start
        num_boxes += 1
        # Behind a broken size everything is searched.
        is_broken = not head <= size <= len(data) - start or num_boxes > _MAX_BOXES
        end = len(data) if is_broken else start + size
        parts += [data[start:end]] if is_broken or kind != b"mdat" else []
        start = end
    return b"".join(parts)


def _find(index: bytes, kind: bytes) -> Iterator[int]:
    position = index.find(kind)
    while position >= 0:
        yield position
        position = index.find(kind, position + 1)


def _read_numbers(index: bytes, kind: bytes, offset: int) -> Iterator[int]:
    return (int.from_bytes(index[start + offset : start + offset + 4]) for start in _find(index, kind))


def _count_edits(index: bytes, start: int) -> int:
    """Return how many edits FFmpeg reads behind a tag: as many as the box can hold, whatever number it names.

    Of a box that is larger than its parent it reads what there is. A title with the letters of the tag ("Edelstahl") is
    such a box, too, and has little behind it.
    """
    size = int.from_bytes(index[start - 4 : start])
    num_bytes = len(index) - start + 4
    entry = 20 if index[start + 4 : start + 5] == b"\1" else 12
    return ((size if 16 <= size <= num_bytes else num_bytes) - 16) // entry


def _find_largest_chunk(index: bytes, max_entries: int) -> int:
    """Return the largest number of samples in a chunk; of tables with more than `max_entries` the largest possible."""
    largest = num_entries = 0
    for start in _find(index, b"stsc"):
        count = min(int.from_bytes(index[start + 8 : start + 12]), max(0, len(index) - start - 12) // 12)
        num_entries += max(1, count)
        if num_entries > max_entries:
            return _UNKNOWN
        if count:
            entries = np.frombuffer(index, ">u4", 3 * count, start + 12)
            largest = max(largest, int(entries[1::3].max()))
    return largest
