"""The words that the model is told, pinned: they are part of what its weights were trained on."""

from abc_embed.inputs import Item
from abc_embed.prompts import messages


def test_a_text_is_its_text_untouched() -> None:
    content = [{"type": "text", "text": " a dog!\n"}]
    assert messages(Item(" a dog!\n")) == [{"role": "user", "content": content}]


def test_an_image_alone_is_followed_by_an_empty_text() -> None:
    content = [{"type": "image"}, {"type": "text", "text": ""}]
    assert messages(Item(image="x")) == [{"role": "user", "content": content}]


def test_an_instruction_follows_its_image_with_its_word_before_it() -> None:
    content = [{"type": "image"}, {"type": "text", "text": "Instruction: what is left?"}]
    item = Item(image="x", instruction="what is left?")
    assert messages(item) == [{"role": "user", "content": content}]
