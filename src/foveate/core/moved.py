"""Old import paths, for one release: each gives the module that has taken its place, with a line of warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# Modules that have become a part of another: their package, the module that has their names now, and their old names.
# A text and no mapping: every start of the command line would compile that anew where bytecode is not kept.
_MERGED = """\
foveate.adapt foveate.adapt.adapter: parameter_swap
foveate.adapt foveate.adapt.methods.bottlenecks: bottleneck
foveate.adapt foveate.adapt.methods.fact: fact
foveate.adapt foveate.adapt.methods.vpt: prompts
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
foveate.chat foveate.chat.client: connections endpoints replies
foveate.cli foveate.cli.options: groups tables
foveate.core foveate.core.devices: allocator precision
foveate.core foveate.core.plugins: packages
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
foveate.mllm foveate.mllm.pricing: part_costs
foveate.multimodal foveate.multimodal.answers: askable draw
foveate.multimodal foveate.multimodal.ask: chat
foveate.multimodal foveate.multimodal.questions: request_forms
foveate.multimodal foveate.multimodal.settings: ask_settings
foveate.report foveate.report.charts: forest scatter tradeoff
foveate.report foveate.report.pages.captions: captions
foveate.report foveate.report.pages.species: species
foveate.report foveate.report.parts: examples simple
foveate.search foveate.search.calibration: floor
foveate.search foveate.search.index_folder: merge
foveate.search foveate.search.nearest: faiss_backend
foveate.serve foveate.serve.adapters: opening
foveate.serve foveate.serve.adapters.multimodal: clips dialogs
foveate.serve foveate.serve.answering: metrics
foveate.serve foveate.serve.bodies: parsing
foveate.serve foveate.serve.media: mp4_index
foveate.serve foveate.serve.run: log
foveate.training foveate.training.price: hardware
foveate.video foveate.video.evaluate: answer_rows
foveate.video foveate.video.score_table: judging scores
foveate.video foveate.video.strategies: grammar
foveate.video foveate.video.viewing: answers
foveate.video foveate.video.watch: clip_model slow_frames
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


# Longest match first: `foveate.studies.tour_size` is not `foveate_labs.studies.tour_size`.
_MOVED: Mapping[str, str] = {
    **_read_merged(),
    "foveate.adapt.calibration": "foveate.calibrate",
    "foveate.adapt.calibration.logit_files": "foveate.training.logit_files",
    "foveate.adapt.calibration.logit_tables": "foveate.training.logit_tables",
    "foveate.adapt.checkpoints": "foveate.vision.classifiers",
    "foveate.adapt.classifier": "foveate.vision.classifier",
    "foveate.caption.assertions.claims": "foveate_labs.captions.ground_truths.scenes",
    "foveate.caption.assertions.scene_judge": "foveate_labs.captions.ground_truths.scenes",
    "foveate.caption.assertions.scene_truth": "foveate_labs.captions.scene_truth",
    "foveate.caption.backends.scene_oracle": "foveate_labs.captions.backends.scene_oracle",
    "foveate.caption.scene_captions": "foveate_labs.captions.scene_captions",
    "foveate.caption.scene_claims": "foveate_labs.captions.scene_captions",
    "foveate.caption.targets.sources.scenes": "foveate_labs.captions.sources.scenes",
    "foveate.caption.targets.sources.singles": "foveate_labs.captions.sources.singles",
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
        for name in ("camtrap_dp", "megadetector", "observations_csv", "survey_rows", "wildlife_insights")
    },
    **{
        f"foveate.records.importers.{name}": f"foveate.survey.importers.{name}"
        for name in (
            "camtrap_dp",
            "camtrap_package",
            "cards",
            "coco_camera_traps",
            "corrections",
            "megadetector",
            "results",
            "results_parser",
            "speciesnet",
            "wilds",
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
    "foveate.report.figure": "foveate_labs.tour.figure",
    "foveate.studies": "foveate_labs.studies",
    "foveate.studies.tour": "foveate_labs.tour.run",
    **{
        f"foveate.studies.tour_{name}": f"foveate_labs.tour.{name}"
        for name in ("adaptation", "ask", "calibration", "captions", "federated", "size", "species", "video")
    },
}


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
