"""Item -> chat messages: the one place that decides what the model is told.

The wording is the published one (paper, section 3; it is part of what the weights were trained
on), so changing a character here changes every vector. The chat template that renders messages
belongs to the checkpoint (chat.py).
"""

from typing import Any, TypeAlias

from abc_embed.inputs import Item, Kind

Message: TypeAlias = dict[str, Any]
"""One chat message as chat templates take it: a role and a list of typed parts."""


def messages(item: Item) -> list[Message]:
    """The chat of one item: a single user turn.

    A text is its text; an image is the image and an empty text; an image with an instruction is
    the image and `Instruction: ...`. A system turn, if any, comes from the chat template.

    >>> messages(Item("a dog"))
    [{'role': 'user', 'content': [{'type': 'text', 'text': 'a dog'}]}]
    """
    if item.kind is Kind.TEXT:
        return [_user({"type": "text", "text": item.text})]
    words = "" if item.kind is Kind.IMAGE else f"Instruction: {item.instruction}"
    return [_user({"type": "image"}, {"type": "text", "text": words})]


def _user(*parts: Message) -> Message:
    return {"role": "user", "content": list(parts)}
