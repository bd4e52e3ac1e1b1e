"""Import WebDataset tars as img2dataset writes them: `KEY.jpg`, `KEY.txt` and `KEY.json` next to each other.

Members are read, never unpacked to disk. The key of a sample is the path of the member up to the first dot of its file
name; the JSON field `key` takes precedence if the former is its escaped form (see `layout.member_name`).
"""

from __future__ import annotations

import glob
import itertools
import json
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from foveate.core.errors import UserError
from foveate.core.progress import track
from foveate.records import layout
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source, import_samples
from foveate.records.importers.sample import IMAGE_SUFFIXES, MAX_BYTES, REFUSED_SUFFIXES, Problem, Sample, SharedOptions

_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MEMBER = re.compile(r"^((?:.*/)?[^./]+)\.([^/]+)$", re.DOTALL)
_MAX_DUPLICATES = 1000  # findings per sample: a hostile tar must not fill the quarantine
# Errors of tarfile and the decompressors on damaged files.
_READING_ERRORS = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, zlib.error, lzma.LZMAError)


def import_webdataset(source: str | Path, target: str | Path, **shared: Unpack[SharedOptions]) -> ImportSummary:
    """Import the samples of WebDataset tars into the collection `target`, shard by shard.

    Importing again adds only what is new. The members `.jpg` (or another image format), `.txt` and `.json` of a sample
    are used, others are counted as ignored. Unsafe paths, links, devices, samples without an image and truncated shards
    are quarantined. What comes before a truncation is used, except for the last sample, which may lack members.

    Args:
        source: a tar file, a folder of tar files (others are ignored), or a pattern with `*` or `{00000..00099}`.
        target: collection folder; created if it does not exist.
        shared: see `SharedOptions`.

    Raises:
        UserError: there are no tar files, the target is not a collection, or another process writes it.
    """
    shards = list_shards(source)
    samples = itertools.chain.from_iterable(_samples(shard) for shard in track(shards, description="importing shards"))
    path = Path(source)
    # The name of the folder of a pattern, or of a file without extensions.
    name = path.resolve().parent.name if _is_pattern(path.name) else path.resolve().name.split(".")[0]
    return import_samples(target, samples, default_source=name, show_progress=False, **shared)


def list_shards(source: str | Path) -> list[Path]:
    """List the tar files of a source, sorted; raise UserError if there are none."""
    text = str(source)
    if _is_pattern(text):
        patterns = _expand_braces(text)
        matches = {Path(path) for pattern in patterns for path in glob.glob(pattern)}
        plain = [pattern for pattern in patterns if not glob.has_magic(pattern)]
        # Braces name every shard, so a missing one is an error; the shards that "*" should match are unknown.
        missing = [path for path in plain if not Path(path).exists()]
        if missing:
            raise UserError(f"{missing[0]} does not exist (in {text})")
        shards = sorted(path for path in matches if path.name.endswith(_SUFFIXES))
    else:
        folder = check_source(Path(source))
        shards = [folder]
        if folder.is_dir():
            shards = sorted(path for path in folder.iterdir() if path.name.endswith(_SUFFIXES))
    if not shards:
        raise UserError(f"{source} has no tar files; expected names that end in {', '.join(_SUFFIXES)}")
    return shards


def _expand_braces(pattern: str) -> list[str]:
    """Expand `a-{08..11}.tar` to a-08.tar, a-09.tar, a-10.tar, a-11.tar; several braces multiply."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    digits = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [
        expanded
        for number in digits
        for expanded in _expand_braces(pattern[: match.start()] + number + pattern[match.end() :])
    ]


def _samples(shard: Path) -> Iterator[Sample]:
    """Yield the samples of one tar: consecutive members with equal keys, as WebDataset groups them."""
    sample: Sample | None = None
    for name, data, problem in _read_members(shard):
        if problem is not None:
            where = f"{shard.name}/{name}" if name else shard.name
            key = name or shard.name
            if problem.subject == "shard" and sample is not None:
                # Leave out the last sample: its texts may be in the missing part, and an image imported without them
                # would keep them out when the whole shard is imported.
                problem = replace(problem, detail=f"{problem.detail}; its last sample {sample.key!r} is left out")
                sample = None
            yield Sample(key=key, source=where, load=None, problems=[problem], only_problems=True)
            continue
        match = _MEMBER.match(name)
        if match is None:
            yield Sample(key=name, source=shard.name, load=None, ignored=1, only_problems=True)
            continue
        key, suffix = match[1], match[2].lower()
        if sample is None or key != sample.key:
            if sample is not None:
                yield _use_json_key(sample)
            sample = Sample(key=key, source=f"{shard.name}/{key}", load=None)
        sample.ignored += not _add_member(sample, suffix, name, data)
    if sample is not None:
        yield _use_json_key(sample)


def _add_member(sample: Sample, suffix: str, name: str, data: bytes) -> bool:
    """Add a member to its sample; return False if its kind is not used."""
    if suffix in IMAGE_SUFFIXES | REFUSED_SUFFIXES:
        if sample.load is None:
            # `data` is this call's own: a lambda in the loop over members would return the last of them.
            sample.load = lambda: data
            return True
    elif suffix in ("txt", "json"):
        readers = sample.texts if suffix == "txt" else sample.objects
        if not readers:
            readers.append(lambda: data)
            return True
    else:
        return False
    if len(sample.problems) < _MAX_DUPLICATES:
        detail = f"{name!r} is the second member of this kind in its sample; the first is kept"
        sample.problems.append(Problem("member", "duplicate member", detail, len(sample.problems)))
    return True


def _use_json_key(sample: Sample) -> Sample:
    """Return the sample with the key of its JSON, if the key of the tar is its escaped form."""
    # Without a "%" nothing was escaped: such samples are spared a second parsing of their JSON.
    if "%" not in sample.key or not sample.objects:
        return sample
    try:
        fields = json.loads(sample.objects[0]())
    except (ValueError, RecursionError):
        return sample
    key = fields.get("key") if isinstance(fields, dict) else None
    if isinstance(key, str) and layout.member_name(key, "") == f"{sample.key}.":
        return replace(sample, key=key)
    return sample


def _read_members(shard: Path) -> Iterator[tuple[str, bytes, Problem | None]]:
    """Yield names and bytes of the regular files in a tar, and problems."""
    count = 0
    try:
        with tarfile.open(shard, "r:*") as tar:
            for member in tar:
                count += 1
                problem = _find_member_problem(member)
                if problem is not None:
                    yield member.name, b"", problem
                elif not member.isdir():
                    file = tar.extractfile(member)
                    assert file is not None
                    yield member.name.removeprefix("./"), file.read(), None
            # tarfile ends silently at a truncation between two members; only the missing end mark reveals it.
            if tar.fileobj is not None:
                tar.fileobj.seek(tar.offset)
                ending = tar.fileobj.read(tarfile.BLOCKSIZE)
                if count == 0:
                    yield "", b"", Problem("shard", "empty shard", "the tar has no members")
                elif len(ending) < tarfile.BLOCKSIZE or any(ending):
                    detail = f"the tar has no end mark after {count} members: truncated or damaged"
                    yield "", b"", Problem("shard", "truncated shard", detail)
    except _READING_ERRORS as error:
        detail = f"the tar cannot be read after {count} members: {str(error)[:120]}"
        yield "", b"", Problem("shard", "damaged shard", detail)


def _find_member_problem(member: tarfile.TarInfo) -> Problem | None:
    parts = member.name.removeprefix("./").split("/")
    if member.name.startswith("/") or ".." in parts or "\\" in member.name or "\0" in member.name:
        detail = f"the path of member {member.name!r} leads out of the folder"
        return Problem("member", "unsafe path", detail)
    if member.isdir():
        return None
    if not member.isreg():
        kind = "symbolic link" if member.issym() else "hard link" if member.islnk() else "device or pipe"
        return Problem("member", "no regular file", f"the member {member.name!r} is a {kind}")
    if member.size > MAX_BYTES:
        detail = f"the member {member.name!r} has {member.size:,} bytes; expected at most {MAX_BYTES:,}"
        return Problem("member", "too many bytes", detail)
    return None


def _recognize(source: str) -> str | None:
    if source.endswith(_SUFFIXES):
        return "a tar file" if Path(source).is_file() else "a pattern of tar files" if _is_pattern(source) else None
    path = Path(source)
    if not path.is_dir():
        return None
    names = [entry.name.lower() for entry in path.iterdir()]
    # With images beside the tars it is a folder of images, which another importer reads.
    images = any(name.rpartition(".")[2] in IMAGE_SUFFIXES for name in names)
    return "tar files" if any(name.endswith(_SUFFIXES) for name in names) and not images else None


def _is_pattern(source: str) -> bool:
    return any(letter in source for letter in "*?[{")


_INSIDE = "the images lie inside of tar files"
FORMATS = (Format(name="webdataset", run=import_webdataset, recognize=_recognize, refusals={"reference": _INSIDE}),)
