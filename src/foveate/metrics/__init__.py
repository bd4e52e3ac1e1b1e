"""Metrics of the field as pure numpy functions, with confidence intervals. No torch."""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "ClassGroups": "foveate.metrics.class_groups",
    "adjusted_rand_index": "foveate.metrics.clustering",
    "anls": "foveate.metrics.text_answers",
    "ausuc": "foveate.metrics.tradeoff",
    "average_logit_gap": "foveate.metrics.calibration",
    "average_precision": "foveate.metrics.multilabel",
    "best_thresholds": "foveate.metrics.multilabel",
    "bootstrap_interval": "foveate.metrics.intervals",
    "category_scores": "foveate.metrics.answers",
    "compare_ensembles": "foveate.metrics.agreement",
    "continuity": "foveate.metrics.embedding",
    "count_labels": "foveate.metrics.multilabel",
    "distance_correlation": "foveate.metrics.embedding",
    "error_consistency": "foveate.metrics.agreement",
    "expected_calibration_error": "foveate.metrics.confidence",
    "foreign_share": "foveate.metrics.embedding",
    "grounding_scores": "foveate.metrics.grounding",
    "group_accuracies": "foveate.metrics.calibration",
    "knn_accuracy": "foveate.metrics.embedding",
    "link_ranks": "foveate.metrics.retrieval",
    "mean_absolute_error": "foveate.metrics.regression",
    "mean_average_precision": "foveate.metrics.multilabel",
    "mean_class_accuracy": "foveate.metrics.classification",
    "micro_f1": "foveate.metrics.multilabel",
    "neighborhood_hit": "foveate.metrics.embedding",
    "normalized_mutual_information": "foveate.metrics.clustering",
    "paired_difference": "foveate.metrics.intervals",
    "parse_letter": "foveate.metrics.answers",
    "quadratic_kappa": "foveate.metrics.regression",
    "r2": "foveate.metrics.regression",
    "recall_at_k": "foveate.metrics.retrieval",
    "recall_from_embeddings": "foveate.metrics.retrieval",
    "relaxed_accuracy": "foveate.metrics.text_answers",
    "reliability": "foveate.metrics.embedding",
    "root_mean_squared_error": "foveate.metrics.regression",
    "score_boxes": "foveate.metrics.referring",
    "seed_interval": "foveate.metrics.intervals",
    "select_gamma": "foveate.metrics.tradeoff",
    "su_curve": "foveate.metrics.tradeoff",
    "trustworthiness": "foveate.metrics.embedding",
    "vqa_accuracy": "foveate.metrics.text_answers",
    "wilson_interval": "foveate.metrics.intervals",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
