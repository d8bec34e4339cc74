"""Messages -> token ids: the checkpoint's chat template and its tokenizer.

A picture is one placeholder here; processor.py repeats it. The tokenizer is read from
`tokenizer.json` alone: that file says all, needs no network and no class per model family, so a
release of transformers cannot change the ids.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from transformers import PreTrainedTokenizerFast

from abc_embed.chat_template import ChatTemplate
from abc_embed.errors import CheckpointError
from abc_embed.inputs import Item
from abc_embed.prompts import messages
from abc_embed.storage.hashing import sha256
from abc_embed.storage.json_files import read_json

IMAGE_TOKEN: Final = "<|image_pad|>"
"""What a chat template of Qwen writes for one picture; another family's files name the id."""


class Chat:
    """Items -> token ids for one checkpoint.

    Raises:
        CheckpointError: tokenizer and template do not make one placeholder per picture.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        template: str,
        image_token_id: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._template = ChatTemplate(template)
        # An item is embedded whole or refused: no setting of the tokenizer may cut or pad it.
        self._encoder = tokenizer.backend_tokenizer
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self.max_token_id: int = max(self._encoder.get_vocab().values(), default=-1)
        """The largest id that a text can have."""
        if image_token_id is None:
            image_token_id = self._encoder.token_to_id(IMAGE_TOKEN)
        if type(image_token_id) is not int or not 0 <= image_token_id <= self.max_token_id:
            raise CheckpointError(
                f"the tokenizer has no {IMAGE_TOKEN} (image_token_id is {image_token_id!r}); "
                "use the tokenizer that belongs to the model"
            )
        self.image_token_id = image_token_id
        self.image_token: str = self._encoder.id_to_token(self.image_token_id) or IMAGE_TOKEN
        if self.encode(Item(image="x")).count(self.image_token_id) != 1:
            raise CheckpointError(
                "the chat template does not make one placeholder for one picture; "
                "use the template that belongs to the model"
            )

    @property
    def template(self) -> str:
        """The chat template as it stands in its file."""
        return self._template.source

    def render(self, item: Item) -> str:
        """The prompt of an item as text, generation prompt included, one placeholder a picture.

        Raises:
            CheckpointError: the template is damaged, or needs too much time or memory.
        """
        return self._template.render(messages(item), **self.tokenizer.special_tokens_map)

    def encode(self, item: Item) -> list[int]:
        """The token ids of an item's prompt, with one placeholder for a picture."""
        prompt = self.render(item)
        with _guarded("the tokenizer"):
            ids: list[int] = self._encoder.encode(prompt, add_special_tokens=False).ids
        return ids

    def first_words(self, text: str, fewer: int) -> str:
        """The text without its last `fewer` tokens, and maybe one word less."""
        with _guarded("the tokenizer"):
            encoding = self._encoder.encode(text, add_special_tokens=False)
        kept = len(encoding.ids) - fewer
        return text[: encoding.offsets[kept - 1][1]] if kept > 0 else ""

    @property
    def prompt_hash(self) -> str:
        """A short hash of the three kinds of prompt as they are rendered."""
        samples = (Item("text"), Item(image="x"), Item(image="x", instruction="text"))
        rendered = "\0".join(map(self.render, samples))
        return sha256(rendered)[:16]

    def save(self, folder: Path) -> None:
        """Write the tokenizer and the template into an existing folder."""
        self.tokenizer.save_pretrained(str(folder))
        (folder / "chat_template.jinja").write_text(self.template, encoding="utf-8")


def read_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, from its `tokenizer.json` alone, without the network.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; get the model's files again")
    with _guarded(str(path)):
        return PreTrainedTokenizerFast(tokenizer_file=str(path))


@contextmanager
def _guarded(name: str) -> Iterator[None]:
    """Whatever the tokenizers library, in Rust, makes of a damaged file, as one error."""
    try:
        yield
    except BaseException as error:
        # A panic of Rust is no Exception, so that it ends a program; here it is a damaged file.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{name} is damaged ({why:.200}); get the file again") from None


def read_chat_template(folder: str | Path) -> str:
    """The chat template of a folder, from whichever of three files holds it.

    Raises:
        CheckpointError: none of them does.
    """
    folder = Path(folder)
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); get it again") from None
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json(folder / name, required=False).get("chat_template")
        if isinstance(template, str):
            return template
    raise CheckpointError(f"there is no chat template in {folder}; get the model's files again")
