"""Which architectures give here what their own forward gives: tiny random models of every kind that transformers has.

    python -m benchmarks.architectures                 measures all, and writes docs/architectures.md
    python -m benchmarks.architectures llama gemma2    prints those alone

Each is made, saved, checked as a backbone of a sweep is, loaded, and measured on held-out examples of `addition`: once
by the path that measures and trains, once by the model's own forward, one example at a time and with log p
in float64.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from jobs.backbone import BackboneError, check_backbone, load_backbone, source_files
from jobs.data import Encoded, tokenise
from jobs.engine import ensure_process_group
from jobs.evaluate import token_yardsticks
from jobs.faults import faults, said
from jobs.hf import import_transformers
from jobs.pretrain import char_tokenizer
from jobs.spec import BackboneSpec
from jobs.task_spec import TaskSpec
from jobs.tasks import load_task
from jobs.weights_check import check_weights

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
LARGEST = 3_000_000  # parameters: a larger one has sizes of its own that are not set here
AGREES = 1e-4  # nats
SHARPER = 20.0  # the head's weights are drawn so much larger, that scales and caps show

# fields of configurations, under all the names that they have; each takes those that it knows
SIZES: dict[str, Any] = {
    "vocab_size": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "lru_width", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    "num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 8, "encoder_attention_heads": 4,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "attention_window_size"), 16),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace", "mamba_n_groups"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("mamba_d_conv", "conv_kernel"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "linear_key_head_dim", "linear_value_head_dim"), 8),
    "mamba_expand": 2, "expand": 2, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
}  # fmt: skip
# what a head does to its product, made to matter
HEADS: dict[str, Any] = {
    "final_logit_softcapping": 2.0, "logits_soft_cap": 2.0, "output_logit_soft_cap": 2.0, "logit_scale": 0.25,
    "logits_scaling": 3.0, "lm_head_multiplier": 0.5, "output_multiplier": 0.5, "logits_mup_width_multiplier": 3.0,
    "dim_model_base": 8,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    **{
        kind: {"num_key_value_heads": 4}  # multi-head latent attention
        for kind in (
            "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_linear",
            "longcat_flash", "minicpm3", "youtu",
        )
    },
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """nll: held-out, nats a token; measured: None where the architecture is refused, for `reason`."""

    kind: str
    architecture: str
    parameters: int
    nll: float
    measured: float | None
    reason: str = ""

    @property
    def outcome(self) -> str:
        if self.measured is None:
            return f"refused: {self.reason.split('. ')[0]}"
        return "equal" if abs(self.measured - self.nll) <= AGREES else "**differs**"


def tiny(kind: str) -> Any:
    """A random model of this model type. Raises BackboneError where none can be made this small."""
    hf = import_transformers()
    torch.manual_seed(0)
    try:
        config = _config(kind)
        with torch.device("meta"):
            empty = hf.AutoModelForCausalLM.from_config(config)
        if (size := sum(p.numel() for p in empty.parameters())) > LARGEST:
            raise BackboneError(f"{kind}: {size} parameters")
        model = hf.AutoModelForCausalLM.from_config(config).eval()
    except faults(RuntimeError, NotImplementedError) as error:
        raise BackboneError(f"{kind}: {said(error)}") from error
    head = model.get_output_embeddings()
    if isinstance(head, torch.nn.Linear):
        with torch.no_grad():
            head.weight.mul_(SHARPER)
    return model


def measure(kind: str, rows: Sequence[Encoded]) -> Row:
    """Both NLLs of one model type. Raises BackboneError where no tiny one of it can be made, or run."""
    model, tokenizer = tiny(kind), char_tokenizer()
    try:
        own = own_nll(model, rows)
    except faults(RuntimeError, NotImplementedError) as error:
        raise BackboneError(f"{kind}: {said(error)}") from error
    found = (kind, type(model).__name__, sum(p.numel() for p in model.parameters()), own)
    with TemporaryDirectory() as place:
        root, folder = Path(place), Path(place) / kind
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        spec = BackboneSpec(path=str(folder))
        try:
            source_files(spec)
            check_backbone(spec, root)
            check_weights(spec, root)
            loaded = load_backbone(spec, root)
            nll = token_yardsticks(loaded, rows, int(tokenizer.pad_token_id), 16, "heldout")["heldout/nll"]
        except BackboneError as error:
            return Row(*found, None, str(error).removeprefix(f"backbone '{kind}': ").replace(f"{folder}", kind))
    return Row(*found, nll)


def own_nll(model: Any, rows: Sequence[Encoded]) -> float:
    """Mean -log p over all target tokens by the model's own forward."""
    parts = []
    for row in rows:
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
        said_of = logits.double().log_softmax(1)[row.prompt_length - 1 : -1]
        parts.append(-said_of.gather(1, ids[0, row.prompt_length :, None])[:, 0])
    return float(torch.cat(parts).mean())


def heldout(count: int = 24) -> list[Encoded]:
    """Examples that are measured: of several lengths, so that batches are padded."""
    return tokenise(char_tokenizer(), load_task(TaskSpec(builtin="addition", heldout_examples=count)).heldout)


def kinds() -> list[str]:
    """Every model type that transformers maps to a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def page(rows: Sequence[Row], left_out: Sequence[str]) -> str:
    equal = sum(row.outcome == "equal" for row in rows)
    refused = [row for row in rows if row.measured is None]
    lines = [
        "# Architectures tried",
        "",
        "Written by `python -m benchmarks.architectures` (" + time.strftime("%Y-%m-%d") + ", transformers "
        f"{version('transformers')}, torch {version('torch')}, CPU, fp32). Do not edit it by hand.",
        "",
        "Each row is a tiny random model of one model type. It was saved, checked and loaded as a backbone of a sweep.",
        "Its held-out NLL on `addition` was measured twice: by the path that measures and trains, and by the model's",
        "own forward, one example at a time, with log p in float64. Heads were drawn 20 times larger than usual, and",
        "scales and soft caps set to values that matter, so that a head that is computed wrongly shows.",
        "",
        f"{len(rows)} architectures: {equal} equal their own forward to {AGREES:g} nats, {len(refused)} are refused",
        f"with the reason, {len(rows) - equal - len(refused)} differ. `sweeper run`, `probe` and `forecast` refuse",
        "what is refused here.",
        "",
        "| model type | class | parameters | own NLL | measured NLL | outcome |",
        "|---|---|---:|---:|---:|---|",
        *(
            f"| `{row.kind}` | {row.architecture} | {row.parameters:,} | {row.nll:.5f} | "
            f"{'' if row.measured is None else f'{row.measured:.5f}'} | {row.outcome} |"
            for row in sorted(rows, key=lambda row: (row.measured is None, row.kind))
        ),
        "",
        f"Not tried, since no model of the type could be made this small with common settings, or run alone: "
        f"{', '.join(f'`{kind}`' for kind in left_out)}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="model types; all, without any")
    given = parser.parse_args().kinds
    ensure_process_group()
    rows, left_out, examples = [], [], heldout()
    for kind in given or kinds():
        try:
            rows.append(measure(kind, examples))
            print(kind, rows[-1].nll, rows[-1].measured, rows[-1].outcome, flush=True)
        except BackboneError as error:
            left_out.append(kind)
            print(f"{kind}: not tried ({error})", flush=True)
    if not given:
        PAGE.write_text(page(rows, left_out), encoding="utf-8")


def _config(kind: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    made = CONFIG_MAPPING[kind]
    known = {field.name for field in dataclasses.fields(made)} | set(made.attribute_map)
    wanted = {name: value for name, value in (SIZES | HEADS).items() if name in known}
    return made(**wanted | OWN.get(kind, {}))


if __name__ == "__main__":
    main()
