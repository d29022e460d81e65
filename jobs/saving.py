"""A trained model as a directory: the trained weights, and the backbone's own configuration as it was.

What is set while a model is loaded, trained and measured (no KV cache, one EOS, no sampling defaults) is nothing that
was learnt, so it is not saved.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import engine as ds
from jobs.backbone import source_file
from jobs.spec import BackboneSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG, GENERATION = "config.json", "generation_config.json"


def write_model(
    engine: Any, tokenizer: PreTrainedTokenizerBase, backbone: BackboneSpec, root: Path, folder: Path
) -> None:
    """What was trained, as safetensors, by rank 0; a collective. Of a backbone with adapters, the adapters alone."""
    if state := ds.full_state_dict(engine):
        engine.module.backbone.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
        precision = str(next(iter(state.values())).dtype).removeprefix("torch.")
        config = source_file(backbone, root, CONFIG) if backbone.lora is None else None
        restore_configs(folder, precision, config, source_file(backbone, root, GENERATION))


def restore_configs(folder: Path, precision: str, config: Path | None, generation: Path | None) -> None:
    """Put the backbone's own files in the place of those that transformers has written into `folder`.

    precision: what the saved weights are in, e.g. float32; the one field that says so is brought in line with them
    config, generation: the backbone's files; None where there is none: adapters have no config.json, and many models no
    generation defaults
    """
    if config is not None:
        fields = json.loads(config.read_text(encoding="utf-8"))
        if _name_precision(fields, precision):
            (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(config, folder / CONFIG)
    if generation is not None:
        shutil.copyfile(generation, folder / GENERATION)
    else:
        (folder / GENERATION).unlink(missing_ok=True)


def _name_precision(fields: dict[str, Any], precision: str) -> bool:
    """Correct `dtype`, under either of its names, here and in configurations inside this one; whether any was wrong."""
    wrong = [name for name in ("dtype", "torch_dtype") if fields.get(name) not in (None, precision)]
    fields.update(dict.fromkeys(wrong, precision))
    inner = [_name_precision(value, precision) for value in fields.values() if isinstance(value, dict)]
    return bool(wrong) or any(inner)
