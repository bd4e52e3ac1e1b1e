"""The adapted model: a backbone that keeps its tensors, adapters by name, a head for each; merge, disable, save, load.

```python
adapted = adapt(timm_vit, "lora", classes=10)       # prints what is trained
adapted(pixels)                                     # logits
with adapted.disable(): adapted(pixels)             # what the model itself gives
adapted.merge(); adapted.unmerge()                  # exact; refuses where it cannot be
adapted.save("folder"); load_adapter(another_vit, "folder")
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

from foveate.adapt.adapter import Adapter, MethodSettings, NativeAdapter
from foveate.adapt.backbones.registry import view_of
from foveate.adapt.heads import classes_of, describe_head, fresh_head, width_of
from foveate.adapt.parameter_summary import trainable_table
from foveate.adapt.parameter_swap import ParameterSwap
from foveate.adapt.registry import method, settings_of
from foveate.core import seeds
from foveate.core.errors import UserError, choose
from foveate.core.progress import say
from foveate.vision.registry import seeded

_MARK = "_foveate_adapted"
_NAME = re.compile(r"[A-Za-z_][\w-]*")


class AdaptedModel(nn.Module):
    """A backbone with adapters. Build it with `adapt`, or open a saved one with `load_adapter`.

    Attributes:
        model: the backbone as it was given: same modules, same names of tensors.
        view: its places. adapters, heads: by name. active: the adapter in use.
        info: by adapter, what is saved beside it (names of classes, preprocessing); JSON values.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if isinstance(model, AdaptedModel) or vars(model).get(_MARK, False):
            raise UserError("this model is adapted already: use its `add`, or `detach` it first")
        self.view = view_of(model)
        self._digest: str | None = None
        self._trained_before = {name: value.requires_grad for name, value in model.named_parameters()}
        model.requires_grad_(False)
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
        """Name of the backbone's values without what any adapter tuned; computed when it is first asked for."""
        if self._digest is None:
            with self._plain():
                self._digest = self.view.weights_digest()
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
        """Adds an adapter with a head of its own, uses it, and prints what is trained.

        Args:
            config: settings of a method, a mapping with `method` and its options, or a method's name.
            classes: of a head that starts afresh. Without it the model's own classifier is copied.
            head: a head to start from (a copy is taken), such as `ZeroShotHead`.
            name: of the adapter. seed: of first values.

        Raises:
            UserError: for a method or option that is unknown or does not fit the backbone; while the model is merged.
        """
        if not _NAME.fullmatch(name):
            raise UserError(f"adapter name '{name}': allowed are letters, digits, _ and -, a letter first")
        if name in self.adapters:
            raise UserError(f"there is an adapter '{name}' already; give another name")
        if self.is_merged:
            raise UserError("the model is merged: unmerge it before another adapter is added")
        settings = settings_of(config)
        with self._plain():
            device, dtype = self._like()
            with seeded(seeds.integer("adapter", seed) % 2**63), torch.device(device):
                adapter = method(settings.method).build(settings, self.view)
                if getattr(settings, "init", "declared") == "osu_release":
                    if not any(isinstance(module, nn.Linear) for module in adapter.modules()):
                        say(f"init osu_release has no effect on '{settings.method}', which has no linear layer")
                    adapter.reset()
            with seeded(seeds.integer("head", seed) % 2**63), torch.device(device):
                chosen, trained = self._head(head, classes)
            self.adapters[name] = adapter.to(dtype=dtype)
            self.heads[name] = chosen.to(device=device, dtype=dtype)
            if trained:
                self.first_heads[name] = copy.deepcopy(self.heads[name]).requires_grad_(False)
            self.info[name] = {}
        before = self.active
        try:
            self.use(name)
        except BaseException:
            self.remove(name, use=before)
            raise
        say(trainable_table(self))
        return adapter

    def remove(self, name: str, *, use: str = "") -> None:
        """Takes an adapter out; where it was in use, another one is used then: `use`, else the first that is left."""
        if self.active == name:
            if self.is_merged:
                self.unmerge()
            self._release()
            self.active = ""
        for kept in (self.adapters, self.heads, self.first_heads):
            if name in kept:
                del kept[name]
        self.info.pop(name, None)
        if not self.active and self.adapters:
            self.use(use or next(iter(self.adapters)))

    def _like(self) -> tuple[torch.device, torch.dtype]:
        value = next(iter(self.view.parameters_of_tower().values()))
        return value.device, value.dtype

    def _head(self, head: nn.Module | None, classes: int | None) -> tuple[nn.Module, bool]:
        """A head, and whether it was trained before."""
        width = self.view.features_dim
        if head is not None:
            describe_head(head)
            if width_of(head) != width:
                raise UserError(f"the head reads {width_of(head)} features, this backbone gives {width}")
            if classes not in (None, classes_of(head)):
                raise UserError(f"classes {classes}: the head that was given has {classes_of(head)}")
            return copy.deepcopy(head), True
        if classes is None:
            own = dict(self.model.named_modules()).get(self.view.classifier) if self.view.classifier else None
            if isinstance(own, nn.Linear):
                return copy.deepcopy(own), True
            raise UserError("classes is missing: this backbone has no classifier of its own to start from")
        if classes < 2:
            raise UserError(f"classes {classes}: allowed are integers from 2")
        return fresh_head(width, classes), False

    def adapter(self, name: str | None = None) -> Adapter[Any]:
        """The adapter of a name; the one in use by default."""
        found = self.adapters[choose(name or self.active, self.adapters, "adapter")]
        assert isinstance(found, Adapter)
        return found

    def tensors(self, name: str | None = None) -> dict[str, nn.Parameter]:
        """What an adapter trains, by the name under which it is saved; tuned values also while the model is merged."""
        found = self.adapter(name).tensors(self.view)
        if self.merge_store is not None and name in (None, self.active):
            # Merged values stand in the backbone where tuned ones do otherwise: a scaled bias of difffit.
            under = {f"backbone.{key}": value for key, value in self.merge_store.others(self.model).items()}
            found |= {key: value for key, value in under.items() if key in found}
        return found

    @property
    def head(self) -> nn.Module:
        """The head of the adapter in use."""
        return self.heads[self.active]

    def use(self, name: str) -> None:
        """Switches to another adapter and its head; only these have gradients then."""
        choose(name, self.adapters, "adapter")
        if self.merge_store is not None:
            raise UserError("the model is merged: unmerge it before another adapter is used")
        self._release()
        self.active = name
        for other in self.adapters:
            self._set_trained(other, other == name)
        self._attach()

    def _own_parameters(self, name: str) -> Iterator[nn.Parameter]:
        yield from self.tensors(name).values()
        yield from self.heads[name].parameters()

    def _set_trained(self, name: str, trained: bool) -> None:
        for value in self._own_parameters(name):
            value.requires_grad_(trained)

    def _attach(self) -> None:
        """Lets the adapter in use act."""
        if not self.active:
            return
        adapter = self.adapter()
        if adapter.exchange is not None:
            adapter.exchange.swap(self.model)
        if self.merge_store is not None:
            self.merge_store.swap(self.model)
        elif not isinstance(adapter, NativeAdapter):
            self._attached.enter_context(self.view.install())
            for handle in adapter.hooks(self.view):
                self._attached.callback(handle.remove)

    def _release(self) -> None:
        """The inverse of `_attach`: the backbone is as it was given, bit for bit."""
        if not self.active:
            return
        self._attached.close()
        if self.merge_store is not None:
            self.merge_store.swap(self.model)
        exchange = self.adapter().exchange
        if exchange is not None:
            exchange.swap(self.model)

    @contextlib.contextmanager
    def _plain(self) -> Iterator[None]:
        """The backbone as it was given inside the block."""
        self._release()
        active, self.active = self.active, ""
        try:
            yield
        finally:
            self.active = active
            self._attach()

    @contextlib.contextmanager
    def disable(self) -> Iterator[None]:
        """Inside the block the model gives what its backbone gave before, own classifier included."""
        before, self.disabled = self.disabled, True
        try:
            with self._plain():
                yield
        finally:
            self.disabled = before

    def __deepcopy__(self, memo: dict[int, Any]) -> AdaptedModel:
        """A model of its own, in the same state; hooks and the view are made anew, for they are bound to one backbone.

        Raises:
            UserError: when it is switched off or detached: the copy could never be switched on.
        """
        if self.adapters and not self.active:
            raise UserError("the adapted model is switched off or detached: copy it outside of disable, or its network")
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        self._release()
        try:
            kept = {key: value for key, value in vars(self).items() if key not in ("view", "_attached")}
            vars(copied).update(copy.deepcopy(kept, memo))
        finally:
            self._attach()
        copied.view = view_of(copied.model)
        copied._attached = contextlib.ExitStack()
        copied._attach()
        return copied

    def features(self, pixels: Tensor) -> Tensor:
        """What the head reads, [B, D]."""
        return self.view.features(pixels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels as the backbone takes them to logits [B, K]."""
        if self.disabled:
            return self.view.plain(pixels)
        return self.head(self.features(pixels))

    def train(self, mode: bool = True) -> AdaptedModel:
        """Training mode; running statistics of batch norms stay as they are."""
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
        """Puts the branch into the backbone's weights (sums in float32 at least, kept copies), without hooks.

        Raises:
            UserError: where no weights of the backbone can do what the method does, with the reason.
        """
        adapter = self.adapter()
        name = adapter.settings.method
        if self.merge_store is not None:
            raise UserError("the model is merged already")
        if adapter.why_not_mergeable:
            raise UserError(f"method '{name}' cannot be merged: {adapter.why_not_mergeable}")
        present = dict(self.model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            values = {key: value.to(present[key].dtype) for key, value in adapter.merged(self.view).items()}
        self._attached.close()
        self._trained_unmerged = [value for value in self._own_parameters(self.active) if value.requires_grad]
        self.merge_store = ParameterSwap(values, trained=False)
        self.merge_store.swap(self.model)
        self._set_trained(self.active, False)

    def unmerge(self) -> None:
        """Takes the branch out again; the backbone's weights are the very bits of before.

        Raises:
            UserError: when it is not merged.
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
        """The backbone's whole state after merging, by the backbone's own names; the model itself is left as it is."""
        was = self.is_merged
        if not was:
            self.merge()
        try:
            return {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        finally:
            if not was:
                self.unmerge()

    def set_strength(self, strength: float) -> None:
        """Factor of the branch of the adapter in use, 0 to 1.

        Raises:
            UserError: when it is merged, or tunes the backbone's own tensors, which have no branch.
        """
        adapter = self.adapter()
        if self.is_merged:
            raise UserError("the model is merged: unmerge it before its strength is set")
        if adapter.wise != "branch":
            raise UserError(f"method '{adapter.settings.method}' has no branch; use foveate.adapt.wise instead")
        adapter.strength = float(strength)

    def detach(self) -> nn.Module:
        """Takes everything off and gives the backbone back as it came."""
        self._release()
        self.active = ""
        self.merge_store = None
        vars(self.model).pop(_MARK, None)
        for name, value in self.model.named_parameters():
            value.requires_grad_(self._trained_before[name])
        return self.model

    def save(self, folder: Any, name: str | None = None) -> Any:
        """Writes the adapter and its head; see `foveate.adapt.folder`."""
        from foveate.adapt.folder import save_adapter

        return save_adapter(self, folder, name=name)


def adapt(
    model: nn.Module,
    config: MethodSettings | Mapping[str, Any] | str,
    *,
    classes: int | None = None,
    head: nn.Module | None = None,
    name: str = "default",
    seed: int = 0,
) -> AdaptedModel:
    """A model with one adapter, ready to train; see `AdaptedModel.add` for the arguments.

    Raises:
        UserError: for a model that no map knows or that is adapted already, and as `AdaptedModel.add`.
    """
    adapted = AdaptedModel(model)
    try:
        adapted.add(config, classes=classes, head=head, name=name, seed=seed)
    except BaseException:
        adapted.detach()
        raise
    return adapted
