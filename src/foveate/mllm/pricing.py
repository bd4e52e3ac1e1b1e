"""Parts of `foveate mllm train RECIPE --dry-run`: tower and connector of a view, language model of a sequence.

One and two layers of the language model are counted; the others are equal. Experts are priced without their module,
from the layer's MLP.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from foveate.core.errors import UserError
from foveate.core.model_folder import shapes_alone
from foveate.core.recipes import validate
from foveate.language.packing import SHORT
from foveate.language.settings import SparseOptions
from foveate.mllm.plan import MemoryEstimate
from foveate.mllm.recipe import MllmPriceSettings, MllmRecipe, StageSettings
from foveate.mllm.stages import build_stage_model
from foveate.mllm.train import prepare_training
from foveate.multimodal.assemble import AssemblyOptions
from foveate.multimodal.model import MultimodalModel
from foveate.records.collection import Collection
from foveate.training.costs import (
    PartCost,
    count_cache_values,
    count_decoder_activations,
    count_layers,
    count_parameters,
    count_part,
    shorten_config,
)
from foveate.training.distributed import start
from foveate.training.price import Price, PricedStage, Stage, memory_per_device, price, resolve_training
from foveate.training.settings import TrainingSettings
from foveate.training.timing import MAX_STEPS
from foveate.vision.connectors import Connector
from foveate.vision.encoder import ImageEncoder
from foveate.vision.feature_cache import CACHE

PARTS = ("tower", "connector", "regions", "language")
# Assumed size of a dry run's images: photographs of most data sets are about that large.
_MEAN_IMAGE = (480, 640)


def price_recipe(recipe: MllmRecipe, **assumed: Any) -> Price:
    """Estimate the training of a recipe, all stages, with its tower and connector as they are.

    A stage without texts does not run the language model. A region encoder counts with its parameters and their state,
    not with its FLOPs: a sample has few regions. Heads, positions and indicators, some thousands of
    parameters and tens of tokens, are left out, and the table of tokens is counted at all positions. The tower's
    features are computed in every step: frozen ones that are cached cost less.

    Args:
        assumed: fields of `MllmPriceSettings`.

    Raises:
        UserError: unknown hardware, or a batch that devices do not divide.
    """
    settings = validate(MllmPriceSettings, assumed, where="price of a run")
    # Counting takes seconds, and stages differ in the size of views and the length of sequences at most.
    towers: dict[tuple[tuple[int, ...], str], dict[str, PartCost]] = {}
    languages: dict[tuple[int, str], PartCost] = {}
    stages, parts = [], dict[str, PartCost]()
    for stage in recipe.stages:
        training = resolve_training(stage.training, settings, name=stage.name)
        precision = training.precision
        # Build without memory: the largest recipes are priced on a laptop.
        with shapes_alone():
            model = build_stage_model(recipe, stage)
        tower = (model.tower.feature_shape, precision)
        if tower not in towers:
            towers[tower] = count_vision(model.tower, model.connector, precision)
        parts = dict(towers[tower])
        if model.region_reader is not None:
            parts["regions"] = PartCost(*[count_parameters(model.region_reader)] * 3)
        conversations = stage.max_conversations if stage.texts else 0
        views, language = len(model.plan(*[_MEAN_IMAGE] * settings.images).views), model.language_model.config
        image_tokens = views * model.connector.num_tokens
        length = round(image_tokens + conversations * settings.text_tokens)
        if (length, precision) not in languages:
            languages[length, precision] = count_language(language, length, recipe.model.experts, precision)
        parts["language"] = languages[length, precision]
        counted = count_stage(
            parts,
            training,
            views=views,
            trained=_list_trained(stage, model),
            runs_language=stage.texts,
            # Logits are float32, only of the answers' tokens, with their gradient.
            logits=8.0 * language.vocab_size * conversations * settings.answer_tokens,
        )
        counted = replace(counted, trained=_count_trained(_list_trained(stage, model), model))
        limit = getattr(language, "max_position_embeddings", None)
        too_long = limit is not None and length > limit
        facts = {"image_tokens": image_tokens, "sequence": length, "too_long": too_long}
        facts["tokens"] = length * training.batch_size * training.steps
        warnings = ["the mean sample is longer than the language model's positions"] if too_long else []
        stages.append(replace(counted, name=stage.name, facts=facts, warnings=warnings))
    # The numbers are those of the model that comes out.
    active = sum(part.active for part in parts.values())
    return price(stages, settings).model_copy(
        update={"facts": {"parameters_active": active, "view_tokens": model.connector.num_tokens}}
    )


def price_training(recipe: MllmRecipe, collection: Collection, *, device: str | None = None) -> Price:
    """Price a training on a collection: as `price_recipe`, but the first steps of each stage are timed here.

    Nothing is written beside the system's temporary folder. FLOPs and memory are those of the assumed samples.

    Raises:
        UserError: the recipe does not fit the collection.
    """
    priced, stages, encoded = price_recipe(recipe), list[PricedStage](), dict[str, tuple[float, int, int]]()
    with tempfile.TemporaryDirectory() as scratch, start(device or "auto"):
        training = prepare_training(recipe, collection, Path(scratch) / "run")
        training.scratch = Path(scratch) / CACHE
        for stage, assumed in zip(recipe.stages, priced.stages, strict=True):
            samples = training.samples(stage, features=False)
            loader, started = training.loader(stage, samples), time.monotonic()
            draws = [loader.draws(step)[:, -2] for step in range(min(MAX_STEPS, stage.training.steps))]
            rows = {row for number in np.unique(np.concatenate(draws)).tolist() for row in samples.sets[number].rows}
            samples.features = training.cache_features(training.sets, rows=np.array(sorted(rows), dtype=np.int64))
            store = samples.features.store
            seconds, computed, _ = encoded.get(store.folder.name, (0.0, 0, 0))
            if store.computed:
                seconds, computed = seconds + time.monotonic() - started, computed + store.computed
            # Stages of one tower share its features.
            encoded[store.folder.name] = (seconds, computed, len(store.list_missing()))
            times = training.time_stage(stage, samples)
            changes = {
                "samples": round(stage.training.steps * loader.mean_batch_size()),
                "seconds_per_step": times.step,
                "samples_per_second": loader.mean_batch_size() / times.step,
                "seconds": times.total(stage.training),
            }
            stages.append(assumed.model_copy(update=changes))
    features, notes = _price_features(encoded)
    stages = [*features, *stages]
    note = "time: the first steps of each stage were taken on this machine; FLOPs and memory are of the assumed sample"
    return priced.model_copy(update={"stages": stages, "mfu": None, "notes": [*priced.notes, note, *notes]})


def _price_features(encoded: Mapping[str, tuple[float, int, int]]) -> tuple[list[PricedStage], list[str]]:
    """Price the frozen features that no cache has: for each tower seconds, views encoded in them, and views left."""
    views = sum(computed + missing for _, computed, missing in encoded.values())
    seconds = sum(spent * (1 + missing / computed) for spent, computed, missing in encoded.values() if computed)
    untimed = sum(missing for _, computed, missing in encoded.values() if not computed)
    # Where the cache has all views of the first steps, nothing was encoded that could be timed.
    notes = [f"features: the time of {untimed} views that the cache lacks is not known"] if untimed else []
    stage = PricedStage(name="features", trainings=0, seconds=seconds, facts={"views": views})
    return [stage] if views else [], notes


def _list_trained(stage: StageSettings, model: MultimodalModel) -> list[str]:
    frozen = all(not weight.requires_grad for weight in model.tower.parameters())
    rates = {
        "tower": 0 if frozen else stage.tower_factor,
        "connector": stage.connector_rate,
        "regions": model.region_reader is not None,
        "language": stage.language_rate if stage.texts else 0,
    }
    return [name for name in PARTS if rates[name]]


def _count_trained(trained: Sequence[str], model: MultimodalModel) -> int:
    """Count the parameters of the trained parts; of a language model from elsewhere, those that are tuned."""
    model.require_gradients()
    modules = {
        "tower": model.tower,
        "connector": model.connector,
        "regions": model.region_reader,
        "language": model.language_model,
    }
    parts = [module for name in trained if (module := modules[name]) is not None]
    return sum(weight.numel() for part in parts for weight in part.parameters() if weight.requires_grad)


def estimate_memory(
    recipe: MllmRecipe, options: AssemblyOptions, *, views: int, image_tokens: int, text_tokens: int, answer_tokens: int
) -> MemoryEstimate:
    """Estimate the memory of a training step of a recipe's last stage on one device, and of an answer, without values.

    Every sample of the batch is taken to be the planned one, with as many conversations as the stage takes. Left out
    are the activations of heads, phrase maps and regions, and what the process itself needs. Precisions are those in
    which the recipe may train: both where it says "auto". See `price_recipe` for a whole training.

    Args:
        options: how the images were planned. views: of them, `image_tokens` in all.
        text_tokens: of a conversation, `answer_tokens` of them in the answer.

    Raises:
        UserError: tower and connector have other views than the options, or the language model has no gated MLP.
    """
    stage = recipe.stages[-1]
    with shapes_alone():
        model = build_stage_model(
            recipe, stage.model_copy(update={"assembly": options}) if recipe.model.assembly else stage
        )
    language = model.language_model.config
    if not hasattr(language, "intermediate_size"):
        raise UserError(f"model.language: no memory is known of {language.model_type}; expected a decoder like llama")
    conversations = stage.max_conversations if stage.texts else 0
    length = image_tokens + conversations * text_tokens
    trained = _list_trained(stage, model)
    num_trained = _count_trained(trained, model)
    # As `language.packing.quick_backward` chooses, on this machine.
    keeps_weights = not torch.cuda.is_available() and length <= SHORT
    steps = {}
    sizes = {"fp32": 4, "bf16": 2}
    for precision in sizes if stage.training.precision == "auto" else (stage.training.precision,):
        size = sizes[precision]
        parts = count_vision(model.tower, model.connector, precision)
        if model.region_reader is not None:
            parts["regions"] = PartCost(*[count_parameters(model.region_reader)] * 3)
        saved = count_decoder_activations(language, length, product_bytes=size, keeps_weights=keeps_weights)
        if recipe.model.experts is not None:
            # In every second layer a token passes two experts in place of the MLP.
            wider = 2 * (language.intermediate_size // recipe.model.experts.width_divisor) - language.intermediate_size
            saved += length * (language.num_hidden_layers // 2) * 4 * size * wider
        layers = {"blocks": language.num_hidden_layers, "length": length, "width": language.hidden_size}
        parts["language"] = replace(PartCost(*[count_parameters(model.language_model)] * 3), saved=saved, **layers)
        heads = count_parameters(model) - sum(part.parameters for part in parts.values())
        parts["heads"] = PartCost(heads, heads, 0)
        counted = count_stage(
            parts,
            stage.training.model_copy(update={"precision": precision}),
            views=views,
            trained=trained,
            runs_language=stage.texts,
            logits=8.0 * language.vocab_size * conversations * answer_tokens,
        )
        counted = replace(counted, trained=num_trained + heads * stage.texts)
        steps[precision] = {name: value for name, value in memory_per_device(counted, 1).items() if value}
    values = (image_tokens + text_tokens) * count_cache_values(language)
    return MemoryEstimate(
        stage=stage.name,
        samples=-(-stage.training.batch_size // stage.training.accumulate),
        positions=length,
        step=steps,
        cache={"fp32": 4 * values, "bf16": 2 * values},
    )


def count_stage(
    parts: Mapping[str, PartCost],
    training: TrainingSettings,
    *,
    views: float,
    trained: Sequence[str] = ("tower", "connector", "language"),
    runs_language: bool = True,
    logits: float = 0.0,
) -> Stage:
    """Return a stage for `price`, from the costs of a view and of a sequence.

    A part that is not trained has no backward pass, unless a trained one lies before it, whose gradient passes through:
    half of a whole one, as no weights get gradients. Activations are saved from the first trained part on.

    Args:
        views: of a mean sample, overviews included.
        trained: parts that are trained; the others only go forward.
        runs_language: whether the language model runs at all.
        logits: bytes of a sample's logits.
    """
    runs = {"tower": views, "connector": views, "regions": 1.0, "language": float(runs_language)}
    forward, backward = {}, {}
    saved = {False: 0.0, True: 0.0}  # without recomputed blocks of the language model, and with them
    for name in (name for name in PARTS if name in parts):
        passes = any(PARTS.index(other) < PARTS.index(name) for other in trained)
        share = 1.0 if name in trained else 0.5 if passes else 0.0
        forward[name] = runs[name] * parts[name].forward
        backward[name] = runs[name] * share * parts[name].backward
        for recomputes in saved:
            checkpointed = recomputes and name == "language" and name in trained
            saved[recomputes] += runs[name] * parts[name].activations(checkpointed=checkpointed) * (share > 0)
    recomputes = training.activation_checkpointing
    repeated = forward["language"] if recomputes and "language" in trained and "language" in forward else 0.0
    option = "training.activation_checkpointing=true"
    return Stage(
        training=training,
        parameters={name: part.parameters for name, part in parts.items()},
        trained=sum(parts[name].parameters for name in trained),
        largest_unit=max(part.largest_unit for part in parts.values()),
        forward=forward,
        backward=backward,
        saved={"activations": saved[recomputes], "logits": logits},
        options={} if recomputes else {option: {"activations": saved[True], "logits": logits}},
        repeated=repeated,
    )


def count_vision(tower: ImageEncoder, connector: Connector, precision: str) -> dict[str, PartCost]:
    """Count a tower and its connector, of one view."""
    tokens = tower.grid[0] * tower.grid[1]
    return {
        "tower": count_part(
            copy.deepcopy(tower).eval(),
            lambda tower, batch: [tower(torch.empty(batch, *tower.feature_shape, dtype=tower.feature_dtype)).tokens],
            precision=precision,
        ),
        "connector": count_part(
            connector,
            lambda connector, batch: [connector(torch.empty(batch, tokens, connector.in_width))],
            precision=precision,
        ),
    }


def count_language(config: Any, length: int, experts: SparseOptions | None, precision: str) -> PartCost:
    """Count a language model on a sequence of `length` embeddings; with experts, as many as a token takes."""

    def build(layers: int) -> nn.Module:
        short = shorten_config(config, layers)
        # Fused, as in a training: eager attention would save its weights for the backward pass.
        short._attn_implementation = "sdpa"
        return AutoModelForCausalLM.from_config(short)

    def read(model: Any, batch: int) -> list[Tensor]:
        embeddings = torch.empty(batch, length, config.hidden_size)
        return [model(inputs_embeds=embeddings, use_cache=False).logits]

    part = count_layers(build, read, layers=config.num_hidden_layers, precision=precision, length=length)
    if experts is None:
        return part
    with torch.device("meta"):
        mlps = [module for name, module in build(1).named_modules() if name.endswith(".mlp")]
    if not mlps:
        raise UserError("experts: the language model's layers have no part 'mlp' to make experts of")
    # As `foveate.language.sparse`: experts in every second layer, two of them for each token.
    sparse, dense = config.num_hidden_layers // 2, count_parameters(mlps[0])
    expert, router = dense // experts.width_divisor, config.hidden_size * experts.num_experts
    passed, added = 2 * expert - dense + router, experts.num_experts * expert - dense + router
    # Add the weights that a token passes beyond the dense MLP, which is counted already: 2 FLOPs a weight, twice that
    # backward.
    extra = sparse * 2.0 * passed * length
    return replace(
        part,
        parameters=part.parameters + sparse * added,
        active=part.active + sparse * passed,
        largest_unit=part.largest_unit + added,
        forward=part.forward + extra,
        backward=part.backward + 2 * extra,
    )
