"""Chats: turns as a chat template reads them, in a form that can be compared, hashed and kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class Turn:
    """One message of a chat.

    content: its text; empty where the turn has none of its own (it only calls tools)
    more:    JSON of what else the template may read ({"tool_calls": [...]}), keys as the data order them; empty: none
    """

    role: str
    content: str
    more: str = ""

    @classmethod
    def of(cls, role: str, content: str, more: Mapping[str, Any] | None = None) -> Turn:
        return cls(role, content, json.dumps(more) if more else "")

    @property
    def calls_tools(self) -> bool:
        return bool(self.more) and bool(json.loads(self.more).get("tool_calls"))

    def message(self) -> dict[str, Any]:
        """As `apply_chat_template` takes it."""
        return {"role": self.role, "content": self.content} | (json.loads(self.more) if self.more else {})
