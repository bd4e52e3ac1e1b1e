"""Camtrap DP as we write and check it, against frictionless, trap-schema and camtraptools."""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from broken_files import CASES, Case, write_case
from made_surveys import FORMATS, GOLDEN, copy_package, import_package, read_rows

from foveate.core.errors import UserError
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.survey.camtrap_schema import KEYS, REFERENCES, TABLES
from foveate.survey.detections import Decision
from foveate.survey.exporters.camtrap_dp import CamtrapSettings, export_camtrap_dp
from foveate.survey.exporters.image_tables import export_wildlife_insights
from foveate.survey.importers.camtrap_package import check_written
from foveate.survey.importers.cards import import_cards
from foveate.survey.verdicts import CAMTRAP_DP
from foveate_labs.worlds.traps import TrapSettings, write_cards

frictionless = pytest.importorskip("frictionless")

PUBLISHED = Path(__file__).parents[1] / "goldens" / "camtrap_dp"
MALFORMED = [case for case in json.loads((FORMATS / "malformed.json").read_text()) if case["format"] == "camtrap_dp"]
# Reading another version is a doubt for us; the profile, which frictionless cannot fetch here, is what refuses it.
BY_PROFILE = ("dp_missing_project", "dp_wrong_version_schema")
DECISIONS = [
    Decision(key="media/dep-A/IMG_0000", taxon="Canis lupus", rank="species", probability=0.8, box=Box(0, 0, 0.5, 1)),
    Decision(key="media/dep-B/IMG_0004", kind="blank", probability=0.9),
    Decision(event="e3", taxon="Meles meles", rank="species", probability=0.97, source=("pool",)),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with rounded coordinates and decisions."""
    folder = tmp_path_factory.mktemp("written")
    collection = import_package(copy_package(folder / "package", images=True), folder / "collection")
    settings = CamtrapSettings(coordinate_digits=2)
    export_camtrap_dp(collection, folder / "out", settings=settings, decisions=DECISIONS)
    export_wildlife_insights(collection, folder / "images.csv", project="p", classifier="m", decisions=DECISIONS)
    return folder / "out"


def frictionless_errors(folder: Path) -> list[str]:
    resources = []
    for name in TABLES:
        schema = json.loads((PUBLISHED / f"{name}-table-schema.json").read_text())
        resources.append({"name": name, "path": f"{name}.csv", "schema": schema})
    package = frictionless.Package.from_descriptor({"name": "survey", "resources": resources}, basepath=str(folder))
    report = package.validate()
    return [f"{task.name}: {error.type}" for task in report.tasks for error in task.errors]


def profile_errors(descriptor: dict[str, Any]) -> list[str]:
    """What the published profile refuses in a descriptor; GeoJSON's schema is that of frictionless."""
    validators, referencing = pytest.importorskip("jsonschema"), pytest.importorskip("referencing")
    drafts = pytest.importorskip("referencing.jsonschema")
    geojson = json.loads((Path(frictionless.__file__).parent / "assets" / "profiles" / "geojson.json").read_text())
    resource = drafts.DRAFT7.create_resource(geojson)
    registry = referencing.Registry().with_resource("http://json.schemastore.org/geojson.json", resource)
    profile = json.loads((PUBLISHED / "camtrap-dp-profile.json").read_text())
    # The first part is the profile of Data Package, which frictionless checks.
    schema = {"$defs": profile["$defs"], **profile["allOf"][1]}
    return [error.message for error in validators.Draft7Validator(schema, registry=registry).iter_errors(descriptor)]


def descriptor_errors(descriptor: dict[str, Any], folder: Path) -> list[str]:
    """What frictionless refuses in a descriptor, but for the profile and the schemas, which are at addresses."""
    resources = [{**entry, "schema": {"fields": []}} for entry in descriptor["resources"]]
    content = {key: value for key, value in descriptor.items() if key != "profile"} | {"resources": resources}
    try:
        frictionless.Package.from_descriptor(content, basepath=str(folder))
    except frictionless.FrictionlessException as error:
        return [str(error)]
    return []


@pytest.mark.parametrize("case", [case for case in CASES if case.format == CAMTRAP_DP], ids=str)
def test_the_public_validators_say_what_the_cases_state(case: Case, tmp_path: Path) -> None:
    package = write_case(case, tmp_path)
    descriptor = json.loads((package / "datapackage.json").read_text())
    errors = profile_errors(descriptor) or descriptor_errors(descriptor, package) or frictionless_errors(package)
    assert (not errors) == case.public, errors


def test_frictionless_accepts_what_we_write(written: Path) -> None:
    assert frictionless_errors(GOLDEN) == []
    assert frictionless_errors(written) == []


def test_frictionless_accepts_decisions_about_cards(tmp_path: Path) -> None:
    settings = TrapSettings(width=160, height=120, train_cameras=1, validation_cameras=1, test_cameras=1, regions=1)
    write_cards(tmp_path / "cards", count=4, seed=1, settings=settings)
    import_cards(tmp_path / "cards", tmp_path / "collection")
    options = CamtrapSettings(coordinate_digits=2, contributor=("A. Person",), utc_offset=("+02:00",))
    with Collection.open(tmp_path / "collection") as collection:
        decisions = [
            Decision(key=key, taxon="Vulpes vulpes", rank="species", probability=0.9) for key in collection.keys
        ]
        export_camtrap_dp(collection, tmp_path / "out", settings=options, decisions=decisions)
    assert frictionless_errors(tmp_path / "out") == []


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case["id"])
def test_frictionless_and_our_models_refuse_the_same(case: dict[str, Any], tmp_path: Path) -> None:
    package = copy_package(tmp_path / "package", case["replaces"])
    try:
        ours = [entry for entry in check_written(package)[0] if entry.file != "datapackage.json"]
    except UserError:
        pytest.fail("the tables of this package can be read")
    assert bool(ours) == bool(frictionless_errors(package))
    assert bool(ours) == (case["public_validator_rejects"] and case["id"] not in BY_PROFILE)


@pytest.mark.parametrize("seed", range(12))
def test_frictionless_agrees_about_random_cells(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    package = copy_package(tmp_path / "package")
    name = draw.choice(list(TABLES))
    rows = read_rows(package, name)
    row = rows[draw.choice(list(rows))]
    column = draw.choice(list(row))
    row[column] = draw.choice(["", "NA", "nan", "-1", "0", "1", "2.5", "91", "x", "true", "2023-05-03T05:44:19+02:00"])
    with (package / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows(rows.values())
    violations, _ = check_written(package)
    assert bool(violations) == bool(frictionless_errors(package)), (name, column, row[column], violations)


def test_the_references_are_those_of_the_published_schemas() -> None:
    for name in TABLES:
        schema = json.loads((PUBLISHED / f"{name}-table-schema.json").read_text())
        keys = [(key["fields"], key["reference"]["resource"]) for key in schema.get("foreignKeys", ())]
        assert keys == [(KEYS[other], other) for other in REFERENCES.get(name, ())]


def test_trap_schema_reads_what_we_write(written: Path) -> None:
    trap_schema = pytest.importorskip("trap_schema")
    dataset = trap_schema.Dataset.load(written)
    assert len(dataset.observations.to_dict()["observationID"]) == len(read_rows(written, "observations"))
    assert dataset.datapackage.coordinatePrecision == pytest.approx(0.01)


def test_camtraptools_imports_into_what_we_write(written: Path, tmp_path: Path) -> None:
    cli = pytest.importorskip("camtraptools.cli")
    runner = pytest.importorskip("typer.testing").CliRunner()
    package = Path(shutil.copytree(written, tmp_path / "package"))
    files = [row["filePath"] for row in read_rows(package, "media").values()]
    detections = [{"category": "1", "conf": 0.9, "bbox": [0.1, 0.1, 0.2, 0.2]}]
    content = {
        "info": {"format_version": "1.6", "detector": "md"},
        "detection_categories": {"1": "animal"},
        "images": [{"file": file, "detections": detections} for file in files],
    }
    results = tmp_path / "results.json"
    results.write_text(json.dumps(content))
    imported = runner.invoke(cli.app, ["import", str(package), str(results)])
    assert imported.exit_code == 0, imported.output
    assert "Imported results for 10 of 10 images" in imported.output
    truth = runner.invoke(cli.app, ["labels", str(package), str(written), "--out", str(tmp_path / "truth.csv")])
    assert truth.exit_code == 0, truth.output
    # Its labels are those of people, where there are any: the event of one person, three frames.
    assert (tmp_path / "truth.csv").read_text().count("Vulpes vulpes") == 3
