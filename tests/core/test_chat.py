"""Prompts as the checkpoint's template renders them, and tokenizers read without the network."""

import json
import shutil
from pathlib import Path

import golden_parts
import pytest

from abc_embed.chat import Chat, read_chat_template, read_json, read_tokenizer
from abc_embed.errors import CheckpointError
from abc_embed.inputs import Item

RECORDS = json.loads((golden_parts.GOLDEN / "expected_inputs.json").read_text())


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(read_tokenizer(golden_parts.BASE), read_chat_template(golden_parts.BASE))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["id"])
def test_prompts_are_the_published_ones(chat: Chat, record: dict[str, str]) -> None:
    assert chat.render(golden_parts.expected_items()[record["id"]]) == record["prompt"]


def test_a_picture_is_one_placeholder(chat: Chat) -> None:
    assert chat.encode(Item(image="x")).count(chat.image_token_id) == 1
    assert chat.encode(Item("a dog")).count(chat.image_token_id) == 0


def test_the_exclamation_mark_is_token_0_and_stays(chat: Chat) -> None:
    assert chat.encode(Item("!")).count(0) == 1  # the trap: 0 looks like padding


def test_settings_of_the_tokenizer_cannot_cut_or_pad(tmp_path: Path) -> None:
    content = json.loads((golden_parts.BASE / "tokenizer.json").read_text())
    cut = {"max_length": 8, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    content["truncation"] = cut
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    chat = Chat(read_tokenizer(tmp_path), read_chat_template(golden_parts.BASE))
    assert len(chat.encode(Item("a dog"))) == 40


def test_the_template_is_found_in_each_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "oldest"}')
    assert read_chat_template(tmp_path) == "oldest"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "older"}')
    assert read_chat_template(tmp_path) == "older"
    (tmp_path / "chat_template.jinja").write_text("newest")
    assert read_chat_template(tmp_path) == "newest"


def test_what_is_saved_reads_back_the_same(chat: Chat, tmp_path: Path) -> None:
    chat.save(tmp_path)
    again = Chat(read_tokenizer(tmp_path), read_chat_template(tmp_path))
    for item in golden_parts.expected_items().values():
        assert again.encode(item) == chat.encode(item)
    assert again.prompt_hash == chat.prompt_hash


def test_the_prompt_hash_sees_the_template(chat: Chat) -> None:
    other = Chat(chat.tokenizer, chat.template.replace("helpful", "useful"))
    assert other.prompt_hash != chat.prompt_hash


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file .*tokenizer\.json"):
        read_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="no chat template"):
        read_chat_template(tmp_path)
    shutil.copy(golden_parts.BASE / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").chmod(0o644)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged"):
        read_tokenizer(tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="holds no JSON object"):
        read_json(tmp_path / "list.json")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_json(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages[0]['role'] }}", "one placeholder for one picture"),
        ("<|image_pad|><|image_pad|>", "one placeholder for one picture"),
        ("{% for message in messages %}", "cannot be rendered"),
        ("{{ raise_exception('no system turn') }}", "cannot be rendered"),
    ],
)
def test_templates_that_do_not_fit(chat: Chat, template: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        Chat(chat.tokenizer, template)
