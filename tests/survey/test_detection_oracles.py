"""Detection results and annotation files beside the libraries of others: megadetector-utils and CamTrapTools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from broken_files import CASES, Case, write_case

from foveate.survey.detections import ClassLabel, DetectedImage, Prediction
from foveate.survey.exporters.megadetector import ResultsInfo, export_megadetector
from foveate.survey.importers.coco_camera_traps import read_camera_traps
from foveate.survey.importers.results import read_results
from foveate.survey.verdicts import CAMTRAP_DP, MEGADETECTOR, SPECIESNET

FORMATS = Path(__file__).parent.parent / "goldens" / "cosmo" / "formats"
NAMES = ["megadetector_1.6", "speciesnet_new", "speciesnet_old"]
INFO = ResultsInfo(detector="nanodet", classifier="cosmo", detected_at="2024-01-10 12:00:00")


def export(name: str, path: Path) -> Path:
    export_megadetector(path, read_results(FORMATS / f"{name}.json").images, INFO)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_the_public_validator_takes_what_is_written(name: str, tmp_path: Path) -> None:
    validation = pytest.importorskip("megadetector.postprocessing.validate_batch_results")
    result = validation.validate_batch_results(str(export(name, tmp_path / "r.json")))["validation_results"]
    assert result["errors"] == []
    assert result["warnings"] == []


def is_accepted(case: Case, path: Path) -> bool:
    """Whether the public validator of a format takes a file."""
    try:
        if case.format == MEGADETECTOR:
            validation = pytest.importorskip("megadetector.postprocessing.validate_batch_results")
            return not validation.validate_batch_results(str(path))["validation_results"]["errors"]
        if case.format == SPECIESNET:
            taxonomy = pytest.importorskip("megadetector.utils.wi_taxonomy_utils")
            taxonomy.generate_md_results_from_predictions_json(str(path), str(path.with_suffix(".converted")))
            return True
        check = pytest.importorskip("megadetector.data_management.integrity_check_json_db")
        options = check.IntegrityCheckOptions()
        options.verbose, options.bCheckImageSizes, options.bCheckImageExistence = False, False, False
        options.validateBoxes = "error"
        check.integrity_check_json_db(str(path), options)
    except (AssertionError, ValueError, TypeError, KeyError, IndexError):
        return False
    return True


@pytest.mark.parametrize("case", [case for case in CASES if case.format != CAMTRAP_DP], ids=str)
def test_the_public_validators_say_what_the_cases_state(case: Case, tmp_path: Path) -> None:
    assert is_accepted(case, write_case(case, tmp_path)) == case.public


def test_typical_thresholds_are_those_that_others_read(tmp_path: Path) -> None:
    load = pytest.importorskip("megadetector.detection.run_detector")
    content = json.loads(export("megadetector_1.6", tmp_path / "r.json").read_text())
    assert load.get_typical_confidence_threshold_from_results(content) == INFO.detection_threshold


def test_speciesnet_converts_as_the_public_converter_does(tmp_path: Path) -> None:
    taxonomy = pytest.importorskip("megadetector.utils.wi_taxonomy_utils")
    source, converted = FORMATS / "speciesnet_new.json", tmp_path / "converted.json"
    taxonomy.generate_md_results_from_predictions_json(str(source), str(converted))
    assert read_results(converted).images == read_results(source).images


def test_annotations_that_the_public_check_takes_are_read(tmp_path: Path) -> None:
    check = pytest.importorskip("megadetector.data_management.integrity_check_json_db")
    options = check.IntegrityCheckOptions()
    options.quiet, options.bCheckImageSizes, options.bCheckImageExistence = True, False, False
    _, data, _ = check.integrity_check_json_db(str(FORMATS / "cct.json"), options)
    read = read_camera_traps(FORMATS / "cct.json")
    assert len(read.images) == len(data["images"])


def test_camtraptools_takes_the_scientific_names(tmp_path: Path) -> None:
    importer = pytest.importorskip("camtraptools.importer")
    pandas = pytest.importorskip("pandas")
    fox = ClassLabel.from_lineage("red fox", "5219243", {"class": "Mammalia", "species": "Vulpes vulpes"})
    images = [DetectedImage("dep-A/IMG_0000.JPG", prediction=Prediction(fox, 0.9)), DetectedImage("dep-A/IMG_0001.JPG")]
    export_megadetector(tmp_path / "results.json", images, INFO)
    pandas.DataFrame({"filePath": ["dep-A/IMG_0000.JPG", "dep-A/IMG_0001.JPG"]}).to_csv(tmp_path / "media.csv")
    assert importer.run(tmp_path, tmp_path / "results.json") == (2, 0)
    written: dict[str, Any] = json.loads((tmp_path / importer.RESULTS_FILE).read_text())
    classes = [
        box["processed_classification"]["class"] for image in written["predictions"] for box in image["detections"]
    ]
    assert classes == ["5219243;mammalia;;;vulpes;vulpes;red fox"]
    assert written["info"]["classifier_name"] == "cosmo"
