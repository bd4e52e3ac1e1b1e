"""A survey of a collection in columns: deployments, hours, places, events and labels of its images.

Nothing is guessed: an image without a time has no hour, one without coordinates no place, one without a reviewed
observation no label. What is masked is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foveate.core.errors import UserError, choose
from foveate.records import tables
from foveate.records.collection import Collection
from foveate.survey.hours import (
    DAY,
    GAP_SECONDS,
    Events,
    Times,
    TimeStatus,
    days_of_year,
    find_clock_faults,
    group_events,
    hours_of_day,
    local_clock,
    months,
    parse_times,
    stated_offset,
)
from foveate.survey.store import join_names, list_deployments, select_current, select_last
from foveate.survey.types import Deployment

LabelSource = Literal["human", "machine", "all"]
_SOURCES: tuple[str, ...] = get_args(LabelSource)
_EVENT_COLUMNS = ["deployment", "event", "kind", "taxon", "taxon_id", "method", "probability", "extra"]
_NO_LABEL = ("unknown", "unclassified", "")
_SETUP = '"cameraSetupType"'  # in `extra`: a person who sets up the camera is no observation of the survey


class Survey:
    """The survey of a collection; open it with `Survey.open`.

    Arrays have one entry per row of the collection, in its order.

    Args:
        keys: image keys; behind those of the collection, those of images that only have rows (`open`).
        deployments: in the order of their table; behind them those that only images name, without any field.
        num_listed: number of deployments in the table.
        deployment_N: index into `deployments`; -1 for images of no deployment.
        media: columns deployment, sequence, frame_number, time, file, extra and created per image.

    Example:
        >>> survey = Survey.open(survey_folder)
        >>> survey
        Survey('survey', 64 images of 4 deployments)
        >>> survey.hour_N[:3].tolist(), survey.labels()[:3].tolist()
        ([0.0, 1.0, 2.0], ['Cervus elaphus', 'Lynx lynx', 'Vulpes vulpes'])
    """

    def __init__(
        self,
        collection: Collection,
        deployments: tuple[Deployment, ...],
        num_listed: int,
        media: pa.Table,
        *,
        absent_keys: Sequence[str] = (),
    ) -> None:
        self.collection = collection
        self.keys = [*collection.keys, *absent_keys] if absent_keys else collection.keys
        self.deployments, self.num_listed = deployments, num_listed
        self.media = media
        ids = pa.array([deployment.id for deployment in deployments], pa.string())
        self.deployment_N = tables.positions(media["deployment"], among=ids)

    @classmethod
    def open(cls, collection: Collection | str | Path, *, without_images: bool = False) -> Survey:
        """Open the survey of a collection.

        Args:
            without_images: also the media of a package whose images are not there, such as those at addresses: clocks
                and observations need no image.

        Raises:
            UserError: the collection has none, or a deployment states no usable offset.
        """
        collection = collection if isinstance(collection, Collection) else Collection.open(collection)
        media = collection.table("media")
        absent = collection.dataset_table("media_without_image")
        if absent.num_rows:
            # An image that was imported later has its row in `media`.
            is_absent = tables.positions(absent["key"], among=pa.array(collection.keys, pa.string())) < 0
            absent = absent.filter(pa.array(is_absent))
        if not media.num_rows and not (without_images and absent.num_rows):
            if absent.num_rows:
                raise UserError(
                    f"collection {collection.name!r} has the rows of {absent.num_rows:,} images, but none of the "
                    "images; collect the package again with --images and the folder that has them"
                )
            raise UserError(
                f"collection {collection.name!r} has no camera-trap survey (annotations/media is empty); collect it "
                "again with --deployments, or from a survey's format"
            )
        media, absent_keys = select_last(media), list[str]()
        if without_images and absent.num_rows:
            absent_keys = absent["key"].to_pylist()
            media = pa.concat_tables([media, absent], promote_options="permissive")
        latest_N = tables.positions(pa.array([*collection.keys, *absent_keys], pa.string()), among=media["key"])
        # An index that is null gives null cells: those of images without a row, which are filled below.
        aligned = media.drop_columns(["key"]).take(pa.array(latest_N, mask=latest_N < 0))
        names = ("deployment", "sequence", "frame_number", "time", "file", "extra", "created")
        columns = {
            name: aligned[name].fill_null(-1 if name == "frame_number" else "").combine_chunks() for name in names
        }
        listed = list_deployments(collection)
        named = columns["deployment"].unique().to_pylist()
        unlisted = sorted({name for name in named if name} - {deployment.id for deployment in listed})
        deployments = (*listed, *map(Deployment, unlisted))
        return cls(collection, deployments, len(listed), pa.table(columns), absent_keys=absent_keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"Survey({self.collection.name!r}, {len(self)} images of {len(self.deployments)} deployments)"

    @property
    def times(self) -> pa.ChunkedArray:
        """Times of images as written, "" where there is none."""
        return self.media["time"]

    @cached_property
    def parsed_times(self) -> Times:
        """The times of images, parsed but neither shifted nor masked."""
        return parse_times(self.times)

    @cached_property
    def camera_N(self) -> NDArray[np.object_]:
        """Name of the camera of each image: the place of its deployment, or else the deployment.

        Images of no deployment have their group in the collection.
        """
        count = len(self.collection)
        if len(self) == count:
            return self.collection.cameras
        # Images of no deployment have the index -1, and no camera.
        names = np.array([*(entry.camera for entry in self.deployments), ""], dtype=object)
        return np.concatenate([self.collection.cameras, names[self.deployment_N[count:]]])

    @cached_property
    def places_N2(self) -> NDArray[np.float64]:
        """Latitude and longitude of each image in degrees; NaN where unknown."""
        degrees = [(entry.latitude, entry.longitude) for entry in self.deployments]
        # The extra row of NaN is that of index -1, images without a deployment.
        places = np.array([*degrees, (None, None)], dtype=np.float64).reshape(-1, 2)
        # A latitude without a longitude is no place.
        places[np.isnan(places).any(axis=1)] = np.nan
        return places[self.deployment_N]

    @cached_property
    def place_offset_D(self) -> NDArray[np.float64]:
        """Seconds east of UTC that the user states for each deployment; NaN where none is stated."""
        return np.array(list(map(stated_offset, self.deployments)), np.float64)

    def _per_image(self, values_D: NDArray, missing: object) -> NDArray:
        # The index -1 of images without a deployment reads the value behind the last one.
        return np.append(values_D, np.array([missing], values_D.dtype))[self.deployment_N]

    @cached_property
    def shift_N(self) -> NDArray[np.int64]:
        """Seconds added to the clock of each image."""
        return self._per_image(np.array([entry.clock_shift for entry in self.deployments], np.int64), 0)

    @cached_property
    def has_issues_N(self) -> NDArray[np.bool_]:
        """Whether the clock of an image's deployment is not trusted (`timestamp_issues`)."""
        return self._per_image(np.array([entry.timestamp_issues for entry in self.deployments], np.bool_), False)

    @cached_property
    def is_unplaced_utc_N(self) -> NDArray[np.bool_]:
        """Whether a time ends in Z while its deployment starts in another offset, and the user states none.

        Such a table was converted to UTC by a program: the hour that is written is not that of the place.
        """
        starts = parse_times([entry.start for entry in self.deployments])
        # +00:00 is UTC in another spelling: such a place keeps its hours.
        local_D = ~np.isnan(starts.offset_N) & ~starts.is_utc_N & (starts.offset_N != 0)
        return self.parsed_times.is_utc_N & self._per_image(local_D & np.isnan(self.place_offset_D), False)

    @cached_property
    def unmasked_clock_N(self) -> NDArray[np.float64]:
        """Seconds of the local clock of each image since 1970, shifted, faults included; NaN where unknown."""
        place_offset_N = self._per_image(self.place_offset_D, np.nan)
        return local_clock(self.parsed_times, shift_N=self.shift_N, place_offset_N=place_offset_N)

    @cached_property
    def bounds_D2(self) -> NDArray[np.float64]:
        """Start and end of each deployment in seconds of its clock; a mere end date ends its day; else NaN."""
        starts = parse_times([entry.start for entry in self.deployments])
        ends = parse_times([entry.end for entry in self.deployments])
        # Bounds are compared as written, whatever their offset: the tolerance of clock faults is a day.
        start_D = np.where(starts.status_N == TimeStatus.OK, starts.wall_N, starts.midnight_N)
        end_D = np.where(ends.status_N == TimeStatus.OK, ends.wall_N, ends.midnight_N + DAY)
        return np.stack([start_D, end_D], axis=1)

    @cached_property
    def clock_faults(self) -> dict[str, NDArray[np.bool_]]:
        """Images by fault of their clock; see `foveate.survey.hours`."""
        return find_clock_faults(
            self.unmasked_clock_N,
            self.deployment_N,
            bounds_D2=self.bounds_D2,
            imported_N=parse_times(self.media["created"]).wall_N,
            files=self._files,
        )

    @cached_property
    def gaps_D(self) -> NDArray[np.float64]:
        """Days of the longest gap between two images of each deployment that follow each other; 0 without one.

        Images with a fault of the clock are left out.
        """
        gap_D = np.zeros(len(self.deployments))
        known = np.flatnonzero(~np.isnan(self.clock_N) & (self.deployment_N >= 0))
        order = known[np.lexsort((self.clock_N[known], self.deployment_N[known]))]
        same = np.diff(self.deployment_N[order]) == 0
        np.maximum.at(gap_D, self.deployment_N[order[1:]][same], np.diff(self.clock_N[order])[same] / DAY)
        return gap_D

    @cached_property
    def clock_N(self) -> NDArray[np.float64]:
        """Seconds of the local clock of each image since 1970; NaN where unknown or masked."""
        masked_N = np.logical_or.reduce([self.has_issues_N, self.is_unplaced_utc_N, *self.clock_faults.values()])
        return np.where(masked_N, np.nan, self.unmasked_clock_N)

    @cached_property
    def hour_N(self) -> NDArray[np.float64]:
        """Hour of the local clock, 0 to 23; NaN where unknown or masked."""
        return hours_of_day(self.clock_N)

    @cached_property
    def month_N(self) -> NDArray[np.float64]:
        """Month, 1 to 12; NaN where unknown or masked."""
        return months(self.clock_N)

    @cached_property
    def day_N(self) -> NDArray[np.float64]:
        """Day of the year, 1 to 366; NaN where unknown or masked."""
        return days_of_year(self.clock_N)

    def count_missing(self) -> dict[str, int]:
        """Count images without an hour or place, by reason."""
        masks = {
            "no time": self.parsed_times.status_N != TimeStatus.OK,
            "timestamp issues": self.has_issues_N,
            "UTC at a place with another offset": self.is_unplaced_utc_N,
            **{f"clock: {fault}": mask_N for fault, mask_N in self.clock_faults.items()},
        }
        counts, counted_N = {}, np.zeros(len(self), np.bool_)
        for reason, mask_N in masks.items():
            # An image counts once, under its first reason, so that the counts sum to the images without an hour.
            counts[reason] = int((mask_N & ~counted_N).sum())
            counted_N |= mask_N
        counts["no coordinates"] = int(np.isnan(self.places_N2[:, 0]).sum())
        return {reason: count for reason, count in counts.items() if count}

    @cached_property
    def instant_N(self) -> NDArray[np.float64]:
        """Seconds by which images of one deployment are ordered, also where the hour is masked; NaN without a time.

        Offsets are subtracted, so that the end of daylight saving does not split a burst. Where some images of a
        deployment have an offset and others none, all are ordered by the clock as written.
        """
        offset_N = self._offset_N
        as_written_N = self.has_mixed_offsets_N | np.isnan(offset_N)
        return self.parsed_times.wall_N + self.shift_N - np.where(as_written_N, 0.0, offset_N)

    @cached_property
    def _offset_N(self) -> NDArray[np.float64]:
        """Seconds east of UTC of each time, by its text or else its deployment; NaN where neither states one."""
        written_N = self.parsed_times.offset_N
        return np.where(np.isnan(written_N), self._per_image(self.place_offset_D, np.nan), written_N)

    @cached_property
    def has_mixed_offsets_N(self) -> NDArray[np.bool_]:
        """Whether some images of an image's deployment have an offset from UTC and others none."""
        has_time_N, zoned_N = self.parsed_times.status_N == TimeStatus.OK, ~np.isnan(self._offset_N)
        num = len(self.deployments) + 1
        # + 1: images of no deployment have the index -1, and a bin of their own.
        zoned = np.bincount(self.deployment_N[has_time_N & zoned_N] + 1, minlength=num) > 0
        zoneless = np.bincount(self.deployment_N[has_time_N & ~zoned_N] + 1, minlength=num) > 0
        return (zoned & zoneless)[self.deployment_N + 1]

    @cached_property
    def sequence_N(self) -> NDArray[np.int64]:
        """Number of the source's sequence of each image; -1 for none."""
        texts = self.media["sequence"].combine_chunks()
        codes = pc.call_function("dictionary_encode", [texts]).indices.to_numpy().astype(np.int64)
        empty = pc.call_function("equal", [texts, pa.scalar("")]).to_numpy(zero_copy_only=False)
        return np.where(empty, -1, codes)

    def events(self, *, gap_seconds: float = GAP_SECONDS) -> Events:
        """Group images into events; see `group_events`.

        Args:
            gap_seconds: a longer gap begins a new event.
        """
        return group_events(
            self.deployment_N,
            self.instant_N,
            sequence_N=self.sequence_N,
            frame_N=self.media["frame_number"].to_numpy().astype(np.int64),
            files=self._files,
            gap_seconds=gap_seconds,
        )

    @cached_property
    def _files(self) -> pa.Array:
        files = self.media["file"].combine_chunks()
        # Keys replace missing names, because file names decide the order of images of the same second.
        is_empty = pc.call_function("equal", [files, pa.scalar("")])
        return pc.call_function("if_else", [is_empty, pa.array(self.keys, pa.string()), files])

    @cached_property
    def observations(self) -> pa.Table:
        """Rows of `observations` that hold, see `foveate.survey.store.select_current`."""
        current = select_current(self.collection.table("observations"))
        if len(self) == len(self.collection):
            return current
        absent = self.collection.dataset_table("observations_without_image")
        names = pa.array(self.keys[len(self.collection) :], pa.string())
        absent = select_current(absent.filter(pa.array(tables.positions(absent["key"], among=names) >= 0)))
        return pa.concat_tables([current, absent], promote_options="permissive")

    def labels(self, source: LabelSource = "human", *, min_probability: float = 0.0) -> NDArray[np.object_]:
        """Return the label of each image: a taxon's id (else its name), "blank", "human", "vehicle", or "" for none.

        Rows about whole events are no labels of their images: an animal leaves some frames of its burst.

        Args:
            source: "human" takes observations that no machine made; "machine" only those of machines; "all" those of
                machines where no person looked at the image.
            min_probability: of machines, in [0, 1]: less certain rows are left out. Rows that state none stay, such as
                those of a detector about an empty image.

        Raises:
            UserError: the source or probability is impossible.
        """
        return self._label(source, min_probability)[0]

    def event_labels(self, source: LabelSource = "human", *, min_probability: float = 0.0) -> NDArray[np.object_]:
        """Return what rows about whole events say of each image's event, "" for nothing or several kinds.

        An event row belongs to the images of its deployment whose sequence has its event's id. The frame itself may be
        empty.

        Args:
            source, min_probability: see `labels`.
        """
        choose(source, _SOURCES, "source of labels")
        table = self.collection.dataset_table("event_observations")
        about_event = self.observations
        # A row of an image may be about its event: it labels the event, not the frame.
        about_event = about_event.filter(_is(about_event["level"], "event"))
        tables_of_events = [part.select(_EVENT_COLUMNS) for part in (table, about_event) if part.num_rows]
        if not tables_of_events:
            return np.full(len(self), "", dtype=object)
        joined = pa.concat_tables(tables_of_events, promote_options="permissive")
        joined = joined.filter(pc.call_function("not_equal", [joined["event"], pa.scalar("")]))
        # With the deployment, as cameras may number their events from 1.
        events = join_names(joined["deployment"], joined["event"])
        names = events.unique()
        rows = tables.positions(events, among=names)
        label_E, _ = _reduce_labels(joined, rows, len(names), source, min_probability)
        sequences = join_names(self.media["deployment"], self.media["sequence"])
        # The index -1 of images whose event has no row reads the empty label at the end.
        return np.append(label_E, "")[tables.positions(sequences, among=names)]

    def label_counts(self, source: LabelSource = "human", *, min_probability: float = 0.0) -> dict[str, int]:
        """Count the reasons for which images have no label.

        Several kinds, an animal without a name, setting up the camera, only an observation of the event, nothing that
        could be named, or no observation.
        """
        return self._label(source, min_probability)[1]

    def _label(self, source: LabelSource, min_probability: float) -> tuple[NDArray[np.object_], dict[str, int]]:
        choose(source, _SOURCES, "source of labels")
        if not 0 <= min_probability <= 1:
            raise UserError(f"min_probability: out of range (got {min_probability}); expected 0 to 1")
        if (source, min_probability) not in self._labels:
            table = self.observations
            table = table.filter(pc.call_function("not_equal", [table["level"], pa.scalar("event")]))
            rows = tables.positions(table["key"], among=pa.array(self.keys, pa.string()))
            label_N, masks = _reduce_labels(table, rows, len(self), source, min_probability)
            unlabeled_N = (label_N == "") & ~np.logical_or.reduce(list(masks.values()))
            # Each image counts under one reason: every mask is taken from what the earlier ones left.
            by_event_N = self.event_labels(source, min_probability=min_probability) != ""
            masks["labeled only by their event"] = unlabeled_N & by_event_N
            unlabeled_N &= ~by_event_N
            observed_N = _mark(rows[_select_source(table, rows, len(self), source, min_probability)], len(self))
            masks["nothing that could be named"] = unlabeled_N & observed_N
            masks["unlabeled"] = unlabeled_N & ~observed_N
            counts = {reason: int(mask.sum()) for reason, mask in masks.items() if mask.any()}
            self._labels[source, min_probability] = label_N, counts
        return self._labels[source, min_probability]

    @cached_property
    def _labels(self) -> dict[tuple[str, float], tuple[NDArray[np.object_], dict[str, int]]]:
        return {}

    def describe(self) -> Mapping[str, int]:
        """Return counts for a summary: images, deployments, cameras, and those without hour, place or label."""
        cameras = len(set(self.camera_N.tolist()))
        counts = {"images": len(self), "deployments": len(self.deployments), "cameras": cameras}
        return {**counts, **self.count_missing(), **self.label_counts()}


def _select_source(
    table: pa.Table, rows_O: NDArray[np.int64], count: int, source: LabelSource, min_probability: float
) -> NDArray[np.bool_]:
    """Return which observations are of the source and certain enough; rows are those of `_reduce_labels`."""
    is_machine_O = _is(table["method"], "machine").to_numpy()
    probability_O = table["probability"].cast(pa.float64()).to_numpy()  # NaN where none is stated
    # Negated, and not >=: a comparison with NaN is false, and rows that state no probability stay.
    is_certain_O = ~is_machine_O | ~(probability_O < min_probability)
    if source == "all":
        looked_at = _mark(rows_O[~is_machine_O & ~_is(table["kind"], "unclassified").to_numpy()], count)
        return is_certain_O & ~(is_machine_O & looked_at[rows_O])
    return is_certain_O & (is_machine_O == (source == "machine"))


def _reduce_labels(
    table: pa.Table, rows_O: NDArray[np.int64], count: int, source: LabelSource, min_probability: float
) -> tuple[NDArray[np.object_], dict[str, NDArray[np.bool_]]]:
    """Reduce observations to one label for each of `count` images or events, and masks of why others have none.

    Args:
        rows_O: image or event of each observation.
    """
    setup_O = pc.call_function("match_substring", [table["extra"]], pc.MatchSubstringOptions(_SETUP)).to_numpy()
    keep_O = ~setup_O & _select_source(table, rows_O, count, source, min_probability)
    names = _label_texts(table)
    is_named_O = ~_is(names, "").to_numpy()
    is_animal_O = _is(table["kind"], "animal").to_numpy()
    setup = _mark(rows_O[setup_O], count)
    unnamed = _mark(rows_O[keep_O & is_animal_O & ~is_named_O], count)
    encoded = pc.call_function("dictionary_encode", [names.combine_chunks()])
    codes, rows = encoded.indices.to_numpy()[keep_O & is_named_O], rows_O[keep_O & is_named_O]
    # One kind is in an image where the smallest and the largest code of its names are equal; nothing is sorted or
    # grouped.
    lowest, highest = np.full(count, np.iinfo(np.int64).max), np.full(count, -1, np.int64)
    np.minimum.at(lowest, rows, codes)
    np.maximum.at(highest, rows, codes)
    several = (highest >= 0) & (lowest != highest) & ~setup
    # An unnamed animal beside a named kind is a second kind; setting up a camera never trains.
    # A row that calls the image empty and names a species teaches neither.
    is_both_O = _is(table["kind"], "blank").to_numpy() & ~_is(table["taxon"], "").to_numpy()
    both = _mark(rows_O[keep_O & is_both_O], count) & ~several & ~unnamed & ~setup
    usable = (highest >= 0) & ~several & ~unnamed & ~setup & ~both
    # The last value is the empty label, for all that have no usable one.
    values = np.array([*encoded.dictionary.to_pylist(), ""], dtype=object)
    masks = {
        "several kinds in one image": several,
        "animal without a name": unnamed & ~several & ~setup,
        "setting up the camera": setup,
        "called empty and a species at once": both,
    }
    return values[np.where(usable, highest, len(values) - 1)], masks


def _mark(rows: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    mask = np.zeros(count, np.bool_)
    mask[rows] = True
    return mask


def _label_texts(table: pa.Table) -> pa.ChunkedArray:
    """Return the label of each observation; "" for one that is none.

    A taxon has its id where any row gives the name exactly one id, so that one species is not two labels.
    """
    taxa = table.select(["taxon", "taxon_id"]).filter(pc.call_function("not_equal", [table["taxon_id"], pa.scalar("")]))
    pairs = {(row["taxon"], row["taxon_id"]) for row in taxa.group_by(["taxon", "taxon_id"]).aggregate([]).to_pylist()}
    num_ids = Counter(name for name, _ in pairs)
    id_of = {name: taxon_id for name, taxon_id in pairs if name and num_ids[name] == 1}
    known = pa.array(list(id_of), pa.string())
    positions = tables.positions(table["taxon"], among=known)
    unique = pa.array(list(id_of.values()), pa.string()).take(pa.array(positions, mask=positions < 0))
    taxon_id = pc.call_function(
        "if_else", [_is(table["taxon_id"], ""), pa.scalar(None, pa.string()), table["taxon_id"]]
    )
    # The row's own id, else the only id that others give its name, else the name.
    taxon = pc.call_function("coalesce", [taxon_id, pa.chunked_array([unique]), table["taxon"]])
    no_label = pc.call_function("is_in", [table["kind"]], pc.SetLookupOptions(value_set=pa.array(_NO_LABEL)))
    plain = pc.call_function("if_else", [no_label, pa.scalar(""), table["kind"]])
    return pc.call_function("if_else", [_is(table["kind"], "animal"), taxon, plain])


def _is(column: pa.ChunkedArray, value: str) -> pa.ChunkedArray:
    return pc.call_function("equal", [column, pa.scalar(value)])
