"""Answers by vLLM, where the extra `vllm` is installed. Written against vLLM 0.32 and 0.33.

docs/scores.md says what of it was run.

One engine a process, in this process; before every evaluation the model's weights, adapters added, replace its own in
place. vLLM draws from a generator of its own, so sampled answers are others than transformers', of the same
distribution; greedy ones are the same but where rounding decides between two tokens.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from jobs.answers import Answer, Reading
from jobs.evaluate import Answerer
from jobs.spec import Execution, TrialSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Engine:
    """vLLM's LLM; made anew where a trial wants a model of another shape, else its weights are replaced in place."""

    def __init__(self) -> None:
        self.llm: Any = None
        self.made_for: tuple[Any, ...] = ()

    def load(self, model: PreTrainedModel, stops: list[int], execution: Execution) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM

        what = (model.config.to_json_string(), tuple(stops), str(model.dtype), execution.vllm_memory)
        with tempfile.TemporaryDirectory(prefix="vllm-") as folder:
            _write(model, stops, Path(folder))
            if self.made_for == what:
                self.llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
                return
            self.llm = None  # its memory first
            self.llm = LLM(
                model=folder, skip_tokenizer_init=True, dtype=str(model.dtype).removeprefix("torch."),
                enforce_eager=True, gpu_memory_utilization=execution.vllm_memory, generation_config="vllm",
            )  # fmt: skip
            self.made_for = what


_ENGINE = _Engine()


def _write(model: PreTrainedModel, stops: list[int], folder: Path) -> None:
    """The model as a directory of its own; adapters are added to the weights beside them, in a copy.

    stops: ids that end an answer, as with transformers; vLLM would also end at the configuration's own.
    """
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    deltas = {n: m.get_delta_weight("default") for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    for name, tensor in model.state_dict().items():
        module = name.removesuffix(".base_layer.weight")
        if "lora_" in name or tensor.data_ptr() in seen:  # tied weights are one
            continue
        seen.add(tensor.data_ptr())
        whole = tensor + deltas[module].to(tensor.dtype) if module in deltas and module != name else tensor
        tensors[name.replace(".base_layer.", ".")] = whole.detach().cpu().contiguous()
    config = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"} | {"eos_token_id": stops}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def vllm_answerer(model: PreTrainedModel, reading: Reading, trial: TrialSpec) -> Answerer:
    """See jobs.evaluate.Answerer. Texts that end an answer (evaluation.stop) cut it here, after it was generated."""
    from vllm import SamplingParams

    stops, longest = list(reading.stops), trial.evaluation.max_new_tokens
    _ENGINE.load(model, stops, trial.execution)

    def answer(prompts: Sequence[Sequence[int]], samples: int, temperature: float, seed: int) -> list[Answer]:
        each = [
            SamplingParams(
                n=max(samples, 1), temperature=temperature if samples else 0.0, top_p=1.0, top_k=0, max_tokens=longest,
                seed=(seed + 7919 * place) % 2**31, stop_token_ids=stops, detokenize=False,
            )
            for place in range(len(prompts))
        ]  # fmt: skip
        said = _ENGINE.llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], each, use_tqdm=False)
        return [reading.answer(list(one.token_ids)) for request in said for one in request.outputs]

    return answer
