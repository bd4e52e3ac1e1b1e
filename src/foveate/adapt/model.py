"""The adapted model: a backbone that keeps its tensors, named adapters with a head each; merge, disable, switch.

```python
adapted = adapt(timm_vit, "lora", classes=10)       # prints what is trained
adapted(pixels)                                     # logits
with adapted.disable(): adapted(pixels)             # the output of the original model
adapted.merge(); adapted.unmerge()                  # exact; refuses where it is impossible
save_adapter(adapted, "folder"); load_adapter(another_vit, "folder")      # foveate.adapt.folder
```
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foveate.adapt.adapter import (
    Adapter,
    MethodSettings,
    NativeAdapter,
    ParameterCounts,
    ParameterSwap,
    count_parameters,
    format_summary,
)
from foveate.adapt.backbones import map_backbone
from foveate.adapt.heads import describe_head, head_width, new_head, num_classes
from foveate.adapt.registry import check_carried, choose_targets, get_method, parse_settings
from foveate.core import seeds
from foveate.core.errors import UserError, choose
from foveate.core.progress import say
from foveate.vision.registry import seeded

_MARK = "_foveate_adapted"
_NAME = re.compile(r"[A-Za-z_][\w-]*")


class AdaptedModel(nn.Module):
    """A backbone with adapters. Build it with `adapt`, or open a saved one with `load_adapter`.

    Attributes:
        model: the network as it came: same modules, same names of tensors.
        backbone: the map of the modules that methods change.
        adapters, heads: by name.
        first_heads: copies of heads that were trained before, as they were at the start.
        active: name of the adapter in use, "" while the model is detached.
        info: by adapter, what is saved with it (class names, preprocessing); JSON values.

    Example:
        >>> import timm
        >>> adapted = adapt(timm.create_model("vit_tiny_patch16_224", depth=1), "bitfit", classes=3)
        >>> adapted.active
        'default'
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, str] | None = None) -> None:
        super().__init__()
        if isinstance(model, AdaptedModel) or vars(model).get(_MARK, False):
            raise UserError("this model is adapted already: use its `add`, or `detach` it first")
        self.backbone = map_backbone(model, modules)
        self._digest: str | None = None
        # `detach` gives the network back with these: a user may have frozen parts of it.
        self._required_grad = {name: value.requires_grad for name, value in model.named_parameters()}
        model.requires_grad_(False)
        # The mark is on the network itself: a second AdaptedModel around it would register its hooks twice.
        vars(model)[_MARK] = True
        self.model = model
        self.adapters, self.heads, self.first_heads = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.merge_store: ParameterSwap | None = None
        self._trained_unmerged: list[nn.Parameter] = []
        self.active = ""
        self.disabled = False
        self.info: dict[str, dict[str, Any]] = {}
        self._attached = contextlib.ExitStack()

    @property
    def digest(self) -> str:
        """Hash of the backbone's values without what any adapter tuned; computed on first use."""
        if self._digest is None:
            with self._original():
                self._digest = self.backbone.weights_digest()
        return self._digest

    def add(
        self,
        config: MethodSettings | Mapping[str, Any] | str,
        *,
        classes: int | None = None,
        head: nn.Module | None = None,
        name: str = "default",
        seed: int = 0,
    ) -> Adapter[Any]:
        """Add an adapter with its own head, use it, and print what is trained.

        Args:
            config: settings of a method, a mapping with `method` and its options, or a method's name.
            classes: of a new head; without it the model's own classifier is copied.
            head: to start from (a copy is taken), such as `ZeroShotHead`.
            name: of the adapter.
            seed: of initial values.

        Raises:
            UserError: unknown method or option, one that does not fit the backbone, or the model is merged.
        """
        if not _NAME.fullmatch(name):
            raise UserError(f"adapter name '{name}': expected letters, digits, _ and -, a letter first")
        if name in self.adapters:
            raise UserError(f"adapter name '{name}' is in use; give another name")
        if self.is_merged:
            raise UserError("the model is merged: unmerge it before another adapter is added")
        settings = choose_targets(parse_settings(config), self.backbone)
        check_carried(settings, self.backbone)
        with self._original():
            value = next(iter(self.backbone.tower_parameters().values()))
            device, dtype = value.device, value.dtype
            # Drawn on the device itself: a ViT-g adapter built on the CPU first would need its memory twice.
            with seeded(seeds.integer("adapter", seed) % 2**63), torch.device(device):
                adapter = get_method(settings.method).build(settings, self.backbone)
                if getattr(settings, "init", "declared") == "osu_release":
                    if not any(isinstance(module, nn.Linear) for module in adapter.modules()):
                        say(f"init osu_release has no effect on '{settings.method}', which has no linear layer")
                    adapter.reset_as_released()
            # A seed of its own: the head starts with the same values under every method.
            with seeded(seeds.integer("head", seed) % 2**63), torch.device(device):
                new, was_trained = self._build_head(head, classes)
            self.adapters[name] = adapter.to(dtype=dtype)
            self.heads[name] = new.to(device=device, dtype=dtype)
            if was_trained:
                self.first_heads[name] = copy.deepcopy(self.heads[name]).requires_grad_(False)
            self.info[name] = {}
        before = self.active
        try:
            self.use(name)
        except BaseException:
            # An option that does not fit shows only when its hooks are registered; leave no half-added adapter.
            self.remove(name, use=before)
            raise
        say(format_summary(name, adapter, self.backbone, self.head))
        return adapter

    def remove(self, name: str, *, use: str = "") -> None:
        """Remove an adapter; if it was in use, `use` is used next, or else the first that is left."""
        if self.active == name:
            if self.is_merged:
                self.unmerge()
            self._release()
            self.active = ""
        for parts in (self.adapters, self.heads, self.first_heads):
            if name in parts:
                del parts[name]
        self.info.pop(name, None)
        if not self.active and self.adapters:
            self.use(use or next(iter(self.adapters)))

    def _build_head(self, head: nn.Module | None, classes: int | None) -> tuple[nn.Module, bool]:
        """Return a head, and whether it was trained before."""
        width = self.backbone.features_dim
        if head is not None:
            describe_head(head)
            if head_width(head) != width:
                raise UserError(f"head must read {width} features, those of this backbone (got {head_width(head)})")
            # None in the tuple: no number was requested, so any head fits.
            if classes not in (None, num_classes(head)):
                raise UserError(f"classes must be {num_classes(head)}, the number of the given head (got {classes})")
            return copy.deepcopy(head), True
        if classes is None:
            name = self.backbone.classifier
            classifier = dict(self.model.named_modules()).get(name) if name else None
            if isinstance(classifier, nn.Linear):
                return copy.deepcopy(classifier), True
            raise UserError("classes is missing: this backbone has no classifier of its own to start from")
        # One output is a head of values; of a single class nothing can be learned.
        if classes < 1:
            raise UserError(f"classes must be at least 1, the outputs of the head (got {classes})")
        return new_head(width, classes), False

    def adapter(self, name: str | None = None) -> Adapter[Any]:
        """Return the adapter of a name; the one in use by default."""
        adapter = self.adapters[choose(name or self.active, self.adapters, "adapter")]
        assert isinstance(adapter, Adapter)
        return adapter

    def tensors(self, name: str | None = None) -> dict[str, nn.Parameter]:
        """Return what an adapter trains, by the name under which it is saved; tuned values even while merged."""
        tensors = self.adapter(name).tensors(self.backbone)
        if self.merge_store is not None and name in (None, self.active):
            # The backbone holds merged values now (a scaled bias of difffit); the tuned ones are in the merge store.
            unmerged = self.merge_store.original_values(self.model)
            renamed = {f"backbone.{key}": value for key, value in unmerged.items()}
            tensors |= {key: value for key, value in renamed.items() if key in tensors}
        return tensors

    def count_parameters(self, name: str | None = None) -> ParameterCounts:
        """Count what an adapter trains with its head; the one in use by default."""
        adapter = self.adapter(name)
        return count_parameters(adapter, self.backbone, self.heads[name or self.active])

    @property
    def head(self) -> nn.Module:
        """The head of the adapter in use."""
        return self.heads[self.active]

    def use(self, name: str) -> None:
        """Switch to another adapter and its head; only these then have gradients."""
        choose(name, self.adapters, "adapter")
        if self.merge_store is not None:
            raise UserError("the model is merged: unmerge it before another adapter is used")
        self._release()
        self.active = name
        for other in self.adapters:
            self._set_trained(other, other == name)
        self._attach()

    def _trained_parameters(self, name: str) -> Iterator[nn.Parameter]:
        yield from self.tensors(name).values()
        yield from self.heads[name].parameters()

    def _set_trained(self, name: str, trained: bool) -> None:
        for value in self._trained_parameters(name):
            value.requires_grad_(trained)

    def _attach(self) -> None:
        """Activate the current adapter: swap its tuned tensors in, register its hooks."""
        if not self.active:
            return
        adapter = self.adapter()
        if adapter.parameter_swap is not None:
            adapter.parameter_swap.swap(self.model)
        # Merged weights are computed from tuned ones, so they are swapped in after them and out before them.
        if self.merge_store is not None:
            self.merge_store.swap(self.model)
        # A native method has no hooks; it acts through the swap alone, and needs no split attention either.
        elif not isinstance(adapter, NativeAdapter):
            self._attached.enter_context(self.backbone.install())
            for handle in adapter.hooks(self.backbone):
                self._attached.callback(handle.remove)

    def _release(self) -> None:
        """Undo `_attach`: the backbone is as it came, bit for bit."""
        if not self.active:
            return
        # In the reverse order of `_attach`: merged values first, then the tuned ones.
        self._attached.close()
        if self.merge_store is not None:
            self.merge_store.swap(self.model)
        parameter_swap = self.adapter().parameter_swap
        if parameter_swap is not None:
            parameter_swap.swap(self.model)

    @contextlib.contextmanager
    def _original(self) -> Iterator[None]:
        """Give the backbone its original state inside the block."""
        self._release()
        active, self.active = self.active, ""
        try:
            yield
        finally:
            self.active = active
            self._attach()

    @contextlib.contextmanager
    def disable(self) -> Iterator[None]:
        """Inside the block the model returns what its network did before, own classifier included."""
        before, self.disabled = self.disabled, True
        try:
            with self._original():
                yield
        finally:
            self.disabled = before

    def __deepcopy__(self, memo: dict[int, Any]) -> AdaptedModel:
        """Copy the model in its state; hooks and the backbone's map are rebuilt, because they are bound to one network.

        Raises:
            UserError: the model is disabled or detached: the copy could never be enabled again.
        """
        if self.adapters and not self.active:
            raise UserError("the adapted model is disabled or detached: copy it outside of `disable`, or its network")
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        # Copied without hooks: they would be copied along and still refer to this model's adapter.
        self._release()
        try:
            # The map is left out and rebuilt below: its blocks and functions refer to this model's modules.
            state = {key: value for key, value in vars(self).items() if key not in ("backbone", "_attached")}
            vars(copied).update(copy.deepcopy(state, memo))
        finally:
            self._attach()
        copied.backbone = map_backbone(copied.model, self.backbone.modules)
        copied._attached = contextlib.ExitStack()
        copied._attach()
        return copied

    def features(self, pixels: Tensor) -> Tensor:
        """Return what the head reads, [B, D]."""
        return self.backbone.features(pixels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels, as the backbone takes them, to logits [B, K]."""
        if self.disabled:
            return self.backbone.forward_original(pixels)
        return self.head(self.features(pixels))

    def train(self, mode: bool = True) -> AdaptedModel:
        """Set the training mode; batch norms keep evaluating.

        Their running statistics belong to the frozen backbone: batches of few images would overwrite them.
        """
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    @property
    def is_merged(self) -> bool:
        """Whether the branch is in the backbone's weights now."""
        return self.merge_store is not None

    def merge(self) -> None:
        """Add the branch to the backbone's weights and remove the hooks; the original weights are stored.

        Raises:
            UserError: no weights of the backbone can do what the method does; the message says why.
        """
        adapter = self.adapter()
        name = adapter.settings.method
        if self.merge_store is not None:
            raise UserError("the model is merged already")
        if adapter.why_not_mergeable:
            raise UserError(f"method '{name}' cannot be merged: {adapter.why_not_mergeable}")
        present = dict(self.model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            values = adapter.merged_tensors(self.backbone)
            # Computed in float32 at least and rounded once, at the end.
            values = {key: value.to(present[key].dtype) for key, value in values.items()}
        self._attached.close()
        self._trained_unmerged = [value for value in self._trained_parameters(self.active) if value.requires_grad]
        # A swap instead of subtracting again: W + D - D is not W in floating point.
        self.merge_store = ParameterSwap(values, trained=False)
        self.merge_store.swap(self.model)
        # Merged weights would not follow a trained branch.
        self._set_trained(self.active, False)

    def unmerge(self) -> None:
        """Take the branch out again; the backbone's weights are the original bits.

        Raises:
            UserError: the model is not merged.
        """
        if self.merge_store is None:
            raise UserError("the model is not merged")
        self._release()
        self.merge_store = None
        for value in self._trained_unmerged:
            value.requires_grad_(True)
        self._trained_unmerged = []
        self._attach()

    def merged_weights(self) -> dict[str, Tensor]:
        """Return the backbone's whole state after merging, by its own names; the model stays as it is."""
        was_merged = self.is_merged
        if not was_merged:
            self.merge()
        try:
            # Cloned: some of them are the adapter's own parameters, which training goes on changing.
            return {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        finally:
            if not was_merged:
                self.unmerge()

    def set_strength(self, strength: float) -> None:
        """Set the factor of the branch of the adapter in use, 0 to 1.

        Raises:
            UserError: a strength outside [0, 1], a merged model, or a method that tunes the backbone's own tensors and
                so has no branch.
        """
        adapter = self.adapter()
        if not 0 <= strength <= 1:
            raise UserError(f"strength must lie in [0, 1] (got {strength})")
        if self.is_merged:
            raise UserError("the model is merged: unmerge it before its strength is set")
        if adapter.interpolation != "branch":
            raise UserError(f"method '{adapter.settings.method}' has no branch; use foveate.adapt.wise instead")
        adapter.strength = float(strength)

    def detach(self) -> nn.Module:
        """Remove all adapters' effects and return the network as it came."""
        self._release()
        self.active = ""
        self.merge_store = None
        vars(self.model).pop(_MARK, None)
        for name, value in self.model.named_parameters():
            value.requires_grad_(self._required_grad[name])
        return self.model


def adapt(
    model: nn.Module,
    config: MethodSettings | Mapping[str, Any] | str,
    *,
    classes: int | None = None,
    head: nn.Module | None = None,
    name: str = "default",
    seed: int = 0,
    modules: Mapping[str, str] | None = None,
) -> AdaptedModel:
    """Return a model with one adapter, ready to train.

    Args:
        model: a vision network of timm, transformers, torchvision, open_clip or Foveate, or one of your own; it keeps
            its tensors.
        config: settings of a method, a mapping with `method` and its options, or a method's name.
        classes: of a new head; without it the model's own classifier is copied.
        head: to start from (a copy is taken), such as `ZeroShotHead`.
        name: of the adapter.
        seed: of initial values.
        modules: of a network of your own, role -> pattern of names, such as {"qkv": "blocks.*.attn.qkv"}; roles are in
            docs/methods/petl.md.

    Raises:
        UserError: a model that cannot be adapted or is adapted already, and as `AdaptedModel.add`.

    Example:
        >>> import timm
        >>> network = timm.create_model("vit_tiny_patch16_224", depth=1)
        >>> adapted = adapt(network, {"method": "lora", "rank": 4}, classes=3)
        >>> sorted({name.split(".")[0] for name, value in adapted.named_parameters() if value.requires_grad}) != []
        True
    """
    adapted = AdaptedModel(model, modules)
    try:
        adapted.add(config, classes=classes, head=head, name=name, seed=seed)
    # Also on KeyboardInterrupt: the caller's network must not stay frozen and hooked.
    except BaseException:
        adapted.detach()
        raise
    return adapted
