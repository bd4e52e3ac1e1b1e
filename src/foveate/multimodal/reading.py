"""Read freely worded questions: which form of question it is, and what it is about.

Names, colors, numbers, sides and relations of a question are masked; the wording that is left is compared with the
wordings of `multimodal.wordings` that have the same masks in the same order. Where none is near, or a word is left that
belongs to nothing, the question is not understood: no reading is better than a wrong one.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from foveate.multimodal.question_words import (
    COLOR,
    COLORS,
    CUES,
    EMPTY,
    FURTHER,
    NUMBER,
    NUMBERS,
    ORDER,
    ORDERS,
    PLACE,
    RELATION,
    RELATIONS,
    SIDE,
    SIDES,
    STOP,
    SYNONYMS,
    THING,
)
from foveate.multimodal.wordings import SEEN, load_wordings
from foveate.records.conversations import IMAGE, REGION
from foveate.records.text import singular

# A wording of training for each form: the one that a question is rewritten to.
CANONICAL: Mapping[str, str] = {
    "name": "What is <region>?",
    "name: which": "Is <region> {first} or {second}?",
    "name: yes or no": "Is <region> {stated}?",
    "where": "Where is the {x}?",
    "is there": "{Is_stated} there {stated}?",
    "color": "What color {is_x} the {x}?",
    "color: region": "What color is <region>?",
    "color: which": "{Is_x} the {x} {first} or {second}?",
    "color: yes or no": "{Is_x} the {x} {stated}?",
    "count": "How many {xs} are there?",
    "count: which": "Are there {first} or {second} {xs}?",
    "count: yes or no": "{Are_stated} there exactly {stated_xs}?",
    "count: more": "Are there more {first} or more {second}?",
    "count: more, yes or no": "Are there more {first} than {second}?",
    "position": "Is the {x} in the {first} half or the {second} half of the image?",
    "position: yes or no": "Is the {x} in the {stated} half of the image?",
    "position: relation": "Is the {x} {first} or {second} the {y}?",
    "position: relation, yes or no": "Is the {x} {stated} the {y}?",
    "position: further": "Which is further {side}, the {first} or the {second}?",
    "compare": "Which image shows {stated}, the {first} or the {second}?",
    "compare: both": "Do both images show {stated}?",
    "compare: same number": "Do both images show the same number of {xs}?",
    "compare: more": "Which image shows more {xs}, the {first} or the {second}?",
    "which image": "Which image shows {stated}?",
}
# Similarity to the nearest wording from which a question counts as understood, and the same where it is about something
# that the model does not know: then a word that is none of a name may have been taken for one. Chosen by leaving out
# each wording in turn, and by questions of other kinds.
MIN_SIMILARITY = 0.2
MIN_SIMILARITY_OF_UNKNOWN = 0.55

_REFUSED = frozenset("why when who whose whom".split())
_TOKEN = re.compile(r"<region>|<\d+>|[a-z0-9]+(?:[-'][a-z0-9]+)*")
# "Could you please tell me whether ...": what people put in front of a question without asking anything else.
_FRAME = re.compile(
    r"\b(?:(?:can|could|would|will) you (?:please |kindly )?|do you |please |i(?:'d| would) like (?:you )?to |"
    r"i (?:want|need) (?:you )?to |i (?:can't|cannot|don't) |i |let me |help me )?"
    r"(?:tell(?: me| us)?|say|know|wonder|check|see|confirm|determine|verify|find out)"
    r"(?=:? (?:if|whether|what|where|which|how)\b)"
)
_AM_RIGHT = re.compile(r"\b(?:am i right|is (?:it|that|this) right)(?=\W+(?:that|in|if)\b|\W*$)")
_RIGHT = re.compile(r"[,.;:]\s*(?:am i )?right\s*(?=\?|$)")
_IS = re.compile(r"\b(where|what|there|it|that|which|who|how)['’]s\b")


class Reading(NamedTuple):
    """What a question was read as.

    Attributes:
        form: a key of `CANONICAL`, such as "where" or "is there".
        name: what it is about; "" for a region.
        question: the same in a wording of training.
        similarity: of the wording to the nearest one of its form, in [0, 1].
    """

    form: str
    name: str
    question: str
    similarity: float


class _Span(NamedTuple):
    """A mask, or a word, and the text that it stands for."""

    word: str
    text: str
    is_mask: bool = False


class _Template(NamedTuple):
    form: str
    words: tuple[str, ...]
    slots: tuple[str, ...]
    fields: tuple[str, ...]


_FIELD = re.compile(r"\{(\w+)\}")
_THING_FIELDS = ("x", "a_x", "xs", "y", "stated_x")


def _mask_of(form: str, field: str) -> tuple[str, ...]:
    """Return the words that stand for a field of a form, its mask among them."""
    if field.lower() in ("is_x", "is_stated", "are_stated"):
        return ("is",)
    if field == "side":
        return (SIDE,)
    if field in _THING_FIELDS or (field == "stated_xs" and form == "is there"):
        return ("a", THING) if field == "a_x" else (THING,)
    if field == "stated_xs":
        return (NUMBER, THING)
    kinds = {"color": COLOR, "position": SIDE, "position: relation": RELATION, "compare": ORDER, "count": NUMBER}
    if form in ("position: further", "count: more", "count: more, yes or no"):
        return (THING,)
    if form in ("name: which", "name: yes or no", "is there", "which image", "compare: both") or (
        field == "stated" and form == "compare"
    ):
        return ("a", THING)
    for start in ("position: relation", "position", "color", "compare", "count"):
        if form.startswith(start):
            return (kinds[start],)
    raise KeyError(f"{form}: {field}")


def _make_template(form: str, wording: str) -> _Template:
    words: list[str] = []
    fields: list[str] = []
    parts = _FIELD.split(wording)
    for index, part in enumerate(parts):
        if index % 2:
            masks = _mask_of(form, part)
            words += masks
            fields += [part] * sum(word in _MASKS for word in masks)
        else:
            # Numbers and orders of the wording itself, such as "the two images", are masked like those of a question.
            orders = ORDERS if form.startswith("compare") else ()
            tokens = [
                ORDER if token in orders else NUMBER if token in NUMBERS else token
                for token in _normalize(_tokenize(part))
            ]
            words += tokens
            fields += ["" if token != PLACE else REGION for token in tokens if token in _MASKS]
    return _Template(form, tuple(words), tuple(word for word in words if word in _MASKS), tuple(fields))


_MASKS = frozenset((THING, COLOR, NUMBER, SIDE, RELATION, ORDER, PLACE))


def _tokenize(text: str) -> list[str]:
    plain = _IS.sub(r"\1 is", text.lower().replace("’", "'"))
    # "Right" is a side elsewhere.
    plain = _FRAME.sub(" ", plain)
    plain = _AM_RIGHT.sub(" is it true ", _RIGHT.sub(" , true", plain)).replace("bounding box", "box")
    tokens = _TOKEN.findall(plain)
    return [PLACE if token.startswith("<") else token.removesuffix("'s") for token in tokens]


def _normalize(tokens: Iterable[str]) -> list[str]:
    return [SYNONYMS.get(token, token) for token in tokens if token not in EMPTY]


class _Matcher:
    """Wordings of one half, and the weights of their words: rare words say more."""

    def __init__(
        self, trained: Iterable[tuple[str, str]] = (), *, half: str = SEEN, without: tuple[str, str] | None = None
    ) -> None:
        pairs = [(form, wording) for form, halves in load_wordings().items() for wording in halves[half]]
        pairs += [*CANONICAL.items(), *trained]
        self.templates = [_make_template(*pair) for pair in pairs if pair != without]
        counts = Counter(gram for template in self.templates for gram in set(_grams(template.words)))
        total = len(self.templates)
        self.weights = {gram: math.log(1 + total / count) for gram, count in counts.items()}
        self.unknown = math.log(1 + total)
        self.by_slots: dict[tuple[str, ...], list[tuple[_Template, dict[str, float]]]] = defaultdict(list)
        for template in self.templates:
            self.by_slots[template.slots].append((template, self.embed(template.words)))
        words = {word for template in self.templates for word in template.words}
        # What a synonym stands for is a word of questions as well.
        self.words = words | STOP | EMPTY | set(SYNONYMS) | {word for form in CANONICAL for word in form.split()}

    def embed(self, words: Sequence[str]) -> dict[str, float]:
        vector = {gram: self.weights.get(gram, self.unknown) * count for gram, count in Counter(_grams(words)).items()}
        norm = math.sqrt(sum(value * value for value in vector.values())) or 1.0
        return {gram: value / norm for gram, value in vector.items()}

    def find(self, words: Sequence[str], num_images: int) -> tuple[_Template, float] | None:
        """Return the nearest template with the same masks in the same order, and its similarity."""
        vector = self.embed(words)
        slots = tuple(word for word in words if word in _MASKS)
        templates = self.by_slots.get(slots) or self._reorder(slots)
        scored = [
            (sum(value * other.get(gram, 0.0) for gram, value in vector.items()), template)
            for template, other in templates
            if _has_cues(template.form, words) and _is_about(template.form, num_images)
        ]
        if not scored:
            return None
        similarity, template = max(scored, key=lambda pair: pair[0])
        return template, similarity

    def _reorder(self, slots: tuple[str, ...]) -> list[tuple[_Template, dict[str, float]]]:
        """Return templates with the same masks in another order, of forms about one thing: "left or right, the dog"."""
        return [
            (template._replace(slots=slots, fields=_reorder_fields(template, slots)), vector)
            for others, templates in self.by_slots.items()
            if sorted(others) == sorted(slots) and slots.count(THING) == 1
            for template, vector in templates
        ]


def _reorder_fields(template: _Template, slots: Sequence[str]) -> tuple[str, ...]:
    """Return the fields of a template in the order of other slots of the same kinds."""
    queues: dict[str, list[str]] = defaultdict(list)
    for slot, field in zip(template.slots, template.fields, strict=True):
        queues[slot].append(field)
    return tuple(queues[slot].pop(0) for slot in slots)


def _has_cues(form: str, words: Collection[str]) -> bool:
    needed, others = CUES.get(form, (frozenset(), frozenset()))
    return (not needed or not needed.isdisjoint(words)) and others.isdisjoint(words)


def _grams(words: Sequence[str]) -> list[str]:
    """Return words and pairs of neighbors; the first word counts with its place."""
    padded = ["^", *words, "$"]
    return [*words, *(f"{first} {second}" for first, second in zip(padded, padded[1:], strict=False))]


@functools.lru_cache(maxsize=4)
def _load_matcher(trained: tuple[tuple[str, str], ...]) -> _Matcher:
    return _Matcher(trained)


# What a field of a wording may stand for, so that "Is the dog on the left?" is not "Is the dog red?" of another thing.
_FIELD_PATTERNS = {
    COLOR: "|".join(sorted(COLORS)),
    NUMBER: "|".join(("no", *NUMBERS.values())),
    SIDE: "|".join((*SIDES, "up", "down")),
    RELATION: "left of|right of|above|below",
    ORDER: "|".join(ORDERS),
    "is": "is|are",
}
# No name has these words; what has them is a longer question.
_NOT_IN_NAMES = (
    "or|the|image|picture|photo|anywhere|somewhere|here|there|please|this|that|if|is|are|at|on the|in the|in this"
)
_THING_PATTERN = rf"(?:(?!\b(?:{_NOT_IN_NAMES})\b)[^,:;.?!])+"


@functools.lru_cache(maxsize=4)
def _compile_wordings(pairs: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    patterns = []
    for form, wording in pairs:
        parts = _FIELD.split(wording.casefold().rstrip(".?!"))
        texts = [re.escape(part) for part in parts]
        for index in range(1, len(parts), 2):
            masks = _mask_of(form, parts[index])
            texts[index] = f"(?:{_FIELD_PATTERNS.get(masks[0], _THING_PATTERN)})"
            # "two dogs" is a number and a name.
            texts[index] += f" {_THING_PATTERN}" if masks == (NUMBER, THING) else ""
        patterns.append("".join(texts))
    return re.compile("|".join(patterns))


def is_trained(text: str, trained: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a question has one of the wordings of each form that a model was trained on."""
    pairs = tuple((form, wording) for form, wordings in trained.items() for wording in wordings if form in CANONICAL)
    plain = re.sub(r"<\d+>", REGION, " ".join(text.split())).casefold().rstrip(" .?!")
    return bool(pairs) and _compile_wordings(pairs).fullmatch(plain) is not None


def read_question(
    text: str,
    *,
    names: Collection[str] = (),
    num_images: int = 1,
    trained: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Reading | None:
    """Read a question about images, however it is worded; None where it is not understood.

    Args:
        text: of the question; `<1>` or `<region>` stands for a region.
        names: that the model knows, which are then found whole: "glass of milk", "box".
        num_images: that the question is about. With several, "first" and "second" are images.
        trained: wordings of each form that a model was trained on, to compare with as well.

    >>> read_question("Can you give me a box around the waffle?").question
    'Where is the waffle?'
    >>> read_question("On which side is the glass of milk: left or right?", names=["glass of milk"]).form
    'position'
    >>> read_question("Why is the sky blue?") is None
    True
    """
    pairs = tuple((form, wording) for form, wordings in trained.items() for wording in wordings if form in CANONICAL)
    return _read(_load_matcher(pairs), text, names=names, num_images=num_images)


def _read(matcher: _Matcher, text: str, *, names: Collection[str], num_images: int) -> Reading | None:
    tokens = _tokenize(text.replace(IMAGE, " "))
    regions = re.findall(r"<region>|<\d+>", text)
    if len(regions) > 1 or not tokens:
        return None
    # No form asks for reasons, people, times or manners.
    if _REFUSED & set(tokens):
        return None
    best: tuple[_Template, float, tuple[_Span, ...]] | None = None
    for spans in _mask(tokens, matcher.words, names, num_images):
        words = [span.word for span in spans]
        match = matcher.find(words, num_images)
        if match is not None and (best is None or match[1] > best[1]):
            best = (*match, spans)
    if best is None:
        return None
    template, similarity, spans = best
    table = _name_table(tuple(names))
    is_known = all(_singulars(span.text.split()) in table for span in spans if span.word == THING)
    if similarity < (MIN_SIMILARITY if is_known else MIN_SIMILARITY_OF_UNKNOWN):
        return None
    texts = [span.text for span in spans if span.is_mask]
    fields: dict[str, str] = {}
    for field, value in zip(template.fields, texts, strict=True):
        if field == "stated_xs" and template.form == "count: yes or no":
            fields["number" if "number" not in fields else "xs"] = value
        else:
            fields.setdefault(field, value)
    values = _complete(template.form, fields, names)
    values |= {"region": regions[0]} if regions else {}
    question = _fill(CANONICAL[template.form], values)
    if _FIELD.search(question):
        # An answer to choose from is missing.
        return None
    about = next((values[field] for field in ("x", "name", "xs") if field in values), "")
    return Reading(template.form, about, question, similarity)


def _fill(wording: str, values: Mapping[str, str]) -> str:
    """Write a wording with its fields; those without a value stay."""
    text = _FIELD.sub(lambda match: values.get(match[1], match[0]), wording)
    return text.replace(REGION, values.get("region", REGION))


def _is_about(form: str, num_images: int) -> bool:
    """Return whether a form is about as many images."""
    return form.startswith(("compare", "which image")) == (num_images > 1) and (
        num_images == 2 or not form.startswith("compare")
    )


def _mask(
    tokens: Sequence[str], known: Collection[str], names: Collection[str], num_images: int
) -> list[tuple[_Span, ...]]:
    """List the readings of tokens as words and masks.

    A color in front of a thing belongs to it, or does not; a word that no wording has is of another wording, or the
    name of a thing that the model does not know; "box" is a thing, or what is asked for.
    """
    readings: list[tuple[_Span, ...]] = []
    for takes_words in (False, True):
        spans = _mask_names(tokens, known, names, takes_words=takes_words)
        masked = [span for span in _mask_words(spans, num_images) if span.is_mask or span.word not in EMPTY]
        for parts in (_join_names(masked, known), _join_things(masked, known)):
            if parts is not None:
                words = [
                    span if span.is_mask else span._replace(word=SYNONYMS.get(span.word, span.word)) for span in parts
                ]
                readings += [tuple(words), tuple(_join_colors(words))]
    return list(dict.fromkeys(readings))


def _join_names(spans: Sequence[_Span], known: Collection[str]) -> list[_Span]:
    """Join masks of things and the unknown words beside them: "cherry pie" is no cherry."""
    joined: list[_Span] = []
    for span in spans:
        last = joined[-1] if joined else None
        is_other = not span.is_mask and span.word not in known
        if last is not None and last.word == THING and (is_other or span.word == THING):
            joined[-1] = _Span(THING, f"{last.text} {span.text}", is_mask=True)
            continue
        if span.word == THING:
            while joined and not joined[-1].is_mask and joined[-1].word not in known:
                span = _Span(THING, f"{joined.pop().text} {span.text}", is_mask=True)
        joined.append(span)
    return joined


def _mask_names(
    tokens: Sequence[str], known: Collection[str], names: Collection[str], *, takes_words: bool
) -> list[_Span]:
    """Mask the names that the model knows, the longest first.

    Args:
        takes_words: names that are words of questions, too, such as "box" and "circle", are masked behind an article.
    """
    table = _name_table(tuple(names))
    longest = max((len(words) for words in table), default=0)
    spans: list[_Span] = []
    position = 0
    while position < len(tokens):
        for length in range(min(longest, len(tokens) - position), 0, -1):
            words = tuple(tokens[position : position + length])
            is_word = length == 1 and (words[0] in known or words[0] in COLORS)
            is_behind = position > 0 and tokens[position - 1] in ("a", "an", "the", "any", "many", "more")
            # In "a box around the box" the last one is the thing.
            is_behind &= words[0] not in tokens[position + 1 :]
            if _singulars(words) in table and not (is_word and not (takes_words and is_behind)):
                spans.append(_Span(THING, " ".join(words), is_mask=True))
                position += length
                break
        else:
            spans.append(_Span(tokens[position], tokens[position]))
            position += 1
    return spans


@functools.lru_cache(maxsize=4)
def _name_table(names: tuple[str, ...]) -> dict[tuple[str, ...], str]:
    return {_singulars(_tokenize(name)): name for name in names}


def _singulars(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(singular(word) for word in words)


def _mask_words(spans: Sequence[_Span], num_images: int) -> list[_Span]:
    """Mask colors, numbers, sides, relations and images."""
    masked: list[_Span] = []
    index = 0
    while index < len(spans):
        word = spans[index].word
        after = spans[index + 1].word if index + 1 < len(spans) else ""
        size = 1
        if spans[index].is_mask:
            masked.append(spans[index])
        elif word == PLACE:
            masked.append(_Span(PLACE, PLACE, is_mask=True))
        elif word in ("left", "right") and after == "of":
            masked.append(_Span(RELATION, f"{word} of", is_mask=True))
            size = 2
        elif word in RELATIONS:
            masked.append(_Span(RELATION, RELATIONS[word], is_mask=True))
        elif word in SIDES or (
            word in FURTHER
            and {"further", "farther", "more"} & {span.word for span in spans[max(0, index - 3) : index]}
        ):
            masked.append(_Span(SIDE, SIDES.get(word, word), is_mask=True))
        elif word in COLORS:
            masked.append(_Span(COLOR, word, is_mask=True))
        elif word in NUMBERS or (word == "one" and _counts(spans, index)):
            masked.append(_Span(NUMBER, NUMBERS.get(word, word), is_mask=True))
        elif word in ORDERS and num_images > 1:
            masked.append(_Span(ORDER, word, is_mask=True))
        else:
            masked.append(spans[index])
        index += size
    return masked


def _counts(spans: Sequence[_Span], index: int) -> bool:
    """Return whether "one" is a number: in front of a thing, or beside another number."""
    after = spans[index + 1] if index + 1 < len(spans) else None
    others = [span.word for span in spans[max(0, index - 2) : index + 3]]
    return (after is not None and after.is_mask and after.word == THING) or (
        "or" in others and any(word in NUMBERS for word in others)
    )


def _join_things(spans: Sequence[_Span], known: Collection[str]) -> list[_Span] | None:
    """Mask runs of other words as things; None where a word behind a known name belongs to nothing."""
    joined: list[_Span] = []
    for span in spans:
        is_other = not span.is_mask and span.word not in known
        last = joined[-1] if joined else None
        if not (is_other or span.word == THING):
            joined.append(span)
        elif last is None or last.word not in (THING, "?"):
            joined.append(_Span("?" if is_other else THING, span.text, is_mask=True))
        elif last.word == THING and is_other:
            # "the dog doing": a name that is known ends with its last word.
            return None
        else:
            joined[-1] = _Span("?" if is_other else THING, f"{last.text} {span.text}", is_mask=True)
    return [span._replace(word=THING) if span.word == "?" else span for span in joined]


def _join_colors(spans: Sequence[_Span]) -> list[_Span]:
    """Join a color to the thing behind it: "red kayak"."""
    joined: list[_Span] = []
    for span in spans:
        if span.word == THING and joined and joined[-1].word == COLOR:
            joined[-1] = _Span(THING, f"{joined[-1].text} {span.text}", is_mask=True)
        else:
            joined.append(span)
    return joined


def _is_plural(name: str) -> bool:
    # "face with closed eyes" is one face: the name ends before "with".
    last = re.split(r" (?:with|of|in|on|without) ", name)[0].split()[-1]
    return singular(last) != last


def _with_article(name: str) -> str:
    if _is_plural(name):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _complete(form: str, fields: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """Return the fields of all wordings of a form by those of one: articles, verbs, numbers."""
    # Several stars have a color, but the model points at one star.
    singles = set() if form.startswith(("color", "count")) else {"x", "a_x", "y", "stated", "stated_x"}
    singles |= {"stated_xs"} if form == "is there" else set()
    if form in ("position: further", "name: which"):
        singles |= {"first", "second"}
    fields = {field: _to_known(value, names) if field in singles else value for field, value in fields.items()}
    values = {field: fields[field] for field in ("xs", "y", "side", "first", "second") if field in fields}
    thing = fields.get("x") or fields.get("a_x") or ""
    if thing:
        verb = "are" if _is_plural(thing) else "is"
        values |= {"x": thing, "a_x": _with_article(thing), "is_x": verb, "Is_x": verb.title()}
    stated = fields.get("stated") or fields.get("stated_x") or fields.get("stated_xs") or ""
    if stated and form in ("is there", "name: yes or no", "compare", "compare: both", "which image"):
        verb = "Are" if _is_plural(stated) else "Is"
        values |= {"stated": _with_article(stated), "Is_stated": verb, "stated_x": stated, "name": stated}
    elif stated:
        values |= {"stated": stated}
    if "number" in fields:
        number = fields["number"]
        verb = "is" if number == "one" else "are"
        values |= {"stated_xs": f"{number} {fields['xs']}", "Are_stated": verb.title(), "are_stated": verb}
    if form == "position" and "first" not in values:
        values |= {"first": "left", "second": "right"}
    if form == "position: further" and "side" in values:
        values["side"] = FURTHER.get(values["side"], values["side"])
    if form == "name: which":
        values |= {field: _with_article(values[field]) for field in ("first", "second") if field in values}
    return values


def _to_known(name: str, names: Collection[str]) -> str:
    """Return a name in the singular where only that is known: "dogs" as "dog"."""
    return name if name in names else _name_table(tuple(names)).get(_singulars(_tokenize(name)), name)
