"""Old import paths, for one release: each gives the module that has taken its place, with a line of warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# Modules that have become a part of another: their package, the module that has their names now, and their old names.
# A text and no mapping: every start of the command line would compile that anew where bytecode is not kept.
_MERGED = """\
foveate.adapt foveate.adapt.adapter: parameter_summary parameter_swap
foveate.adapt foveate.adapt.backbones: find_backbone
foveate.adapt foveate.adapt.fit: probe
foveate.adapt foveate.adapt.methods.bottlenecks: bottleneck
foveate.adapt foveate.adapt.methods.fact: fact
foveate.adapt foveate.adapt.methods.vpt: prompts
foveate.adapt foveate.adapt.recipe: settings
foveate.adapt foveate.adapt.registry: requirements
foveate.adapt foveate.adapt.train: measure
foveate.adapt foveate.adapt.wise: robustness
foveate.adapt.compare foveate.adapt.compare.comparison: splits
foveate.adapt.compare foveate.adapt.compare.pricing: plan
foveate.adapt.compare foveate.adapt.compare.run: summary
foveate.adapt.methods foveate.adapt.methods.bottlenecks: adaptformer convpass houlsby pfeiffer repadapter
foveate.adapt.methods foveate.adapt.methods.fact: fact_tk fact_tt
foveate.adapt.methods foveate.adapt.methods.scales: difffit ssf
foveate.adapt.methods foveate.adapt.methods.subsets: bitfit full layernorm linear subset
foveate.adapt.methods foveate.adapt.methods.vpt: vpt_deep vpt_shallow
foveate.calibrate foveate.calibrate.estimator: absent_classes method_choice
foveate.calibrate foveate.calibrate.fine_tuning: pseudo_runs
foveate.caption foveate.caption.audit_metrics: entities
foveate.caption foveate.caption.chat_requests: chat_format
foveate.caption foveate.caption.lengths: length_filters
foveate.caption foveate.caption.results: audit_results
foveate.caption foveate.caption.settings: audit_settings captioner_settings
foveate.caption.assertions foveate.caption.judges: clip_judge ground_truth llm_judge
foveate.caption.assertions foveate.caption.splitter: word_classes
foveate.caption.executors foveate.caption.execution: local ray
foveate.caption.targets foveate.caption.settings: settings
foveate.caption.targets foveate.caption.targets.material: ocr
foveate.caption.targets.rewriters foveate.caption.targets.rewriting: llm rules
foveate.caption.targets.sources foveate.caption.targets.material: texts
foveate.caption.targets.sources foveate_labs.captions.sources: scenes singles
foveate.caption.vesl foveate.caption.lexicon: lexicon
foveate.caption.vesl foveate.caption.results: results
foveate.caption.vesl foveate.caption.summary: gallery
foveate.caption.vesl foveate.caption.vesl.embedding_detectors: similarity
foveate.caption.vesl foveate.caption.vesl.run: work
foveate.caption.vesl.detectors foveate.caption.vesl.detection: annotations
foveate.caption.vesl.detectors foveate.caption.vesl.embedding_detectors: cloc nanodet
foveate.caption.vesl.detectors foveate.caption.vesl.query_detectors: mllm owlv2
foveate.caption.vesl.taggers foveate.caption.vesl.tagging: ngrams nltk rules spacy
foveate.chat foveate.chat.client: connections endpoints replies
foveate.cli foveate.cli.options: groups tables
foveate.core foveate.core.devices: allocator precision
foveate.core foveate.core.plugins: packages
foveate.federated foveate.federated.points: columns
foveate.federated foveate.federated.rounds: clients
foveate.federated.clustering foveate.federated.attacks: attacks
foveate.federated.clustering foveate.federated.clustering.grouping: pool radius_search
foveate.federated.clustering foveate.federated.clustering.lloyd: starts
foveate.federated.clustering foveate.federated.clustering.methods: consensus
foveate.federated.clustering foveate.federated.clustering.run: account
foveate.federated.deep foveate.federated.deep.job: folder
foveate.federated.deep foveate.federated.deep.options: message_kinds
foveate.federated.deep foveate.federated.deep.run: quality
foveate.federated.embedding foveate.federated.attacks: attacks
foveate.federated.embedding foveate.federated.embedding.networks: folder
foveate.federated.embedding foveate.federated.embedding.options: message_kinds
foveate.federated.embedding foveate.federated.embedding.quality: account
foveate.federated.embedding foveate.federated.embedding.training: graph objective
foveate.federated.flower foveate.federated.flower.app: jobs
foveate.federated.flower foveate.federated.run_options: options
foveate.language foveate.language.chat: chat_frame
foveate.language foveate.language.gguf: gguf_writer
foveate.language foveate.language.llama_forward: prefixes
foveate.language foveate.language.open: smollm2
foveate.language foveate.language.settings: lora_settings sparse_settings
foveate.language foveate.language.tokenizer: pieces
foveate.metrics foveate.metrics.agreement: comparison
foveate.metrics foveate.metrics.answers: mmbase
foveate.metrics foveate.metrics.confidence: separation
foveate.metrics foveate.metrics.embedding: steadiness
foveate.metrics foveate.metrics.retrieval: link_ranks
foveate.mllm.checkpoints foveate.mllm.checkpoints.readers: ferret llava parts
foveate.mllm.exporting foveate.mllm.exporting.hugging_face: idefics3 llava llava_next peft
foveate.mllm foveate.mllm.data: image_sets preparation
foveate.mllm foveate.mllm.samples: loading
foveate.mllm foveate.mllm.settings: preview_settings suite_settings
foveate.mllm.suites foveate.mllm.suites.ferret: ferret_bench ferret_ui
foveate.mllm.suites foveate.mllm.suites.referring: flickr lvis_refer refcoco self_check
foveate.mllm.suites foveate.mllm.suites.scenes: conversations
foveate.mllm.suites foveate.mllm.suites.short_answers: ai2d chartqa docvqa infovqa pope scienceqa textvqa vqa
foveate.mllm foveate.mllm.pricing: part_costs
foveate.multimodal foveate.multimodal.answers: askable draw
foveate.multimodal foveate.multimodal.ask: chat
foveate.multimodal foveate.multimodal.questions: request_forms
foveate.multimodal foveate.multimodal.settings: ask_settings
foveate.pretrain foveate.pretrain.dataset: texts
foveate.pretrain foveate.pretrain.export: export_checks
foveate.pretrain foveate.pretrain.onnx_parts: onnx_graphs onnx_text
foveate.pretrain foveate.pretrain.results: metrics_table
foveate.pretrain.losses foveate.pretrain.losses: blocks sigmoid softmax total
foveate.records foveate.records.box_text: box_phrases
foveate.records foveate.records.captions: alt_texts caption_removal caption_verdicts current_captions
foveate.records foveate.records.importers.formats: worlds
foveate.records foveate.records.purge: packing
foveate.records foveate.records.rows: dataset_rows
foveate.records foveate.records.shapes: masks
foveate.records foveate.records.source_files: file_stamps reference
foveate.records foveate.video.questions: clip_search video_questions
foveate.records.builtin foveate.records.builtin.families: phrases tables
foveate.records.exporters foveate.records.exporters.coco: coco_ids
foveate.records.exporters foveate.survey.exporters.image_tables: observations_csv wildlife_insights
foveate.records.importers foveate.records.importers.coco: coco_file lvis
foveate.records.importers foveate.records.importers.conversations: chat ferret llava qwen_vl
foveate.records.importers foveate.records.importers.files: json_files
foveate.records.importers foveate.records.importers.folder: folder_files
foveate.records.importers foveate.records.importers.formats: settings
foveate.records.importers foveate.records.importers.grounded: flickr_entities grit refcoco
foveate.records.importers foveate.records.importers.sidecar: regions yolo
foveate.records.importers foveate.records.importers.table: table_files
foveate.records.importers foveate.survey.importers.coco_camera_traps: wilds
foveate.records.importers foveate.survey.importers.result_files: megadetector results_parser speciesnet
foveate.report foveate.report.charts: forest scatter tradeoff
foveate.report foveate.report.pages.captions: captions
foveate.report foveate.report.pages.species: species
foveate.report foveate.report.parts: examples simple
foveate.search foveate.search.calibration: floor
foveate.search foveate.search.index_folder: merge
foveate.search foveate.search.nearest: faiss_backend
foveate.serve foveate.serve.adapters.multimodal: clips dialogs
foveate.serve foveate.serve.adapters: opening
foveate.serve foveate.serve.answering: metrics
foveate.serve foveate.serve.bodies: parsing
foveate.serve foveate.serve.media: mp4_index
foveate.serve foveate.serve.run: log
foveate.survey foveate.survey.camtrap_schema: camtrap_checks
foveate.survey foveate.survey.deployments: coordinates deployment_table
foveate.survey foveate.survey.detections: decisions
foveate.survey foveate.survey.hours: clocks events
foveate.survey foveate.survey.store: observations
foveate.survey.exporters foveate.survey.exporters.image_tables: observations_csv wildlife_insights
foveate.survey.importers foveate.survey.importers.coco_camera_traps: wilds
foveate.survey.importers foveate.survey.importers.result_files: megadetector results_parser speciesnet
foveate.species foveate.species.links: baselines fold numeric
foveate.species foveate.species.passes: task
foveate.species foveate.species.sources: feature_files
foveate.species foveate.species.stages.pooling: smoothing
foveate.species foveate.species.taxonomy: classes matching
foveate.species.scores foveate.species.score: complex conve distmult
foveate.species.stages foveate.species.stages.prior: temperature
foveate.species.stages foveate.species.stages.rollup: threshold
foveate.training foveate.training.loop: stopping
foveate.training foveate.training.optimizer: schedule
foveate.training foveate.training.price: hardware
foveate.video foveate.video.evaluate: answer_rows
foveate.video foveate.video.score_table: judging scores
foveate.video foveate.video.strategies: grammar
foveate.video foveate.video.viewing: answers
foveate.video foveate.video.watching: clip_model slow_frames
foveate.vision foveate.vision.feature_cache: image_vectors parallel_map
foveate.vision foveate.vision.layers: sinusoid
foveate.vision foveate.vision.lite0: lite0_network
foveate.vision foveate.vision.minilm: bert
foveate.vision foveate.vision.regions.roi: roi
foveate.vision.hf foveate.vision.hf.clip: export
foveate.vision.hf foveate.vision.hf.towers: loading
foveate.vision.localizer foveate.vision.localizer.folder: card
foveate.vision.localizer foveate.vision.localizer.inference: candidates
foveate.vision.open_clip foveate.vision.open_clip.export: to_transformers
foveate.vision.video foveate.vision.video.sampling: choosing
"""


def _read_merged() -> dict[str, str]:
    """Map the old dotted name of each merged module to the module that has its names."""
    merged = {}
    # A long row continues on an indented line.
    for row in _MERGED.replace("\n    ", " ").splitlines():
        head, _, names = row.partition(": ")
        package, module = head.split()
        merged |= {f"{package}.{name}": module for name in names.split()}
    return merged


# Longest match first: `foveate.studies.tour_ask` is not `foveate_labs.studies.tour_ask`.
_MOVED: Mapping[str, str] = {
    **_read_merged(),
    "foveate.adapt.calibration": "foveate.calibrate",
    "foveate.adapt.calibration.logit_files": "foveate.training.logit_files",
    "foveate.adapt.calibration.logit_tables": "foveate.training.logit_tables",
    "foveate.adapt.checkpoints": "foveate.vision.classifiers",
    "foveate.adapt.classifier": "foveate.vision.classifier",
    # Packages that are gone: their modules are looked up in the package above, by the rows of the old names.
    "foveate.caption.assertions": "foveate.caption",
    "foveate.caption.executors": "foveate.caption",
    "foveate.caption.targets.rewriters": "foveate.caption.targets",
    "foveate.caption.targets.sources": "foveate.caption.targets",
    "foveate.caption.vesl.detectors": "foveate.caption.vesl",
    "foveate.caption.vesl.taggers": "foveate.caption.vesl",
    "foveate.caption.assertions.claims": "foveate_labs.captions.ground_truths.scenes",
    "foveate.caption.assertions.scene_judge": "foveate_labs.captions.ground_truths.scenes",
    "foveate.caption.assertions.scene_truth": "foveate_labs.captions.scene_truth",
    "foveate.caption.backends.scene_oracle": "foveate_labs.captions.backends.scene_oracle",
    "foveate.caption.scene_captions": "foveate_labs.captions.scene_captions",
    "foveate.caption.scene_claims": "foveate_labs.captions.scene_captions",
    "foveate.mllm.video": "foveate.video",
    "foveate.pretrain.api": "foveate.search.api",
    "foveate.pretrain.locate": "foveate.search.locate",
    "foveate.pretrain.searching": "foveate.search",
    "foveate.records.asked_images": "foveate_labs.worlds.asked_images",
    **{
        f"foveate.records.builtin.{name}": "foveate_labs.worlds.builtin"
        for name in ("concepts", "cutouts", "glyphs", "holdout", "single_objects")
    },
    "foveate.records.documents": "foveate_labs.worlds.documents",
    **{
        f"foveate.records.exporters.{name}": f"foveate.survey.exporters.{name}"
        for name in ("camtrap_dp", "megadetector", "survey_rows")
    },
    **{
        f"foveate.records.importers.{name}": f"foveate.survey.importers.{name}"
        for name in (
            "camtrap_dp",
            "camtrap_package",
            "cards",
            "coco_camera_traps",
            "corrections",
            "results",
        )
    },
    "foveate.records.importers.encodings": "foveate.core.encodings",
    "foveate.records.lexicon": "foveate_labs.worlds.questions",
    "foveate.records.questions": "foveate_labs.worlds.questions",
    "foveate.records.scenes": "foveate_labs.worlds.scenes",
    "foveate.records.screens": "foveate_labs.worlds.screens",
    "foveate.records.sheets": "foveate_labs.worlds.sheets",
    "foveate.records.survey": "foveate.survey",
    "foveate.records.traps": "foveate_labs.worlds.traps",
    "foveate.records.video_sets": "foveate.video.sets",
    "foveate.report.asked": "foveate_labs.tour.sections",
    "foveate.report.federated": "foveate_labs.tour.sections",
    "foveate.studies": "foveate_labs.studies",
    "foveate.studies.tour": "foveate_labs.tour.run",
    **{
        f"foveate.studies.tour_{name}": f"foveate_labs.tour.{name}"
        for name in ("adaptation", "ask", "calibration", "captions", "federated", "species", "video")
    },
}


# Packages that have become one module: only with a path, of no folder, are their old modules asked for.
_FORMER_PACKAGES = frozenset({"foveate.pretrain.losses"})
_WARNED: set[str] = set()


class _Alias:
    """Loads the module that has taken the place of another."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        # One line for a package: its modules are imported behind it.
        if spec.parent not in _WARNED:
            warnings.warn(f"{spec.name} is now {self._name}; the old name goes with 0.3", FutureWarning, stacklevel=2)
        _WARNED.add(spec.name)
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has given the module the specification of its old name.
        module.__spec__ = self._spec


class OldNames:
    """A finder of modules by their old names; before the others, which would load a moved module a second time."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return what loads the module that `name` meant; None where it means itself."""
        if not name.startswith("foveate."):
            return None
        if name in _FORMER_PACKAGES and (spec := PathFinder.find_spec(name, path, target)) is not None:
            spec.submodule_search_locations = []
            return spec
        head, rest = name, ""
        while head not in _MOVED:
            head, _, last = head.rpartition(".")
            if not head:
                return None
            rest = f".{last}{rest}"
        # A package is its own folder: its modules are asked for one by one, by their old names.
        return ModuleSpec(name, _Alias(_MOVED[head] + rest), is_package=False)  # type: ignore[arg-type]


def install() -> None:
    """Let old names be imported in this process."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, OldNames())
