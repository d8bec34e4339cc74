"""Model folders: published parts, plain bases and our own; strict loading, safe saving.

Strict, as a LoRA file whose keys match nothing gives a model that runs and is wrong. Every tensor
of every file must find its place, and every place its tensor, or an error names the key.

A folder of ours:
    config.json, model.safetensors   the backbone, as transformers reads it; stage 1 merged
    head.safetensors                 head and temperature
    instruct_adapter/                stage 2 in PEFT's format, if there is one
    abc.json                         what `describe` says
    vectors.json                     widths and ranges for vectors stored small, if any are known
    preprocessor_config.json, chat_template.jinja, tokenizer files    written by `Processor.save`
    README.md                        model card
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError

from abc_embed import hub
from abc_embed.adapters import (
    PRETRAIN_ADAPTER,
    adapter_parameters,
    attach_stage1,
    attach_stage2,
    detach,
    load_adapter,
    merge_stage1,
    save_adapter,
    set_trainable,
)
from abc_embed.backbone import parse_config
from abc_embed.card import model_card
from abc_embed.errors import AbcError, CheckpointError, OutOfMemoryError, OutputError
from abc_embed.head import HIDDEN_WIDTH
from abc_embed.inputs import Item
from abc_embed.lean import PatchProjection
from abc_embed.model import INSTRUCT_ADAPTER, AbcModel
from abc_embed.novelty import KnownPictures
from abc_embed.pixels import ImageBudget
from abc_embed.processor import Positions, Processor
from abc_embed.storage.folders import atomic_folder, content_of, recover_folder
from abc_embed.storage.json_files import atomic_write_json, read_json, write_json
from abc_embed.vectors import VectorFacts
from abc_embed.weights import (
    HEAD_KEYS,
    PEFT_PREFIX,
    Weights,
    fill_slots,
    load_backbone,
    open_weights,
    write_tensors,
)

FORMAT = 1
"""Version of our folder's layout."""
VECTORS_FILE = "vectors.json"
RUN_STATE = "state.json"
"""In a checkpoint of a training run: where it stands, and its configuration."""

Loaded = tuple[AbcModel, Processor]
Device = torch.device | str


def load(
    name: str,
    *,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
) -> Loaded:
    """A model by name: "bundled", a folder that we saved, its like on a hub, or a published name.

    The model comes frozen and in evaluation mode. `dtype` is the backbone's; the files may hold
    another, and head and adapters are float32 in any case.

    Raises:
        UnknownModelError, OfflineError: there is no such model, or it cannot be fetched.
        CheckpointError: the files are damaged or do not fit; the message says which.
    """
    if hub.is_remote_folder(name):
        folder, source = hub.fetch_model(name)
        model, processor = load_folder(folder, device=device, dtype=dtype, attn=attn)
        model.source["repository"] = source
        return model, processor
    recipe = hub.resolve(name)
    if isinstance(recipe, Path) and (recipe / RUN_STATE).is_file():
        return load_checkpoint(recipe, device=device, dtype=dtype, attn=attn)
    if isinstance(recipe, Path):
        return load_folder(recipe, device=device, dtype=dtype, attn=attn)
    return load_published(
        recipe.base, recipe.pretrain, recipe.instruct, device=device, dtype=dtype, attn=attn
    )


def load_published(
    base: str,
    pretrain: str,
    instruct: str | None = None,
    *,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
) -> Loaded:
    """A base and adapters in the published layout; stage 1 is merged, stage 2 stays an adapter.

    Each part is a folder or a hub name (see hub.py). Positions are sequential, as these weights
    were trained (paper, trap 1), and the pixel budget is the published one, whatever the base says.

    Raises as `load`.
    """
    parts = {"pretrain": pretrain} | ({"instruct": instruct} if instruct is not None else {})
    located = {stage: hub.locate(part, hub.ADAPTER_FILES) for stage, part in parts.items()}
    published = ImageBudget()
    model, processor = load_base(
        base,
        positions="sequential",
        pixels=(published.min_pixels, published.max_pixels),
        device=device,
        dtype=dtype,
        attn=attn,
        head_width=_head_width(located["pretrain"][0]),
    )
    for stage, (folder, source) in located.items():
        load_adapter(model, stage, folder)
        model.source[stage] = source
        if stage == PRETRAIN_ADAPTER:
            merge_stage1(model)
    return _frozen(model), processor


def load_base(
    base: str,
    *,
    positions: Positions | None = None,
    pixels: tuple[int | None, int | None] = (None, None),
    head_width: int = HIDDEN_WIDTH,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
) -> Loaded:
    """A plain base of any known family with a fresh head: where training starts, no embedder yet.

    `base` is a folder or a hub name; its output layer is left out. `pixels` is the (smallest,
    largest) picture in pixels; None takes the base's own.

    Raises as `load`.
    """
    folder, source = hub.locate(base, hub.BASE_FILES)
    config = parse_config(read_json(folder / "config.json"))
    backbone = load_backbone(open_weights(folder), config, dtype=dtype, device=device, attn=attn)
    model = AbcModel(backbone, head_width=head_width).to(device)
    model.source["base"] = source
    processor = Processor.from_folder(
        folder, positions=positions, min_pixels=pixels[0], max_pixels=pixels[1]
    )
    check_parts(model, processor, folder)
    return _frozen(model), processor


def load_folder(
    folder: Path,
    *,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
) -> Loaded:
    """A folder that `save` wrote.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit.
    """
    try:
        recover_folder(folder)
    except OSError as problem:
        raise CheckpointError(
            f"{folder} was left half replaced and cannot be mended ({problem}); make it writable"
        ) from problem
    if not (folder / "abc.json").is_file():
        raise CheckpointError(
            f"{folder} holds no model of ours (no abc.json); a plain base with adapters is loaded"
            " with Embedder.from_adapters"
        )
    description = _read_description(folder / "abc.json")
    head = open_weights(folder, "head")
    _check_head_width(description["head_width"], head, folder)
    config = parse_config(read_json(folder / "config.json"))
    backbone = load_backbone(open_weights(folder), config, dtype=dtype, device=device, attn=attn)
    model = AbcModel(backbone, head_width=description["head_width"])
    fill_slots({name: (name, model.get_parameter(name)) for _, name in HEAD_KEYS}, head)
    model.to(device)
    processor = Processor.from_folder(folder)
    check_parts(model, processor, folder)
    if description["instruct_adapter"]:
        load_adapter(model, INSTRUCT_ADAPTER, folder / "instruct_adapter")
    model.source = description["source"]
    model.provenance = description.get("training", [])
    model.vector_facts = _read_vector_facts(folder / VECTORS_FILE)
    return _frozen(model), processor


@torch.no_grad()
def check_parts(model: AbcModel, processor: Processor, folder: Path) -> None:
    """Try a model on one visual token: files that do not go together are found before any work.

    Raises:
        CheckpointError: a picture or a token that the files make is none that the model takes.
        OutOfMemoryError: the device has no memory left.
    """
    vlm, image = model.backbone.vlm, processor.image
    (patches,) = (part for part in vlm.modules() if isinstance(part, PatchProjection))
    read = (3 * image.temporal_patch_size * image.patch_size**2, image.merge_size)
    needed = (math.prod(patches.weight.shape[1:]), model.backbone.merge_size)
    if read != needed:
        raise CheckpointError(
            f"{folder / 'preprocessor_config.json'}: patch_size, merge_size and temporal_patch_size"
            f" make {read[0]} values of a patch and merge {read[1]} a side, and the model takes"
            f" {needed[0]} and merges {needed[1]}; get the model's files again"
        )
    rows = len(vlm.get_input_embeddings().weight)
    if processor.chat.max_token_id >= rows or processor.image_token_id >= rows:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} has token {processor.chat.max_token_id}, and the model"
            f" knows {rows}; use the tokenizer that belongs to the model"
        )
    if processor.image_token_id != vlm.config.image_token_id:
        raise CheckpointError(
            f"{folder / 'config.json'}: image_token_id is {vlm.config.image_token_id}, and the"
            f" tokenizer's is {processor.image_token_id}; get the model's files again"
        )
    picture = np.zeros((image.factor, image.factor, 3), dtype=np.uint8)
    item = Item(image=picture)
    try:
        batch = processor.collate([processor.features(item, max_pixels=image.smallest_pixels)])
        model.eval()(batch.to(model.device))
    except (torch.OutOfMemoryError, MemoryError) as problem:
        raise OutOfMemoryError(f"{model.device} has no memory left beside the model") from problem
    except AbcError as problem:
        raise CheckpointError(f"{folder} cannot embed a picture: {problem}") from problem
    except Exception as problem:
        why = " ".join(str(problem).split())
        raise CheckpointError(
            f"{folder / 'config.json'} describes a model that cannot compute"
            f" ({type(problem).__name__}: {why:.200}); get the model's files again"
        ) from problem


def _check_head_width(width: int, head: Weights, folder: Path) -> None:
    key = HEAD_KEYS[0][1]
    if key in head.names and head.shape(key)[:1] != (width,):
        raise CheckpointError(
            f"{folder / 'abc.json'}: head_width is {width}, and {key!r} of head.safetensors has"
            f" shape {head.shape(key)}; get the model's files again"
        )


def load_checkpoint(
    folder: Path,
    *,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
) -> Loaded:
    """What a training run had reached: its base, with the weights of a checkpoint (see `train`).

    Stage 1 is merged, as in the model that the run ends with; the adapter of stage 2 stays one.

    Raises:
        CheckpointError: a file is missing or damaged, or the base is another one by now.
        UnknownModelError: the base is not where it was.
    """
    run = _read_run(folder)
    options: Any = {"device": device, "dtype": dtype, "attn": attn}
    if hub.is_embedder(run.base):
        model, processor = load(run.base, **options)
    else:
        model, processor = load_base(
            run.base, pixels=run.pixels, head_width=run.head_width, **options
        )
    if model.has_instruct_adapter:
        detach(model)
    attach = attach_stage1 if run.stage == PRETRAIN_ADAPTER else attach_stage2
    attach(model, run.rank, run.alpha, 0.0)
    model.to(device)
    set_trainable(model, run.stage)
    slots = {name: (name, p) for name, p in model.named_parameters() if p.requires_grad}
    weights = open_weights(folder, "trained")
    with torch.no_grad():
        if run.fixed_temperature is not None:
            slots.pop("temperature.temp")[1].fill_(run.fixed_temperature)
        fill_slots(slots, weights)
    if run.stage == PRETRAIN_ADAPTER:
        merge_stage1(model)
    model.provenance = run.provenance
    return _frozen(model), processor


@dataclass(frozen=True, slots=True)
class _Run:
    """What a checkpoint says of its run, as far as its model follows from it."""

    stage: Literal["pretrain", "instruct"]
    base: str
    head_width: int
    pixels: tuple[int | None, int | None]
    rank: int
    alpha: int
    fixed_temperature: float | None
    """τ where stage 1 did not train it."""
    provenance: list[dict[str, Any]]


def _read_run(folder: Path) -> _Run:
    """The run of a checkpoint; its base must be what it was."""
    state = read_json(folder / RUN_STATE)
    try:
        config, known = state["config"], state.get("fingerprint", {}).get("base", "")
        smallest, largest = config["model"]["pixels"]
        temperature = config["temperature"]
        fixed = config["stage"] == PRETRAIN_ADAPTER and not temperature["learn"]
        run = _Run(
            stage=config["stage"],
            base=config["model"]["base"],
            head_width=config["model"]["head_width"],
            pixels=(smallest or None, largest or None),
            rank=config["adapter"]["rank"],
            alpha=config["adapter"]["alpha"],
            fixed_temperature=temperature["start"] if fixed else None,
            provenance=state.get("training", []),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise CheckpointError(f"{folder / RUN_STATE} is damaged ({problem!r})") from None
    if not run.base:
        raise CheckpointError(
            f"{folder} does not say what it was trained from; only checkpoints of runs that a "
            "configuration began can be loaded"
        )
    if known and known != hub.fingerprint(run.base):
        raise CheckpointError(
            f"{run.base} has other content than when {folder} was trained from it; put it back"
        )
    return run


def describe(model: AbcModel, processor: Processor) -> dict[str, Any]:
    """What decides a vector, as JSON values: the content of abc.json, and more for reading."""
    return {
        "format": FORMAT,
        "source": dict(model.source),
        "training": list(model.provenance),
        "model_type": model.backbone.vlm.config.model_type,
        "dim": model.dim,
        "head_width": model.head.linear1.out_features,
        "pooling": "mean",
        "temperature": model.temperature.value,
        "instruct_adapter": model.has_instruct_adapter,
        "prompt_hash": processor.prompt_hash,
        **processor.settings(),
        **({"weights": model.backbone.weights} if model.backbone.weights else {}),
    }


def save(
    model: AbcModel,
    processor: Processor,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a self-contained folder; `load` of it gives the same vectors, bit for bit.

    `dtype` converts the weights (float16 halves the files, and the vectors then differ); None keeps
    each as it is. `extra` are text files to put beside them, by name. All is written aside and
    renamed at the end, so a broken-off save leaves nothing that looks finished. A model of ours in
    `folder` is replaced; other files are not touched.

    Raises:
        OutputError: the folder cannot be written, or holds something else.
        CheckpointError: a stage-1 adapter is not merged yet.
    """
    folder = Path(folder)
    if model.backbone.weights:
        raise OutputError(
            f"a model with {model.backbone.weights} weights is not saved: load it without, save "
            "that, and say weights= when it is loaded"
        )
    if any(True for _ in adapter_parameters(model, PRETRAIN_ADAPTER)):
        raise CheckpointError("the stage-1 adapter is not merged; call merge_stage1 before saving")
    try:
        recover_folder(folder)
        if folder.exists() and not _replaceable(folder):
            raise OutputError(f"{folder} exists and is no model of ours; choose another folder")
        with atomic_folder(folder) as partial:
            write_files(model, processor, partial, dtype)
            for name, content in (extra or {}).items():
                (partial / name).write_text(content, encoding="utf-8")
    except (OSError, SafetensorError) as problem:  # which of the two a full disk is, varies
        raise OutputError(f"the model cannot be saved to {folder}: {problem}") from problem


def _replaceable(folder: Path) -> bool:
    return folder.is_dir() and ((folder / "abc.json").is_file() or not content_of(folder))


def write_files(
    model: AbcModel, processor: Processor, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Write the files of a model into a folder that is there; `save` does it safely.

    Raises:
        OSError, SafetensorError: they cannot be written.
    """
    vlm = model.backbone.vlm
    config = vlm.config.to_dict() | {"architectures": [type(vlm).__name__]}
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = str(dtype or model.dtype).removeprefix("torch.")
    write_json(folder / "config.json", config)
    # PEFT renames the layers it wraps (`q_proj.base_layer.weight`) and adds its own.
    tensors = {
        key.replace(".base_layer.", "."): tensor
        for key, tensor in vlm.state_dict().items()
        if ".lora_" not in key
    }
    write_tensors(folder / "model.safetensors", tensors, dtype)
    head = {ours: model.state_dict()[ours] for _, ours in HEAD_KEYS}
    write_tensors(folder / "head.safetensors", head, dtype)
    if model.has_instruct_adapter:
        save_adapter(model, INSTRUCT_ADAPTER, folder / "instruct_adapter", dtype)
    processor.save(folder)
    description = describe(model, processor)
    (folder / "README.md").write_text(model_card(description), encoding="utf-8")
    write_json(folder / "abc.json", description)
    facts = model.vector_facts
    if facts.matryoshka or facts.ranges or facts.known is not None:
        write_vector_facts(folder, facts)


def write_vector_facts(folder: Path, facts: VectorFacts) -> Path:
    """Write what is known of a model's vectors into its folder, whole or not at all; the file.

    Raises:
        OutputError: it cannot be written.
    """
    ranges = {str(width): values.tolist() for width, values in facts.ranges.items()}
    path = folder / VECTORS_FILE
    values: dict[str, object] = {"matryoshka": facts.matryoshka, "ranges": ranges}
    if facts.known is not None:
        values["known_pictures"] = facts.known.as_json()
    atomic_write_json(path, values)
    return path


_RUN_FACTS = {"stage", "steps", "records", "records_fingerprint", "parent", "parent_fingerprint"}


def _read_description(path: Path) -> dict[str, Any]:
    description = read_json(path)
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {description.get('format')!r} and this version reads {FORMAT};"
            " use the version of abc-embed that wrote it, or a newer one"
        )
    kinds = {"source": dict, "head_width": int, "instruct_adapter": bool, "pooling": str}
    for key, kind in kinds.items():
        if type(description.get(key)) is not kind:
            raise CheckpointError(f"{path}: {key!r} is missing or no {kind.__name__}")
    if not all(isinstance(name, str) for name in description["source"].values()):
        raise CheckpointError(f"{path}: 'source' holds something else than names")
    runs = description.get("training", [])
    if not isinstance(runs, list) or not all(
        isinstance(run, dict) and run.keys() >= _RUN_FACTS for run in runs
    ):
        raise CheckpointError(f"{path}: 'training' does not say how the model was trained")
    if description["pooling"] != "mean":
        raise CheckpointError(
            f"{path}: pooling {description['pooling']!r} is not known; it is 'mean'"
        )
    return description


def _read_vector_facts(path: Path) -> VectorFacts:
    if not path.is_file():
        return VectorFacts()
    facts = read_json(path)
    try:
        ranges = {int(w): np.array(rows, np.float32) for w, rows in facts["ranges"].items()}
        widths = tuple(int(width) for width in facts["matryoshka"])
        pictures = facts.get("known_pictures")
        known = None if pictures is None else KnownPictures.from_json(pictures)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as problem:
        raise CheckpointError(
            f"{path} does not hold 'matryoshka' (widths) and 'ranges' (two rows of numbers for a "
            "width), or damaged 'known_pictures'; get the model's files again"
        ) from problem
    for width, rows in ranges.items():
        if rows.shape != (2, width) or not np.isfinite(rows).all() or (rows[0] > rows[1]).any():
            raise CheckpointError(f"{path}: the ranges of width {width} are damaged")
    return VectorFacts(widths, ranges, known)


def _head_width(pretrain: Path) -> int:
    """Width inside the head that comes with a published stage-1 adapter."""
    weights = open_weights(pretrain, "adapter_model")
    key = PEFT_PREFIX + HEAD_KEYS[0][0]
    if key not in weights.names:
        raise CheckpointError(f"{weights.label}: the tensor {key!r} is missing")
    return weights.shape(key)[0]


def _frozen(model: AbcModel) -> AbcModel:
    return model.requires_grad_(False).eval()
