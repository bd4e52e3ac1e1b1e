"""The model `foveate` of lmms-eval: its tasks ask models of Foveate and of transformers about images and clips.

    lmms_eval --model foveate --model_args model=mini --tasks mme

Written against lmms-eval 0.7.3 (EvolvingLMMs-Lab/lmms-eval at 75571cfe, `lmms_eval/api/model.py`), which finds this
module by its entry point and alone imports it.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image

from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.multimodal.opening import find_folder, open_mllm
from foveate.multimodal.settings import OpeningOptions
from foveate.records.conversations import IMAGE
from foveate.serve.adapters.multimodal import wrap_model
from foveate.video.adapter import Network
from foveate.video.strategies import Strategy, parse_how
from foveate.video.viewing import Viewing
from foveate.video.watching import watch

_INTERFACE: Any = importlib.import_module("lmms_eval.api.model")
# Probability of an option that the model excludes: its loss must be finite.
_FLOOR = 1e-300


def manifest() -> Any:
    """Describe the model to lmms-eval's registry."""
    registry: Any = importlib.import_module("lmms_eval.models.registry_v2")
    return registry.ModelManifest(model_id="foveate", simple_class_path=f"{__name__}.{LmmsEvalModel.__name__}")


class _Question(NamedTuple):
    """A question of a task: its text, and images or the path of a clip."""

    text: str
    images: list[Image.Image]
    clip: str | None


class LmmsEvalModel(_INTERFACE.lmms):
    """A model behind the interface of lmms-eval.

    Args:
        model: as of `foveate.open_mllm`. device: such as "cpu"; by default the fastest.
        max_tokens: longest answer, whatever a task allows.
        how: strategy of clips, see `foveate.watch`. frames: that it samples; by default the strategy's.
        batch_size: questions about images that are asked together.
        dtype, device_map, quantize: see `OpeningOptions`, of a model of transformers.
        options: others are refused, as lmms-eval passes all that stands in --model_args.
    """

    is_simple = True

    def __init__(
        self,
        model: str = "mini",
        device: str | None = None,
        batch_size: int | str = 1,
        max_tokens: int = 128,
        how: str = "slowfast",
        frames: int | None = None,
        max_batch_size: int | None = None,
        dtype: str | None = None,
        device_map: str | None = None,
        quantize: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if options:
            raise UserError(
                f"--model_args: unknown {', '.join(options)}; expected model, device, batch_size, max_tokens, how, "
                f"frames, {', '.join(OpeningOptions.model_fields)}"
            )
        if device is not None and device_map is not None:
            raise UserError("device: no effect with device_map, which chooses the devices; expected one of them")
        given = {"dtype": dtype, "device_map": device_map, "quantize": quantize}
        opening = validate(OpeningOptions, given, where="--model_args")
        self.source, self.max_tokens = model, int(max_tokens)
        self.model = open_mllm(model, device=device, opening=opening)
        # lmms-eval's "auto" measures memory, which is not done here.
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 1
        self.how: Strategy = parse_how(how) if frames is None else parse_how(how, frames=int(frames))
        self._network: Network | UserError | None = None
        self._viewing: tuple[str, Viewing] | None = None

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer greedily; a question that cannot be asked is answered with nothing, with a warning."""
        questions, cuts = [], []
        for text, options, doc_to_visual, doc_id, task, split in (request.args for request in requests):
            questions.append(_read(text, doc_to_visual(self.task_dict[task][split][doc_id])))
            cuts.append(options)
        answers = [""] * len(questions)
        of_images = [number for number, question in enumerate(questions) if question.clip is None]
        for start in range(0, len(of_images), self.batch_size):
            part = of_images[start : start + self.batch_size]
            texts = self._ask_together([questions[number] for number in part], [cuts[number] for number in part])
            for number, text in zip(part, texts, strict=True):
                answers[number] = text
        for number, question in enumerate(questions):
            if question.clip is not None:
                answers[number] = self._ask(question, cuts[number])
        for request, answer, options in zip(requests, answers, cuts, strict=True):
            self.cache_hook.add_partial("generate_until", (request.args[0], options), answer)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return (loss, whether greedy decoding writes it) of each continuation, among those of the same question.

        The smallest loss wins, as lmms-eval 0.7 counts; it is minus the log of the probability among the options.

        Raises:
            UserError: a question has one continuation alone.
        """
        groups: dict[Any, list[tuple[int, str]]] = {}
        for number, request in enumerate(requests):
            text, target, doc_to_visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            written = target if isinstance(target, str) else target(doc)
            groups.setdefault((text, task, split, doc_id), []).append((number, written.strip()))
        losses: dict[int, tuple[float, bool]] = {}
        for (text, task, split, doc_id), members in groups.items():
            doc_to_visual = requests[members[0][0]].args[2]
            question = _read(text, doc_to_visual(self.task_dict[task][split][doc_id]))
            options = list(dict.fromkeys(written for _, written in members))
            if len(options) < 2 or question.clip is not None:
                raise UserError(
                    f"loglikelihood: {task} has {len(options)} continuation of question {doc_id}, or a clip; expected "
                    "two or more about images: probabilities are those among options"
                )
            chosen = self.model.choose(question.images, question.text, options)
            greedy = self._ask(question, {})
            for number, written in members:
                loss = -math.log(max(chosen[options.index(written)], _FLOOR))
                losses[number] = (loss, greedy == written)
        return [losses[number] for number in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Answer round after round; the task writes each next question from the answers before it."""
        results = []
        for text, options, doc_to_visual, doc_to_text, doc_id, task, split in (request.args for request in requests):
            doc = self.task_dict[task][split][doc_id]
            visuals, answers, info = doc_to_visual(doc), list[str](), None
            while True:
                answers.append(self._ask(_read(text, visuals), options))
                visuals, text, is_last, previous, info = doc_to_text(
                    doc, previous_output=answers, round_idx=len(answers), previous_round_info=info
                )
                answers = list(previous)
                if is_last:
                    break
            results.append(answers)
        return results

    def _ask_together(self, questions: Sequence[_Question], options: Sequence[dict[str, Any]]) -> list[str]:
        room = max(self._count_tokens(each) for each in options)
        if len(questions) > 1 and all(self._count_tokens(each) == room for each in options):
            try:
                asked = [(question.images, question.text) for question in questions]
                answers = self.model.ask_all(asked, max_tokens=room)
                return [_cut(answer.text, each) for answer, each in zip(answers, options, strict=True)]
            except UserError:
                # One of them cannot be asked; which one shows when they are asked alone.
                pass
        return [self._ask(question, each) for question, each in zip(questions, options, strict=True)]

    def _ask(self, question: _Question, options: dict[str, Any]) -> str:
        room = self._count_tokens(options)
        try:
            if question.clip is None:
                return _cut(self.model.ask(question.images, question.text, max_tokens=room).text, options)
            return _cut(self._watch(question.clip).ask(question.text, max_tokens=room).text, options)
        except UserError as error:
            warnings.warn(f"not answered, which counts as wrong: {error}", stacklevel=2)
            return ""

    def _watch(self, clip: str) -> Viewing:
        """Show a clip; questions about the same clip follow one another."""
        if self._network is None:
            self._network = wrap_model(self.model, find_folder(self.source), name=self.source)
        if isinstance(self._network, UserError):
            raise self._network
        if self._viewing is None or self._viewing[0] != clip:
            self._viewing = None
            fit = self.how.kind != "native"
            self._viewing = (clip, watch(self._network, clip, how=self.how, fit=fit))
        return self._viewing[1]

    def _count_tokens(self, options: dict[str, Any]) -> int:
        return max(1, min(self.max_tokens, int(options.get("max_new_tokens") or self.max_tokens)))


def _read(text: str, visuals: Any) -> _Question:
    """Read the question of a task; lmms-eval gives images, or the path of a clip, or nothing."""
    listed = [] if visuals is None else list(visuals)
    clips = [visual for visual in listed if isinstance(visual, str)]
    if clips and len(listed) > 1:
        raise UserError(f"visuals: {len(listed)} with clips among them; expected images or one clip")
    # Tasks that interleave name every image; in others the marks are those of another model.
    named = text if text.count(IMAGE) == len(listed) and not clips else text.replace(IMAGE, "")
    return _Question(named.strip(), [] if clips else listed, clips[0] if clips else None)


def _cut(text: str, options: dict[str, Any]) -> str:
    """Cut an answer where a task says that it ends."""
    until: str | Sequence[str] = options.get("until") or ()
    for end in [until] if isinstance(until, str) else until:
        text = text.split(end)[0] if end else text
    return text.strip()
