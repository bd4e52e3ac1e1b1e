"""`foveate mllm export`: write a model folder as one that transformers, llama.cpp or PEFT opens.

What the other program does not compute is refused by its field. A class of transformers is loaded again and compared
with the model: pixels, token ids, logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.export_folder import check_empty_folder, default_folder, staged_folder
from foveate.core.files import write_bytes_atomically, write_text_atomically
from foveate.core.hub import quiet
from foveate.core.model_folder import CARD, WEIGHTS, read_tensors
from foveate.core.plugins import load_row
from foveate.language.lora import merge_lora
from foveate.language.packing import pack_texts
from foveate.language.sparse import SparseMlp
from foveate.language.vocabulary import END, PAD
from foveate.multimodal.ask import Mllm
from foveate.multimodal.folder import LoadedModel
from foveate.multimodal.model import MultimodalModel
from foveate.multimodal.opening import SHIPPED, open_mllm
from foveate.multimodal.questions import ask_turns
from foveate.multimodal.settings import SourceSettings
from foveate.multimodal.views import Visual
from foveate.records.conversations import IMAGE, Conversation
from foveate.records.geometry import View
from foveate.vision.hidden_layer import HiddenLayerEncoder
from foveate.vision.open_clip.export import clip_image_processor
from foveate.vision.preprocess import place_image, render_image

DECODERS = ("llama", "qwen2")
_PROBE = "What is in the image?"
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ExportJob:
    """The model, and the empty folder to write."""

    loaded: LoadedModel
    folder: Path


@dataclass(frozen=True)
class ExportReport:
    """Largest absolute differences to the model's outputs, how to load the export, and notes for the user."""

    loading: str
    differences: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def export_mllm(source: str, *, to: str, out: Path | None = None) -> tuple[Path, dict[str, Any], list[str]]:
    """Export a model folder; return the new folder, the result, and lines for the command line.

    Args:
        source: a model folder of `foveate mllm train`.
        to: llava, llava-next, idefics3, llama-cpp or peft.
        out: a folder that does not exist or is empty; SOURCE-TARGET by default.

    Raises:
        UserError: the model has a part that the target does not compute, or the folder is not empty.
    """
    export: Callable[[ExportJob], ExportReport] = load_row("foveate.mllm.exporting", to, "TARGETS", label="target")
    folder = out or default_folder(Path(source), to)
    check_empty_folder(folder)
    model = open_mllm(source, device="cpu")
    if not isinstance(model, Mllm):
        raise UserError(f"{source}: it is a model of transformers already; expected one of foveate mllm train")
    with staged_folder(folder) as stage:
        report = export(ExportJob(model.loaded, stage))
        card = Path(source) / CARD
        origin = card.read_text(encoding="utf-8") if source not in SHIPPED and card.is_file() else ""
        write_text_atomically(stage / CARD, _write_card(report, origin))
    files = sorted(path.name for path in folder.iterdir())
    result = {"kind": "mllm-export", "source": source, "to": to, "files": files}
    result |= {"differences": report.differences, "notes": report.notes}
    lines = [f"largest difference, {name}: {value:.3g}" for name, value in report.differences.items()]
    return folder, result, [*lines, *report.notes]


def check_parts(
    model: MultimodalModel, *, target: str, towers: Sequence[str], connector: str, geometries: Sequence[str]
) -> Any:
    """Check that a class of transformers computes what the model does; return the network of the tower.

    Args:
        target: the class, for errors.
        towers, connector: kinds that it has.
        geometries: of preprocessing that its processor has.

    Raises:
        UserError: naming the first field that it has no counterpart for.
    """
    settings, tower = model.settings, model.tower

    def require(name: str, value: object, expected: Sequence[object]) -> None:
        if value not in expected:
            listed = " or ".join(str(choice).lower() for choice in expected)
            raise UserError(f"{name}: {target} has no counterpart for it (got {value}); expected {listed}")

    require("connector.kind", model.settings.connector["kind"], [connector])
    require("tower.kind", settings.tower["kind"], towers)
    require("tiles_tower", settings.tiles_tower, [None])
    require("regions", settings.regions, ["text"])
    # The classes of transformers feed only visual tokens into the decoder, and return only logits.
    require("phrase_maps", settings.phrase_maps, [False])
    require("box_head", settings.box_head, [False])
    if settings.assembly is not None:
        raise UserError(f"assembly: {target} joins tiles in another way; expected one view an image, without assembly")
    if isinstance(settings.language, SourceSettings):
        # Its tokenizer may have no token <image>, and its template is not that of small vocabularies.
        raise UserError(
            f"language.source: {target} is written with a vocabulary of the collection alone (got "
            f"{settings.language.source}); expected language.model_type, or --to peft for its LoRA"
        )
    require("language.model_type", model.language_model.config.model_type, DECODERS)
    if any(isinstance(layer, SparseMlp) for layer in model.language_model.modules()):
        raise UserError(f"language: {target} has no counterpart for its sparse experts; expected dense layers")
    require("preprocess.geometry", tower.preprocess.geometry, geometries)
    encoder: Any = tower.encoder if isinstance(tower, HiddenLayerEncoder) else tower
    trained = encoder.trunk.config.image_size
    if (tower.preprocess.height, tower.preprocess.width) != (trained, trained):
        raise UserError(
            f"tower.image_size: {target} does not interpolate positions (got {tower.preprocess.size}); expected "
            f"{trained}, which they were trained for"
        )
    return encoder.trunk


def fold_prefix(model: MultimodalModel, weights: dict[str, Tensor], *, weight: str, bias: str | None) -> None:
    """Put what is done to visual tokens behind the connector into its last linear layer.

    Args:
        weights: of the connector; changed in place.
        weight, bias: names of the last layer's; None where it has no bias.

    Raises:
        UserError: vectors that differ from token to token or image to image, or a vector without a bias to take it.
    """
    # gain (W x + b) + v = (gain W) x + (gain b + v): what is exported needs no layer of its own for either.
    gain = model.visual_gain.detach()
    weights[weight] = weights[weight] * gain
    if bias is not None:
        weights[bias] = weights[bias] * gain
    if not model.settings.visual_positions:
        return
    for name, rows in (("view_position_TE", model.view_position_TE), ("image_index_KE", model.image_index_KE)):
        if bool((rows != rows[:1]).any()):
            raise UserError(
                f"{name}: its vectors differ, and a projector adds the same to all visual tokens; train with "
                "model.visual_positions=false"
            )
    vector_E = (model.view_position_TE[0] + model.image_index_KE[0]).detach()
    if bias is not None:
        weights[bias] = weights[bias] + vector_E
    elif bool(vector_E.any()):
        raise UserError("visual_positions: this connector has no bias to take their vector; train with false")


def decoder_weights(model: MultimodalModel, prefix: str) -> dict[str, Tensor]:
    """Return the weights of the language model, LoRA merged, under the names of a class that calls it `prefix`."""
    # In place, so that the outputs that an export is compared with come from the merged weights, too.
    merge_lora(model.language_model)
    body = {f"model.{prefix}.{name}": value for name, value in model.language_model.base_model.state_dict().items()}
    return {**body, "lm_head.weight": model.language_model.get_output_embeddings().weight}


def decoder_config(loaded: LoadedModel) -> dict[str, Any]:
    """Return the language model's config with the ids of its end mark and padding."""
    config = loaded.model.language_model.config.to_dict()
    # Small vocabularies have no begin mark; LlamaConfig's default for its id, 1, is their end mark.
    ids = {"eos_token_id": loaded.tokenizer.end, "pad_token_id": loaded.tokenizer.pad, "bos_token_id": None}
    # transformers builds a decoder by its model_type; vLLM looks the class up by this name.
    architectures = [type(loaded.model.language_model).__name__]
    return {**config, **ids, "architectures": architectures, "_name_or_path": ""}


def copy_tokenizer(loaded: LoadedModel, added: Sequence[str] = ()) -> Any:
    """Build transformers' tokenizer; special tokens in a prompt's text are read as such, as its template needs.

    Args:
        added: further special tokens, whose ids follow the last.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    special = list(loaded.tokenizer.special)
    backend = Tokenizer.from_str(loaded.tokenizer.backend.to_str())  # type: ignore[attr-defined]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[name for name in special if name not in (END, PAD)] + list(added),
        model_input_names=["input_ids", "attention_mask"],
        # Explicit: by default, older versions of transformers remove blanks before punctuation when decoding.
        clean_up_tokenization_spaces=False,
    )


def chat_marks(loaded: LoadedModel) -> tuple[str, str, str]:
    """Return Jinja literals: role -> text before a turn, role -> text behind it, and the blank in front of a text."""
    template = loaded.prompts.chat.template
    before, after = (
        f"{{{', '.join(f'{json.dumps(role)}: {json.dumps(texts[role])}' for role in _ROLES)}}}"
        for texts in (template.headers, template.ends)
    )
    return before, after, "' '" if template.blank else "''"


def chat_template(loaded: LoadedModel) -> str:
    """Return a Jinja template that writes conversations as they were trained.

    Images that begin the first question precede all turns, others stay where they are (`prompts.images_lead`).
    """
    before, after, blank = chat_marks(loaded)
    return (
        f"{{%- set before = {before} -%}}{{%- set after = {after} -%}}"
        # Jinja forgets what is set inside a loop, unless it is an attribute of a namespace.
        "{%- set seen = namespace(text=false, lead=true, content='') -%}"
        "{%- for message in messages if message.role != 'system' -%}"
        "{%- if message.content is string -%}{%- set seen.text = true -%}{%- else -%}"
        "{%- for part in message.content -%}{%- if part.type != 'image' -%}{%- set seen.text = true -%}"
        "{%- elif seen.text -%}{%- set seen.lead = false -%}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endfor -%}"
        "{%- for message in messages if seen.lead and message.content is not string -%}"
        "{%- for part in message.content if part.type == 'image' -%}<image>{%- endfor -%}{%- endfor -%}"
        "{%- for message in messages -%}"
        "{%- set seen.content = message.content if message.content is string else '' -%}"
        "{%- for part in message.content if message.content is not string -%}"
        "{%- if part.type == 'text' -%}{%- set seen.content = seen.content ~ ' ' ~ part.text -%}"
        "{%- elif not seen.lead -%}"
        "{%- set seen.content = (seen.content.split() | join(' ')) ~ '<image>' -%}{%- endif -%}{%- endfor -%}"
        # Follow `PromptWriter`: white space is reduced throughout a question, but only stripped around an answer.
        "{%- set content = seen.content.split() | join(' ') if message.role == 'user' else seen.content.strip() -%}"
        f"{{%- set start = {blank} if content and not content.startswith('<image>') else '' -%}}"
        "{{ before[message.role] ~ start ~ content ~ after[message.role] }}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{ before['assistant'] }}{%- endif -%}"
    )


def image_processor(loaded: LoadedModel, processor: Any, sizes: dict[str, Any]) -> Any:
    """Build an image processor of a class with the model's normalization and resizing.

    Raises:
        UserError: for resizing that transformers' classes do otherwise.
    """
    clip = clip_image_processor(loaded.model.tower.preprocess)
    return processor(resample=clip.resample, image_mean=clip.image_mean, image_std=clip.image_std, **sizes)


def _rename_tower(path: Path) -> None:
    """Give a tower's weights the names that released checkpoints have.

    transformers 5 flattened CLIP and SigLIP and omits `vision_model.`; it reads both forms, whereas earlier releases
    and vLLM read only the old names.
    """
    from safetensors.torch import save

    def rename(name: str) -> str:
        head, tower, tail = name.partition("vision_tower.")
        return name if not tower or tail.startswith("vision_model.") else f"{head}{tower}vision_model.{tail}"

    tensors = {rename(name): value for name, value in read_tensors(path).items()}
    # transformers refuses files whose metadata do not name a format.
    write_bytes_atomically(path, save(tensors, metadata={"format": "pt"}))


def silent_ids(loaded: LoadedModel) -> list[int]:
    """List the tokens that no answer has: as in `foveate.multimodal.ask`, special ones but its end."""
    tokenizer, region = loaded.tokenizer, loaded.prompts.region_id
    return sorted(id for id in tokenizer.special.values() if id not in (tokenizer.end, region))


def write_export(job: ExportJob, model: Any, processor: Any, suppressed: Sequence[int] = ()) -> tuple[Any, Any]:
    """Write model and processor, and open them again.

    Args:
        suppressed: ids beside the model's own special tokens that no answer may have.
    """
    from transformers import AutoProcessor

    tokenizer = job.loaded.tokenizer
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id = tokenizer.end, tokenizer.pad
    generation.suppress_tokens = sorted([*silent_ids(job.loaded), *suppressed])
    with quiet():
        model.save_pretrained(str(job.folder))
        _rename_tower(job.folder / WEIGHTS)
        processor.save_pretrained(str(job.folder))
        # The file that releases before 5, and llama.cpp's converter, read.
        processor.image_processor.save_pretrained(str(job.folder))
        theirs = type(model).from_pretrained(str(job.folder)).eval()
        return theirs, AutoProcessor.from_pretrained(str(job.folder))


@torch.no_grad()
def measure_differences(job: ExportJob, theirs: Any, pixels: Callable[[Any], dict[str, Tensor]]) -> dict[str, float]:
    """Compare pixels and logits of a question about an image of noise with those of the class.

    Args:
        theirs: the loaded class.
        pixels: prepares an image as its processor does.
    """
    from PIL import Image

    loaded, model = job.loaded, job.loaded.model
    preprocess = model.tower.preprocess
    size = (preprocess.height, preprocess.width, 3)
    # Noise uses all pixel values; a photograph would hide differences in dark or saturated areas.
    noise = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.numpy())
    placement = place_image(preprocess, (preprocess.width, preprocess.height), View())
    ours_3HW = render_image(preprocess, image, placement)
    inputs = pixels(image)
    visual = model.see(ours_3HW[None])
    turns = ask_turns(_PROBE, (), images=1)
    tokens = loaded.prompts.write_question(Conversation("probe", ("image",), tuple(turns)), [placement]).tokens
    count = visual.tokens_VTE.shape[1]
    ids = [loaded.tokenizer.special[IMAGE]] * count + tokens.ids
    ids_1L = torch.tensor([ids])
    # Compare only logits of the text: the model computes none of visual tokens.
    logits = theirs(input_ids=ids_1L, attention_mask=torch.ones_like(ids_1L), **inputs).logits[:, count:]
    texts = pack_texts([[tokens]], pad=loaded.tokenizer.pad)
    expected = model.logits(model.hidden_states(visual, torch.zeros(1, 1, dtype=torch.long), texts))
    # Idefics3's processor returns [samples, images, 3, H, W], LLaVA's [images, 3, H, W].
    flat = inputs["pixel_values"].flatten(0, -4)
    return {
        "pixels": _largest(flat[0], preprocess.normalize(ours_3HW)),
        # The class has rows for added special tokens behind the model's vocabulary.
        "logits": _largest(logits[..., : expected.shape[-1]], expected),
    }


@torch.no_grad()
def measure_views(model: MultimodalModel, pixels_V3HW: Tensor, tokens_VTE: Tensor) -> float:
    """Return the largest difference of the class's visual tokens of views to the model's."""
    visual: Visual = model.see(pixels_V3HW)
    gained = model.prefix(visual, torch.arange(len(pixels_V3HW))[:, None])
    return _largest(tokens_VTE, gained)


def _largest(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours.double() - theirs.double()).abs().max())


def _write_card(report: ExportReport, origin: str) -> str:
    rows = "".join(f"| {name} | {value:.3g} |\n" for name, value in report.differences.items())
    notes = "".join(f"{note}\n\n" for note in report.notes)
    table = f"| compared while exporting | largest absolute difference |\n|---|---|\n{rows}\n" if rows else ""
    # Without the front matter of the card of the model, whose library is another.
    body = origin.split("---\n", 2)[-1].strip()
    return f"---\npipeline_tag: image-text-to-text\n---\n{body}\n\n## Export\n\n{report.loading}\n\n{table}{notes}"
