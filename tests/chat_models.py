# ruff: noqa: E501
"""Tokenizers and chat templates of the kinds that models have, small: for tests of how chats become ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from jobs.hf import import_tokenizers

TEXT = [
    "user assistant system tool weather city",
    "the answer is four, and now? 0 1 2 3 4 5 6 7 8 9",
    "a b c def x y z: ,.!?",
]


def byte_level(*special: str, eos: str = "<eos>", plain: tuple[str, ...] = (), **more: Any) -> Any:
    """A BPE over bytes, as GPT's, Llama 3's and Qwen's. special: added tokens; plain: added, but not special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens([eos, *special])
    made.add_tokens([AddedToken(token, special=False) for token in plain])
    return import_tokenizers().PreTrainedTokenizerFast(tokenizer_object=made, eos_token=eos, pad_token=eos, **more)


def metaspace(*special: str, bos: str | None = "<s>", eos: str = "</s>", appends_eos: bool = False) -> Any:
    """A BPE that marks words with a leading blank, as Llama 2's and Mistral's; begins texts with BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    words.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False))
    model = json.loads(words.to_str())["model"]
    names = [*model["vocab"], *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {name: number for number, name in enumerate(names)}
    merges = [tuple(merge) for merge in model["merges"]]
    made = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = words.pre_tokenizer
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([token for token in (bos, eos, *special) if token])
    behind = f" {eos}" if appends_eos else ""
    before = f"{bos} " if bos else ""
    ids = [(token, made.token_to_id(token)) for token in (bos, eos) if token]
    made.post_processor = processors.TemplateProcessing(single=f"{before}$A{behind}", special_tokens=ids)
    return import_tokenizers().PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=eos, pad_token=eos, unk_token="<unk>", **({"bos_token": bos} if bos else {})
    )


@dataclass(frozen=True)
class ChatModel:
    """A chat model's text side: special tokens, its template, what its generation config declares.

    ends: how a turn of the assistant ends, by its own template and `generate`
    """

    template: str
    ends: str
    special: tuple[str, ...] = ()
    declared: tuple[str, ...] = ()
    eos: str = "<eos>"
    plain: tuple[str, ...] = ()

    def tokenizer(self) -> Any:
        made = byte_level(*self.special, eos=self.eos, plain=self.plain, bos_token=None)
        made.chat_template = self.template
        return made

    def declares(self, tokenizer: Any) -> list[int]:
        return [int(tokenizer.get_vocab()[token]) for token in self.declared]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}"
    "{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.index0 > ns.last %}{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{%- endif %}"
    "{{- m.content }}"
    '{%- for call in m.tool_calls or [] %}{{- \'\n<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{%- if call.function.arguments is string %}{{- call.function.arguments }}{%- else %}"
    "{{- call.function.arguments | tojson }}{%- endif %}{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
CHAT_MODELS = {
    "chatml": ChatModel(CHATML, "<|im_end|>", ("<|im_start|>", "<|im_end|>"), ("<|im_end|>", "<eos>")),
    # a base model that has its chat sibling's template, and whose files know only the end of a text
    "chatml-base": ChatModel(CHATML, "<|im_end|>", ("<|im_start|>", "<|im_end|>"), ("<eos>",)),
    "gemma": ChatModel(
        "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<end_of_turn>", ("<start_of_turn>", "<end_of_turn>"), ("<eos>", "<end_of_turn>"),
    ),
    "phi": ChatModel(  # closes a whole chat with EOS
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        "<|end|>", ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), ("<eos>", "<|assistant|>", "<|end|>"),
    ),
    "glm": ChatModel(  # writes nothing behind a turn: the next one ends it
        "[gMASK]{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "<|user|>", ("[gMASK]", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>"),
        ("<eos>", "<|user|>", "<|observation|>"),
    ),
    "llama3": ChatModel(
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), ("<eos>", "<|eot_id|>"),
    ),
    "llama2": ChatModel(
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' %}"
        " {{ m.content }} {{ eos_token }}{% else %}{{ raise_exception('Only user and assistant roles!') }}{% endif %}"
        "{% endfor %}",
        "<eos>", (), ("<eos>",),
    ),
    "gpt-oss": ChatModel(  # a turn in the middle ends with another token than the last one
        "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
        "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        "<|return|>", ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"),
        ("<|return|>", "<eos>", "<|call|>"),
    ),
    "text": ChatModel(  # ends its turns with a text that is no token
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n### End\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}",
        "### End", (), ("<eos>",),
    ),
    "endless": ChatModel(  # says nothing of the end
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
        "<eos>", (), ("<eos>",),
    ),
    "qwen3": ChatModel(
        QWEN3, "<|im_end|>", ("<|im_start|>", "<|im_end|>"), ("<|im_end|>", "<eos>"),
        plain=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    ),
}  # fmt: skip
