"""Compare the files of a folder with what an earlier import recorded of them, and take their changes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from foveate.records.importers.sample import Sample
from foveate.records.rows import finish_rows
from foveate.records.source_files import FileStamps, StampedImage, hash_text, list_ids, stamp_files
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter


@dataclass
class FolderVersions:
    """The files of one folder against the collection that it was imported into.

    Args:
        source: the folder.
        take: write newer versions; otherwise changes are only counted.
        replaced: samples whose image has other bytes than the collection.
    """

    source: Path
    take: bool = False
    replaced: list[Sample] = field(default_factory=list)
    _stamps: FileStamps | None = None

    @cached_property
    def folder(self) -> str:
        """Hash of the folder's path: a collection that is passed on must not reveal the path of its images."""
        return hash_text(self.source.resolve())

    @cached_property
    def _path(self) -> str:
        return str(self.source)

    def begin(self, writer: CollectionWriter) -> None:
        """Read what is recorded; finish what a killed run left."""
        self._stamps = FileStamps(writer.path)
        # A key with a record but no image: a run was killed while it deleted or replaced the image.
        unfinished = [key for key in self._stamps if writer.known_sha256(key) is None]
        if unfinished:
            writer.forget(unfinished)
            self._stamps = FileStamps(writer.path)

    @property
    def stamps(self) -> FileStamps:
        assert self._stamps is not None, "begin() comes first"
        return self._stamps

    def assign_keys(self, names: Iterable[str]) -> dict[str, str]:
        """Return file -> key: its name without extension, or with it where another file has that key.

        A file that was imported keeps its key, whatever came to the folder since.
        """
        known = self.stamps.keys_by_file(self.folder)
        keys = {name: known[name] for name in names if name in known}
        # Includes the keys of files that are gone: another file must not take the place of their image.
        used = {*keys.values(), *known.values()}
        for name in names:
            if name not in keys:
                key = next((key for key in (os.path.splitext(name)[0], name) if key not in used), name)
                keys[name] = key
                used.add(key)
        return keys

    def compare(self, sample: Sample, names: Sequence[str], options: Sequence[object]) -> None:
        """Stamp the files of a sample, and mark it as unchanged if an import recorded the same."""
        sample.stamp = stamp_files(self.folder, self._path, names, *options)
        sample.unchanged = self.stamps.is_unchanged(sample.key, sample.stamp)

    def find(self, sample: Sample) -> StampedImage | None:
        """Return what is recorded of the file of a sample; None if its key belongs to another file or none."""
        recorded = None if sample.stamp is None else self.stamps.get(sample.key)
        return recorded if recorded is not None and recorded.stamp.file == sample.source else None

    def note_replaced(self, writer: CollectionWriter, sample: Sample) -> bool:
        """Note that the file of a sample has other bytes; return False if its key belongs to another folder's image."""
        recorded = self.find(sample)
        if recorded is None or recorded.stamp.folder != self.folder or writer.is_removed(sample.key):
            return False
        writer.summary.files_replaced += 1
        self.replaced.append(sample)
        return True

    def revise(
        self, writer: CollectionWriter, sample: Sample, rows: Mapping[str, Sequence[Mapping[str, object]]]
    ) -> None:
        """Count an image whose sidecars give other rows than are recorded; write them where changes are taken."""
        recorded, stamp = self.find(sample), sample.stamp
        if recorded is None or stamp is None:
            return
        provenance = Provenance(source=writer.source)
        ids = list_ids({kind: finish_rows(kind, of_kind, provenance) for kind, of_kind in rows.items()})
        changed = sorted(ids) != sorted(self.stamps.ids(sample.key))
        if changed and recorded.stamp.folder != self.folder:
            return  # a copy of the image in another folder, with texts of its own
        writer.summary.texts_changed += changed
        # An unsettled stamp is rewritten even without a change; only a settled one lets an import skip files unread.
        if self.take and (changed or recorded.stamp != stamp or not recorded.settled):
            writer.revise(sample.key, stamp, version=recorded.version + 1, rows=rows)

    def list_gone(self, writer: CollectionWriter, names: Iterable[str]) -> list[str]:
        """Return the keys of images whose files are gone from the folder."""
        gone = self.stamps.list_gone(self.folder, set(names))
        return [key for key in gone if writer.known_sha256(key) is not None and not writer.is_removed(key)]

    def list_renamed(self, writer: CollectionWriter, gone: Iterable[str], names: Iterable[str]) -> list[str]:
        """Return those of the `gone` keys whose image another file of the folder is now."""
        gone = list(gone)
        keys = self.assign_keys(list(names)).values() if gone else ()
        present = {writer.known_sha256(key) for key in keys if not writer.is_removed(key)}
        return [key for key in gone if writer.known_sha256(key) in present]
