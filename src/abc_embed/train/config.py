"""What can be said about a training run, in full, and how it is read from a TOML file.

Does: define every field with its meaning and its check, read a file strictly, apply
`--set section.field=value`. Does not: load, look at the machine, or know what a field will do.
Why dataclasses and TOML: one place per field, defaults that can be read, and a wrong name or type
is one sentence that names field, file and line instead of a run that silently ignores it.

The numbers of the paper are in `configs/`, each with its section.
"""

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from abc_embed.errors import ConfigError

StageName = Literal["pretrain", "instruct"]


def _require(good: bool, name: str, value: object, rule: str) -> None:
    if not good:
        raise ConfigError(f"{name} is {value!r}; it must be {rule}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """What is trained and in which numbers."""

    base: str = ""
    """What to begin with: for stage 1 a vision-language model, for stage 2 the folder that stage 1
    saved; a folder, a name on the hub, or "bundled"."""
    head_width: int = 4096
    """Width inside the head, where a plain vision-language model gets a fresh one (paper section
    2); a folder of ours brings its own."""
    pixels: tuple[int, int] = (0, 0)
    """Smallest and largest picture of the trained model in use, in pixels, where it begins as a
    plain vision-language model; 0 keeps what the base says. The paper has 256 to 1024 visual tokens
    of 28 x 28 pixels."""
    device: Literal["auto", "cpu"] = "auto"
    """"auto" takes the GPU that accelerate finds, if any; "cpu" never does."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """"auto" is bfloat16 on a GPU (paper section 4) and float32 elsewhere: bfloat16 is slow on
    most CPUs. Head, loss and trained weights are float32 in any case."""
    attention: str = "sdpa"
    """Attention implementation of the backbone: "sdpa", "eager" (the slow reference) or
    "flash_attention_2" where it is installed."""

    def __post_init__(self) -> None:
        _require(self.head_width >= 1, "model.head_width", self.head_width, "at least 1")
        smallest, largest = self.pixels
        good = min(smallest, largest) >= 0 and (not largest or smallest <= largest)
        _require(good, "model.pixels", self.pixels, "[smallest, largest], each 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where images and texts come from."""

    records: str = ""
    """A records file (JSONL) or the folder that holds `records.jsonl`. Empty when the caller hands
    in a source of its own."""
    max_pixels: int = 0
    """Largest image in training, in pixels after resizing; 0 keeps the model's own budget. The
    paper trains with at most 512 visual tokens of 28 x 28 pixels (401,408)."""
    negatives: int = 7
    """Stage 1: mined captions per image, drawn anew each time it is seen (paper section 3)."""
    instructions: int = 4
    """Stage 2: instructions per image and step, drawn anew each time; all of them share a batch,
    so each is the others' hard negative (paper section 5)."""
    workers: int = 0
    """Processes that open, resize and tokenize ahead of the model; 0 does it in between."""

    def __post_init__(self) -> None:
        _require(self.max_pixels >= 0, "data.max_pixels", self.max_pixels, "0 or more")
        _require(self.negatives >= 0, "data.negatives", self.negatives, "0 or more")
        _require(self.instructions >= 1, "data.instructions", self.instructions, "at least 1")
        _require(self.workers >= 0, "data.workers", self.workers, "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """The LoRA that this stage trains."""

    rank: int
    """r: 64 in stage 1, 16 in stage 2 (paper section 2)."""
    alpha: int
    """Scale is alpha / r: 128 in stage 1, 32 in stage 2, so 2 in both."""
    dropout: float = 0.0
    """Share of the adapters' inputs zeroed in training. The paper does not say; the layout it
    published its adapters in has 0.05."""

    def __post_init__(self) -> None:
        _require(self.rank >= 1, "adapter.rank", self.rank, "at least 1")
        _require(self.alpha >= 1, "adapter.alpha", self.alpha, "at least 1")
        _require(0 <= self.dropout < 1, "adapter.dropout", self.dropout, "from 0 to below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class TemperatureConfig:
    """τ of `score = cosine / τ`. Stage 1 only: stage 2 keeps what stage 1 found."""

    start: float = 0.07
    """Where τ begins (paper section 2)."""
    learn: bool = True
    """Whether τ is trained. False keeps it at `start`."""
    floor: float = 0.01
    """τ is lifted to this after each step. Scores then stay within ±100, as in CLIP; the
    published training ends near 0.03."""
    patience: int = 100
    """Stop with a diagnosis once τ has lain at the floor for this many steps in a row: with
    negatives that are too easy it collapses and nothing is learnt any more (paper section 2)."""

    def __post_init__(self) -> None:
        _require(self.floor > 0, "temperature.floor", self.floor, "above 0")
        _require(
            self.start >= self.floor,
            "temperature.start",
            self.start,
            f"at least temperature.floor ({self.floor})",
        )
        _require(self.patience >= 1, "temperature.patience", self.patience, "at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW, a linear warm-up, then half a cosine down to zero."""

    learning_rate: float = 4e-5
    """Highest learning rate, reached at the end of the warm-up (paper section 4)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square (paper section 4)."""
    weight_decay: float = 1e-3
    """On matrices only; biases and τ are left alone. The paper says 1e-3, the published
    configuration 1e-2."""
    warmup_share: float = 0.03
    """Share of the steps over which the learning rate climbs (paper section 4)."""
    clip_norm: float = 1.0
    """Gradients longer than this, all taken together, are shortened to it; 0 never clips."""

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "optim.learning_rate", self.learning_rate, "above 0")
        good = all(0 <= beta < 1 for beta in self.betas)
        _require(good, "optim.betas", self.betas, "two numbers from 0 to below 1")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        good = 0 <= self.warmup_share < 1
        _require(good, "optim.warmup_share", self.warmup_share, "from 0 to below 1")
        _require(self.clip_norm >= 0, "optim.clip_norm", self.clip_norm, "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How long, in which portions, and what is kept."""

    steps: int
    """Optimizer steps: 4,000 in stage 1, 100 in stage 2 (paper sections 4 and 5)."""
    batch_size: int
    """Images per step, whatever the memory: 512 in stage 1, 128 in stage 2. Every candidate of
    the step is a negative for every query: this changes what is learnt, `chunk_size` does not."""
    chunk_size: int = 0
    """Most items (image rows or texts) in one pass through the model; memory follows this, not
    `batch_size` (GradCache). 0 passes all at once, the fastest where it fits. All instructions of
    one image stay in one chunk."""
    gradient_checkpointing: bool = False
    """Keep less for the backward pass and compute it again: less memory, a third more time."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all candidates (paper section 4)."""
    seed: int = 0
    """Fixes the first weights, the data order and dropout."""
    checkpoint_every: int = 100
    """Steps between checkpoints. A killed run goes on from the last one."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    log_every: int = 1
    """Steps between lines of `metrics.jsonl`."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "keep_checkpoints", "log_every"):
            value = getattr(self, name)
            _require(value >= 1, f"train.{name}", value, "at least 1")
        _require(self.chunk_size >= 0, "train.chunk_size", self.chunk_size, "0 or more")
        _require(self.seed >= 0, "train.seed", self.seed, "0 or more")
        good = 0 <= self.label_smoothing < 1
        _require(good, "train.label_smoothing", self.label_smoothing, "from 0 to below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One run of one stage."""

    stage: StageName
    """"pretrain" is stage 1 (image to caption), "instruct" stage 2 (image and instruction to
    answer)."""
    out: str = ""
    """Folder of the run: `metrics.jsonl`, `checkpoints/` and, in the end, `model/`."""
    adapter: AdapterConfig
    train: RunConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        if self.stage == "instruct" and self.temperature != TemperatureConfig():
            raise ConfigError(
                "temperature is set for stage 2, which keeps the temperature of stage 1; "
                "remove the [temperature] section"
            )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a TOML file, then apply overrides of the form `"train.steps=100"`.

    Paths in the file are relative to the current folder, like those of the command line.

    Raises `ConfigError` for a file that cannot be read, an unknown or missing field, a wrong type
    or an impossible value; the sentence names the field, the file and the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    overridden = {_override(values, assignment) for assignment in overrides}
    try:
        return _build(TrainConfig, values, "")
    except ConfigError as error:
        name = str(error).split(" ", 1)[0]
        where = "--set" if name in overridden else _place(path, text, name)
        raise ConfigError(f"{error} ({where})") from error


def _override(values: dict[str, Any], assignment: str) -> str:
    """Write one `section.field=value` into nested tables; returns the dotted name."""
    name, equals, raw = assignment.partition("=")
    name = name.strip()
    if not equals or not name:
        raise ConfigError(f"--set {assignment!r} is not of the form section.field=value")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw  # a bare word is a string, so that a shell user need not quote twice
    *sections, last = name.split(".")
    table: Any = values
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {assignment!r}: {section} is a value, not a section")
    table[last] = value
    return name


def _place(path: Path, text: str, name: str) -> str:
    """`file, line N` of a dotted field name, or of its section, or the file alone."""
    section, _, key = name.rpartition(".")
    here, found = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            here = header[1]
            if here == name or (here == section and not found):
                found = number
        elif here == section and re.match(rf"\s*{re.escape(key)}\s*=", line):
            return f"{path}, line {number}"
    return f"{path}, line {found}" if found else str(path)


T = TypeVar("T")


def _build(kind: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """A dataclass from a table, strictly: every key known, every type right, none missing."""
    hints = get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            known = ", ".join(hints)
            raise ConfigError(f"{prefix}{key} is not a field; known here: {known}")
        arguments[key] = _convert(hints[key], value, f"{prefix}{key}")
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        optional = (item.default, item.default_factory) != (dataclasses.MISSING,) * 2
        if item.name not in arguments and not optional:
            raise ConfigError(f"{prefix}{item.name} is missing; give it a value")
    return kind(**arguments)


def _convert(hint: Any, value: Any, name: str) -> Any:
    """`value` if it is of the annotated type; whole numbers pass as floats, nothing else bends."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} is {value!r}; it must be a section")
        return _build(hint, value, f"{name}.")  # type: ignore[arg-type]
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        _require(value in choices, name, value, "one of " + ", ".join(map(repr, choices)))
        return value
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        good = isinstance(value, list) and len(value) == len(kinds)
        _require(good, name, value, f"a list of {len(kinds)} numbers")
        return tuple(_convert(kind, part, name) for kind, part in zip(kinds, value, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    _require(type(value) is hint, name, value, words[hint])
    return value
