"""What a saved folder says of itself: to people, to a hub, and to sentence-transformers.

The model card is made from what `checkpoint.describe` says. Its head is what the Hugging Face hub
reads: library, tags, licence, base model, data sets, and the figures of benchmark records, if any
are given.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from abc_embed import __version__
from abc_embed.errors import UsageError

LIBRARY = "abc-embed"
TAGS = ("multimodal", "embeddings", "vision-language", "sentence-similarity")

MODULE = "abc_embed.interop.sentence_transformers.AbcModule"
"""The class that an exported folder names. Folders outlive releases: never rename it."""

_HUB_SOURCE = re.compile(r"([\w.-]+/[\w.-]+)(?:@[\w./-]+)?")

_CARD = """\
---
{head}
---

# {title}

One vector of {dim} numbers per item, of unit length: for a text, an image, or an image with an
instruction that says what to look at. Made with `abc-embed`, after ABC (arXiv 2503.00329).

```python
from abc_embed import Embedder, Item

model = Embedder.from_pretrained("{name}")
image = model.embed(Item(image="photo.jpg", instruction="what is the animal on the left?"))
texts = model.embed(["a dog", "a cat"])
print(model.similarity(image, texts))
```
{more}
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

{licence}
"""

_MORE = """
In sentence-transformers; there is no code in the repository, what runs is `abc_embed` as installed:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}", trust_remote_code=True)
model.encode(["a dog", {{"image": "photo.jpg", "text": "what is the animal on the left?"}}])
```

As a server that OpenAI's clients can ask:

```sh
abc-embed serve --model {name}
```
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """What a card says besides what the model itself knows."""

    name: str = "this/folder"
    """Where the model will be found: `owner/name`, or a folder."""
    licence: str | None = None
    """As the hub abbreviates it, like `apache-2.0`; None: it says whose licence holds."""
    datasets: Sequence[str] = ()
    """Names of the data sets that the model was trained on, as on the hub."""
    records: Sequence[Mapping[str, Any]] = field(default=())
    """Records of benchmarks, as `bench.records.read_record` gives them."""


def model_card(description: Mapping[str, Any], facts: CardFacts | None = None) -> str:
    """Markdown for README.md of a saved folder.

    Args:
        description: what `checkpoint.describe` returns.
        facts: None leaves the card general, for a folder that nobody named yet.

    Raises:
        UsageError: a record has no R@1.
    """
    facts = facts or CardFacts()
    source = dict(description["source"])
    on_hub = facts.name != CardFacts().name
    licence = (
        f"The licence is {facts.licence}."
        if facts.licence
        else "The licence is that of the weights named above and of the data they were trained on."
    )
    return _CARD.format(
        **{key: value for key, value in description.items() if key != "training"},
        head=_head(source, facts),
        title=facts.name.rpartition("/")[2]
        if on_hub
        else "An embedding model for images, texts, and images with an instruction",
        name=facts.name,
        more=_MORE.format(name=facts.name) if on_hub else "",
        sources=", ".join(f"{part}: {name}" for part, name in source.items()),
        adapter="on for image + instruction" if description["instruct_adapter"] else "none",
        licence=licence,
        training="".join(map(_training_row, description["training"])),
    )


def sentence_transformers_files() -> dict[str, str]:
    """The two files, by name, that make a folder of ours one of sentence-transformers too."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": MODULE}]
    config = {
        "__version__": {"abc_embed": __version__},
        "default_prompt_name": None,
        "model_type": "SentenceTransformer",
        "prompts": {},
        "similarity_fn_name": "cosine",
    }
    return {
        "modules.json": json.dumps(modules, indent=2) + "\n",
        "config_sentence_transformers.json": json.dumps(config, indent=2) + "\n",
    }


def _head(source: Mapping[str, str], facts: CardFacts) -> str:
    """The YAML that a hub reads."""
    base = _HUB_SOURCE.fullmatch(source.get("base", ""))
    tags = [*TAGS, "sentence-transformers"] if facts.name != CardFacts().name else [*TAGS]
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag="feature-extraction",
        tags=tags,
        base_model=base[1] if base else None,
        datasets=list(facts.datasets) or None,
        license=facts.licence,
        model_name=facts.name if facts.records else None,
        eval_results=[_result(record) for record in facts.records] or None,
    )
    return data.to_yaml().strip()


def _result(record: Mapping[str, Any]) -> EvalResult:
    """The main figure of a record."""
    try:
        r1 = round(float(record["scores"]["joint"]["r1"]), 4)
        benchmark = str(record["benchmark"])
    except (KeyError, TypeError, ValueError) as problem:
        raise UsageError(
            f"a record has no R@1 to put on the card ({problem!r}); give records of abc-embed bench"
        ) from problem
    return EvalResult(
        task_type="image-text-to-text-retrieval",
        dataset_type=benchmark,
        dataset_name=benchmark,
        dataset_revision=record.get("benchmark_hash"),
        metric_type="recall_at_1",
        metric_name="R@1, image + instruction",
        metric_value=r1,
    )


def _training_row(run: Mapping[str, Any]) -> str:
    """One run of training: what, for how long, on what, from what."""
    stage = {"pretrain": "stage 1", "instruct": "stage 2"}.get(run["stage"], run["stage"])
    data = f"{run['records']} ({run['records_fingerprint'][:8]})" if run["records"] else "own data"
    short = run["parent_fingerprint"][:8]
    parent = (run["parent"] or "a base") + (f" ({short})" if short else "")
    return f"| then trained | {stage}, {run['steps']:,} steps on {data}, from {parent} |\n"
