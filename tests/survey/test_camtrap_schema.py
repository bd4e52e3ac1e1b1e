"""Our models of Camtrap DP against the published schema: columns, required fields, closed lists, bounds, patterns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from made_surveys import FORMATS, copy_package, read_rows, write_rows

from foveate.core.errors import UserError
from foveate.survey.camtrap_profile import check_package
from foveate.survey.camtrap_schema import (
    KEYS,
    MAX_LISTED,
    MISSING,
    TABLES,
    check_table,
    columns,
    fill_missing,
    required_columns,
)
from foveate.survey.importers.camtrap_package import open_package
from naming import raises_naming

PUBLISHED = Path(__file__).parents[1] / "goldens" / "camtrap_dp"
SCHEMAS = {name: json.loads((PUBLISHED / f"{name}-table-schema.json").read_text()) for name in TABLES}
MALFORMED = [case for case in json.loads((FORMATS / "malformed.json").read_text()) if case["format"] == "camtrap_dp"]
GOOD = {
    "string": "text",
    "number": "0.5",
    "integer": "1",
    "boolean": "true",
    "datetime": "2023-05-03T05:44:19+02:00",
    "any": "{}",
}


def good_value(field: dict[str, Any]) -> str:
    constraints = field["constraints"]
    if "enum" in constraints:
        return constraints["enum"][0]
    if "pattern" in constraints:
        return {"filePath": "media/a.jpg", "fileMediatype": "image/jpeg"}[field["name"]]
    return GOOD[field["type"]]


def make_table(name: str, variants: list[tuple[str, str | None]]) -> pa.Table:
    """A row for each (column, value), whose other cells are good."""
    rows = []
    for number, (column, value) in enumerate(variants):
        row = {field["name"]: good_value(field) for field in SCHEMAS[name]["fields"]}
        rows.append({**row, KEYS[name]: f"id{number}", column: value})
    texts = {column: [row[column] for row in rows] for column in columns(name)}
    return fill_missing(pa.table({column: pa.array(cells, pa.large_string()) for column, cells in texts.items()}))


def list_variants(field: dict[str, Any]) -> list[tuple[str | None, bool]]:
    """Values of a published field, and whether its schema allows each."""
    constraints = field["constraints"]
    good = [good_value(field), *constraints.get("enum", ())]
    bad = ["nonsense"] if "enum" in constraints else []
    (bad if constraints["required"] else good).extend(MISSING)
    for bound, step in (("minimum", -1), ("maximum", 1)):
        if bound in constraints:
            good.append(repr(constraints[bound]))
            bad.append(repr(constraints[bound] + step))
    if field["type"] in ("number", "integer", "boolean", "datetime"):
        bad += ["nonsense", "1_0", " 1", "inf"]
    if field["type"] == "integer":
        bad += ["1.5", "1.0"]
    if field["type"] == "datetime":
        good += ["2023-05-03T05:44:19Z", "2023-05-03T05:44:19+0200"]
        bad += ["2023-05-03 05:44:19+02:00", "2023-05-03T05:44:19", "2023-02-30T05:44:19Z", "2023-05-03"]
    paths = ("/a.jpg", "./a.jpg", "~/a.jpg", "a/../b.jpg", "a..jpg", "https://a.org/b.jpg", "x/y", "image/png")
    for value in paths if "pattern" in constraints else ():
        # The published pattern decides, and we agree.
        (good if re.fullmatch(constraints["pattern"], value) else bad).append(value)
    return [(value, True) for value in good] + [(value, False) for value in bad]


@pytest.mark.parametrize("column", ["latitude", "longitude"])
@pytest.mark.parametrize("cell", ["504.4437", "504.4437 N"])
def test_wrong_coordinates_are_not_repeated(column: str, cell: str) -> None:
    (violation,) = check_table("deployments", make_table("deployments", [(column, cell)]), file="deployments.csv")
    assert violation.field == column
    assert "expected" in violation.problem
    assert "504" not in str(violation)


@pytest.mark.parametrize("name", TABLES)
def test_columns_are_those_of_the_published_schema(name: str) -> None:
    schema = SCHEMAS[name]
    assert columns(name) == [field["name"] for field in schema["fields"]]
    assert required_columns(name) == [field["name"] for field in schema["fields"] if field["constraints"]["required"]]
    assert schema["primaryKey"] == KEYS[name]
    assert set(schema["missingValues"]) == set(MISSING)


@pytest.mark.parametrize("name", TABLES)
def test_every_constraint_of_the_published_schema_holds(name: str) -> None:
    variants = [
        (field["name"], value, good) for field in SCHEMAS[name]["fields"] for value, good in list_variants(field)
    ]
    # A row is known by its id: a bad id has the row to itself.
    variants = [entry for entry in variants if entry[0] != KEYS[name] or entry[1] in MISSING]
    table = make_table(name, [(column, value) for column, value, _ in variants])
    violations = {(entry.row - 1, entry.field) for entry in check_table(name, table, file=f"{name}.csv")}
    expected = {(row, column) for row, (column, _, good) in enumerate(variants) if not good}
    assert {(variants[row][:2], column) for row, column in violations ^ expected} == set()


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case["id"])
def test_verdicts_of_malformed_packages(case: dict[str, Any], tmp_path: Path) -> None:
    package = copy_package(tmp_path / "package", case["replaces"])
    if case["ours"] == "error":
        with pytest.raises(UserError) as caught, open_package(package):
            pass
        # File and field, and the row of what is in a table.
        assert next(iter(case["replaces"])) in str(caught.value)
        fields = [word for message in case["public_validator_message"] for word in re.findall(r"\w+", message)]
        assert "'project'" in str(caught.value) or "row 1" in str(caught.value)
        assert any(f"'{word}'" in str(caught.value) for word in [*fields, "deploymentID"])
    else:
        with open_package(package) as opened:
            assert len(opened.warnings) == 1
            assert opened.warnings[0].file == next(iter(case["replaces"]))


@pytest.mark.parametrize("name", ["deployments", "media"])
def test_a_missing_id_that_other_rows_refer_to_is_one_sentence(name: str, tmp_path: Path) -> None:
    package = copy_package(tmp_path / "package")
    rows = read_rows(package, name)
    first = next(iter(rows))
    rows[first] = {**rows[first], KEYS[name]: ""}
    write_rows(package, name, rows)
    with raises_naming(UserError, f"{name}.csv, row 1", KEYS[name], "is missing"), open_package(package):
        pass


def test_a_problem_of_many_rows_is_listed_at_first_and_counted() -> None:
    table = make_table("media", [("timestamp", "2023-05-03T05:44:19")] * 100)
    violations = list(check_table("media", table, file="media.csv"))
    assert [violation.row for violation in violations] == list(range(1, MAX_LISTED + 1))
    assert violations[-1].others == 100 - MAX_LISTED
    assert violations[0].tolerated


def test_ids_that_come_twice_and_unknown_columns_are_named() -> None:
    table = make_table("media", [("mediaID", "m1"), ("mediaID", "m1")])
    twice = list(check_table("media", table, file="media.csv"))
    assert [(entry.row, entry.field, entry.tolerated) for entry in twice] == [(2, "mediaID", False)]
    renamed = table.rename_columns(["filepath" if name == "filePath" else name for name in table.column_names])
    messages = [str(entry) for entry in check_table("media", renamed, file="media.csv") if not entry.tolerated]
    assert messages == ["media.csv: field 'filePath' is missing: no such column. Did you mean 'filepath'?"]


def test_ids_that_are_missing_twice_are_missing_alone() -> None:
    table = make_table("media", [("mediaID", ""), ("mediaID", "")])
    messages = [str(entry) for entry in check_table("media", table, file="media.csv") if entry.field == "mediaID"]
    assert len(messages) == 2
    assert all(message.endswith("is missing") for message in messages)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resources.0.name", "deployment"),
        ("contributors.0.role", "boss"),
        ("licenses", [{"name": "CC0-1.0", "scope": "data"}]),
        ("licenses.0.scope", "everything"),
        ("project.samplingDesign", "random"),
        ("project.captureMethod", []),
        ("project.observationLevel", ["frame"]),
        ("spatial.type", "Circle"),
        ("temporal.start", "May 2023"),
        ("taxonomic.0.taxonRank", "tribe"),
        ("taxonomic.0.vernacularNames", {"english": "red fox"}),
        ("name", "With Spaces"),
        ("created", None),
    ],
)
def test_every_closed_list_of_the_descriptor_holds(field: str, value: object) -> None:
    descriptor = json.loads((FORMATS / "camtrap_dp" / "datapackage.json").read_text())
    assert list(check_package(descriptor, file="datapackage.json")) == []
    *parents, last = field.split(".")
    entry: Any = descriptor
    for parent in parents:
        entry = entry[int(parent) if parent.isdigit() else parent]
    entry[last] = value
    fields = [violation.field for violation in check_package(descriptor, file="datapackage.json")]
    assert any(name.startswith(field) or field.startswith(name) for name in fields), fields


def test_lists_of_the_descriptor_are_those_of_the_published_profile() -> None:
    from foveate.survey import camtrap_profile as ours

    profile = json.loads((PUBLISHED / "camtrap-dp-profile.json").read_text())["allOf"][1]
    fields = profile["properties"]
    required = {name for name, info in ours.Package.model_fields.items() if info.is_required()}
    assert required == set(profile["required"])
    for model, part in (
        (ours.Project, fields["project"]),
        (ours.Contributor, fields["contributors"]["items"]),
        (ours.License, fields["licenses"]["items"]),
        (ours.TaxonEntry, fields["taxonomic"]["items"]),
        (ours.Temporal, fields["temporal"]),
    ):
        schema = model.model_json_schema()
        assert set(part.get("required", ())) <= set(schema.get("required", ()))
        for name, rules in part["properties"].items():
            allowed = rules.get("enum") or rules.get("items", {}).get("enum")
            if allowed and name in schema["properties"]:
                text = json.dumps(schema["properties"][name])
                assert all(f'"{value}"' in text for value in allowed), name
