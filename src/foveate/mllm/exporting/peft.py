"""An adapter folder of PEFT: the LoRA of the language model."""

from __future__ import annotations

from foveate.core.errors import UserError
from foveate.language.lora import lora_layers, save_lora
from foveate.mllm.export import ExportReport, Job
from foveate.multimodal.settings import SourceSettings

_LOADING = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("its language model"), "this folder")
```"""
_NOTE = "The adapter holds the language model's pairs alone: without tower and connector it reads no images."


def export(job: Job) -> ExportReport:
    """Write the pairs as PEFT reads them.

    Raises:
        UserError: the language model has none.
    """
    language_model = job.loaded.model.language_model
    if not dict(lora_layers(language_model)):
        raise UserError("language: it has no LoRA, which --to peft writes; expected a model that was tuned with LoRA")
    settings = job.loaded.model.settings.language
    source, revision = (settings.source, settings.revision) if isinstance(settings, SourceSettings) else (None, None)
    save_lora(language_model, job.folder, source=source, revision=revision)
    return ExportReport(_LOADING, notes=[_NOTE])
