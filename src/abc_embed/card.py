"""The model card of a saved folder: for people, written from what `checkpoint.describe` says."""

from collections.abc import Mapping
from typing import Any

_CARD = """\
---
library_name: abc-embed
pipeline_tag: feature-extraction
tags: [multimodal, embeddings, vision-language]
---

# An embedding model for images, texts, and images with an instruction

One vector of {dim} numbers per item, of unit length: for a text, an image, or an image with an
instruction that says what to look at. Made with `abc-embed`, after ABC (arXiv 2503.00329).

```python
from abc_embed import Embedder, Item

model = Embedder.from_pretrained("this/folder")
image = model.embed(Item(image="photo.jpg", instruction="what is the animal on the left?"))
texts = model.embed(["a dog", "a cat"])
print(model.similarity(image, texts))
```

| fact | value |
| --- | --- |
| weights from | {sources} |
{training}| family | {model_type} |
| positions | {positions} |
| pixels of an image | {min_pixels} to {max_pixels} |
| pooling | {pooling} of all tokens |
| temperature | {temperature:.4g} (a score is cosine / temperature) |
| stage-2 adapter | {adapter} |
| prompts | {prompt_hash} |

The licence is that of the weights named above and of the data they were trained on.
"""


def model_card(description: Mapping[str, Any]) -> str:
    """Markdown for README.md of a saved folder, from what `checkpoint.describe` returns."""
    sources = ", ".join(f"{part}: {name}" for part, name in description["source"].items())
    adapter = "on for image + instruction" if description["instruct_adapter"] else "none"
    training = "".join(map(_training_row, description["training"]))
    facts = {**description, "sources": sources, "adapter": adapter, "training": training}
    return _CARD.format(**facts)


def _training_row(run: Mapping[str, Any]) -> str:
    """One run of training: what, for how long, on what, from what."""
    stage = {"pretrain": "stage 1", "instruct": "stage 2"}.get(run["stage"], run["stage"])
    data = f"{run['records']} ({run['records_fingerprint'][:8]})" if run["records"] else "own data"
    parent = f"{run['parent']} ({run['parent_fingerprint'][:8]})" if run["parent"] else "a base"
    return f"| then trained | {stage}, {run['steps']:,} steps on {data}, from {parent} |\n"
