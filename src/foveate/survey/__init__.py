"""Camera-trap surveys: deployments, images of cameras, observations, and the hours and events made of them."""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "CamtrapSettings": "foveate.survey.exporters.camtrap_dp",
    "ClassLabel": "foveate.survey.detections",
    "Decision": "foveate.survey.detections",
    "Deployment": "foveate.survey.types",
    "DetectedImage": "foveate.survey.detections",
    "Detection": "foveate.survey.detections",
    "ResultsInfo": "foveate.survey.exporters.megadetector",
    "Survey": "foveate.survey.survey",
    "Taxa": "foveate.survey.taxa",
    "add_results": "foveate.survey.importers.results",
    "check_images": "foveate.survey.health",
    "check_survey": "foveate.survey.checks",
    "export_camtrap_dp": "foveate.survey.exporters.camtrap_dp",
    "export_megadetector": "foveate.survey.exporters.megadetector",
    "export_observations_csv": "foveate.survey.exporters.image_tables",
    "export_wildlife_insights": "foveate.survey.exporters.image_tables",
    "import_camtrap_dp": "foveate.survey.importers.camtrap_dp",
    "import_cards": "foveate.survey.importers.cards",
    "load_builtin_taxa": "foveate.survey.taxa",
    "read_corrections": "foveate.survey.importers.corrections",
    "read_deployments": "foveate.survey.deployments",
    "read_results": "foveate.survey.importers.results",
    "read_records": "foveate.survey.effort",
    "round_deployments": "foveate.survey.deployments",
    "write_effort": "foveate.survey.effort",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
