"""The bundled model's tokenizer: byte-level BPE learnt from what is said about scenes.

It has Qwen2-VL's special tokens. Any text can be encoded (bytes are the last resort); the words of
this world are single tokens, which keeps sequences short enough for a small CPU.
"""

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from abc_embed.inputs import Item
from abc_embed.prompts import messages
from abc_embed.scenes.layout import make_scene
from abc_embed.scenes.questions import caption, questions
from abc_embed.scenes.things import BACKGROUNDS, KIND_WORDS, THINGS

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# One user turn and the generation prompt, as in Qwen2-VL, without its default system turn: 12
# tokens that say nothing about the picture.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen2's way of cutting text into words before BPE.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus(scenes: int = 3000) -> Iterator[str]:
    """Everything said about the first scenes of the training world, and every name on its own."""
    for index in range(scenes):
        scene = make_scene(1, index)
        yield caption(scene)
        for question in questions(scene):
            for text in (question.instruction, *question.paraphrases):
                yield str(messages(Item(image="x", instruction=text))[0]["content"][-1]["text"])
                yield text[0].upper() + text[1:]
            yield question.answer
    for word in (*(t.phrase for t in THINGS), *BACKGROUNDS, *KIND_WORDS.values()):
        yield from [f" {word}", word] * 200
    yield from ["user\n", "assistant\n", "A photo of a"] * 1000


def make_tokenizer(vocabulary: int = 1600) -> Tokenizer:
    """The tokenizer, the same for the same sprites and scene generator."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer
