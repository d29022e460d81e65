"""What ends an answer, read from a model directory's small files alone: for a plan, which loads no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs.ending import BY_CONFIG, BY_EOS, BY_SETTING, BY_TEMPLATE, end_of_turn, sentence
from jobs.rendering import plain_tags


def ending_in_files(folder: Path, chat_template: str | None, given: Sequence[str]) -> str | None:
    """The sentence that jobs.ending.Ending has; None where the files do not say.

    chat_template, given: of the backbone, instead of the files' own
    """
    if given:
        return sentence(given[0], BY_SETTING, given)
    files = Files(folder, chat_template)
    declared = [files.tokens[one] for one in files.declared if one in files.tokens]
    words = list(dict.fromkeys([*([files.eos] if files.eos else []), *declared]))
    found = end_of_turn(files, words) if files.chat_template is not None else None
    if found is not None:
        return sentence(found.strip(), BY_TEMPLATE, [found.strip(), *words])
    return sentence(words[0], BY_EOS if files.eos else BY_CONFIG, words) if words else None


class Files:
    """The part of a tokenizer that writes chats, from tokenizer_config.json, tokenizer.json and the template."""

    def __init__(self, folder: Path, chat_template: str | None) -> None:
        self.folder = folder
        self.config = _json(folder / "tokenizer_config.json")
        self.chat_template = chat_template or self._template()

    def _template(self) -> str | None:
        file = self.folder / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        own = self.config.get("chat_template")
        if isinstance(own, list):  # several, by name
            own = next((one.get("template") for one in own if one.get("name") == "default"), None)
        return own if isinstance(own, str) else None

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Added tokens by id."""
        listed = self.config.get("added_tokens_decoder")
        if listed:
            return {int(number): str(token["content"]) for number, token in listed.items()}
        added = _json(self.folder / "tokenizer.json").get("added_tokens", [])
        return {int(token["id"]): str(token["content"]) for token in added}

    @property
    def eos(self) -> str | None:
        return _text(self.config.get("eos_token"))

    @property
    def declared(self) -> list[int]:
        """eos_token_id of the generation config, else of the config."""
        configs = (_json(self.folder / name).get("eos_token_id") for name in ("generation_config.json", "config.json"))
        found = next((one for one in configs if one is not None), None)
        return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, int)]

    @property
    def added_tokens_decoder(self) -> dict[int, str]:
        return self.tokens

    @property
    def all_special_tokens(self) -> list[str]:
        return [self.eos] if self.eos else []

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        return str(chat_template or self.chat_template)

    def apply_chat_template(
        self, messages: Any, *, tools: Any, chat_template: str | None, tokenize: bool, add_generation_prompt: bool,
        **kwargs: Any,
    ) -> str:  # fmt: skip
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
            return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = raise_exception
        named = {name: _text(self.config.get(name)) for name in self.config if name.endswith("_token")}
        template = environment.from_string(plain_tags(self.get_chat_template(chat_template)))
        return template.render(
            messages=messages, tools=tools, add_generation_prompt=add_generation_prompt,
            **{name: text for name, text in named.items() if text}, **kwargs,
        )  # fmt: skip


def _text(token: Any) -> str | None:
    """Of a token as written in tokenizer_config.json: its text, or a mapping with its content."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _json(file: Path) -> dict[str, Any]:
    """Empty where there is no such file, or none that can be read: a run says so."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
