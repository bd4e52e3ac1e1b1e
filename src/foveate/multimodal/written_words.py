"""Answers to questions about written words: which questions these are, and what a text reader's words become.

A language model as small as ours reads nothing. Where its folder has a character head (`foveate.vision.text_reader`),
the head answers instead, about any picture, and says so where it finds nothing that it can read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from foveate.multimodal.answers import CHARACTER_HEAD, Answer
from foveate.records.conversations import IMAGE
from foveate.records.images import ImageInput, encode_input
from foveate.records.rows import clean_text
from foveate.records.shapes import Shape, enclosing_box
from foveate.vision.text_reader import ReadWord, TextReader

NOTHING_TO_READ = "no readable text was found"

_TEXT = r"(?:text|words?|letters?|lettering|writing|inscription)"
_SIGN = (
    rf"(?:{_TEXT}|(?:sign(?:post)?|label|poster|plate|board|banner|note|sticker|billboard|placard|notice|headline|"
    r"title|image|picture|photo|photograph)s?)"
)
_THE = r"(?:(?:the|this|that|these|those|any|all|all the|every) )?"
# "On the red sign", "here", "in <1>", "above the dog": where the words are; the head reads them all. At most four,
# since one may contain the next: without a bound the ways to split a long question grow exponentially.
_PLACE = (
    r"(?: (?:here|there|aloud|out|(?:to|for) me|"
    r"(?:in|on|of|at|within|inside|above|below|under|by) [\w <>'-]{1,40})){0,4}"
)
_POLITE = (
    r"(?:(?:please|hey|hi|hello|ok|so|now|kindly)[ ,]+)*(?:(?:can|could|would|will) (?:you|we) (?:please |kindly )?)?"
)
_TELL = r"(?:(?:tell|show) me )?"
_FORMS = (
    # What does the red sign say? What does the label on the bottle say? What does <1> say?
    rf"(?:what|which {_TEXT}) (?:does|do|did) "
    rf"(?:{_THE}(?:[\w-]+ ){{0,2}}{_SIGN}(?: (?:on|in|of) [\w -]{{1,40}}?)?|it|they|this|that|<1>) "
    rf"(?:say|read|spell){_PLACE}",
    rf"what {_THE}(?:{_SIGN}|it) (?:says?|reads?){_PLACE}",
    # What is written on the sign? What text is written here? Which word is it?
    rf"what(?:'s| is| are| was) (?:the )?(?:{_TEXT} )?(?:written|printed|spelled)(?: down)?{_PLACE}",
    rf"(?:what|which)(?:'s| is| are)? (?:the )?{_TEXT}(?: (?:is|are|do|does|can|you|i|we|see|read|it|this|that|there|"
    rf"here|shown|visible|written|printed|have|has|contain|show|{_THE}(?:sign|image|picture|photo))){{0,8}}{_PLACE}",
    # Read the sign. Transcribe all text in the image.
    rf"(?:read|transcribe|spell|decipher)(?: out)?(?: me)? (?:{_THE}(?:[\w-]+ )?{_SIGN}|it|this|that|<1>|what it says)"
    rf"(?: says?)?{_PLACE}",
)
_QUESTION = re.compile(rf"{_POLITE}{_TELL}(?:{'|'.join(_FORMS)})(?:[ ,]+(?:please|thanks|thank you))?[ .?!]*")


def asks_to_read(question: str) -> bool:
    """Return whether a question is about the words that are written in an image.

    >>> asks_to_read("What does the sign say?"), asks_to_read("Could you read the text on the left, please?")
    (True, True)
    >>> asks_to_read("What is on the sign?"), asks_to_read("Describe the word.")
    (False, False)
    """
    text = clean_text(question.replace(IMAGE, " ")).casefold().replace("\u2019", "'")
    return bool(_QUESTION.fullmatch(" ".join(text.split())))


def answer_words(reader: TextReader, images: Sequence[ImageInput], regions: Sequence[Shape] = ()) -> Answer:
    """Read the words of images.

    Args:
        regions: words of the last image whose middle lies in none of their boxes are left out.
    """
    read = [reader.read(encode_input(image)) for image in images]
    read[-1] = _keep_inside(read[-1], regions)
    texts = [" ".join(word.text for word in words) or NOTHING_TO_READ for words in read]
    words = [(number, word) for number, of_image in enumerate(read) for word in of_image]
    return Answer(
        texts[0] if len(texts) == 1 else "\n".join(f"image {number}: {text}" for number, text in enumerate(texts, 1)),
        boxes=tuple(word.box for _, word in words),
        images=tuple(number for number, _ in words),
        phrases=tuple(word.text for _, word in words),
        box_scores=tuple(word.score for _, word in words),
        source=CHARACTER_HEAD,
    )


def _keep_inside(words: Sequence[ReadWord], regions: Sequence[Shape]) -> list[ReadWord]:
    boxes = [box for box in map(enclosing_box, regions) if box is not None]

    def is_inside(word: ReadWord) -> bool:
        x, y = (word.box.x1 + word.box.x2) / 2, (word.box.y1 + word.box.y2) / 2
        return any(box.x1 <= x <= box.x2 and box.y1 <= y <= box.y2 for box in boxes)

    return [word for word in words if not regions or is_inside(word)]
