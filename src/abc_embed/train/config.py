"""Every field of a training run with its meaning, default and check; read from a TOML file.

Combinations that cannot be, or in which a field would do nothing, are refused: a wrong name or type
is one sentence that names field, file and line instead of a run that silently ignores it.

The numbers of the paper are in `configs/`, each with its section.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from abc_embed.errors import ConfigError
from abc_embed.train.toml_config import read_toml

StageName = Literal["pretrain", "instruct"]
GatherMode = Literal["gradient", "published"]


def _require(valid: bool, name: str, value: object, rule: str) -> None:
    if not valid:
        raise ConfigError(f"{name} is {value!r}; it must be {rule}")


def _require_at_least(section: str, config: object, **lowest: int) -> None:
    for name, low in lowest.items():
        value = getattr(config, name)
        rule = f"at least {low}" if low else "0 or more"
        _require(value >= low, f"{section}.{name}", value, rule)


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
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """Attention implementation of the backbone; "eager" is the slow reference, those that begin
    with "flash" need a GPU, bfloat16 and their own package."""

    def __post_init__(self) -> None:
        _require_at_least("model", self, head_width=1)
        smallest, largest = self.pixels
        valid = min(smallest, largest) >= 0 and (not largest or smallest <= largest)
        _require(valid, "model.pixels", self.pixels, "[smallest, largest], each 0 or more")
        if self.attention.startswith("flash"):
            for name, value in (("device", "cpu"), ("precision", "float32")):
                valid = getattr(self, name) != value
                rule = f"something else than {value} for model.attention {self.attention!r}"
                _require(valid, f"model.{name}", value, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where images and texts come from."""

    records: str = ""
    """A records file, the folder that holds `records.jsonl`, or anything else that docs/recipes.md
    lists. Empty when the caller hands in a sampler of its own."""
    image_folder: str = ""
    """Where the images lie that records or Parquet name by paths, in it or from it. Empty: in the
    folder of the file."""
    negatives_file: str = ""
    """Stage 1: what `abc-embed mine` wrote for these records (Parquet); its texts take the place of
    those in the records."""
    max_pixels: int = 0
    """Largest image in training, in pixels after resizing; 0 keeps the model's own budget. The
    paper trains with at most 512 visual tokens of 28 x 28 pixels (401,408)."""
    negatives: int = 7
    """Stage 1: mined captions per image, drawn anew each time it is seen (paper section 3)."""
    instructions: int = 4
    """Stage 2: instructions per image and step, drawn anew each time; all of them share a batch,
    so each is the others' hard negative (paper section 5)."""
    kinds: dict[str, float] = field(default_factory=dict)
    """Stage 2: how much more often instructions of a kind are drawn, as `{place = 2, yes-no = 0}`;
    1 for kinds that are not named, never for 0."""
    workers: int = 0
    """Processes that open, resize and tokenize ahead of the model, sharing each step among them; 0
    does it in between. Each holds a share of about two steps' pixels."""
    on_error: Literal["skip", "raise"] = "skip"
    """What a row does that cannot be used (a picture cut short, a text too long): "skip" leaves it
    out, counts it in the log and writes it to `rejects.jsonl`; "raise" ends the run."""
    truncate: Literal["error", "end"] = "error"
    """What a text does that is too long for the model: it is a bad row, or is cut at its end."""
    max_bad_share: float = 0.01
    """Share of bad rows at which a run ends in any case, of those seen so far, of at least the
    first thousand or all of a smaller set; one row is always let pass, unless this is 0."""

    def __post_init__(self) -> None:
        _require_at_least("data", self, max_pixels=0, negatives=0, instructions=1, workers=0)
        for kind, weight in self.kinds.items():
            _require(weight >= 0, f"data.kinds.{kind}", weight, "0 or more")
        valid = 0 <= self.max_bad_share <= 1
        _require(valid, "data.max_bad_share", self.max_bad_share, "from 0 to 1")


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
        _require_at_least("adapter", self, rank=1, alpha=1)
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
        rule = f"at least temperature.floor ({self.floor})"
        _require(self.start >= self.floor, "temperature.start", self.start, rule)
        _require_at_least("temperature", self, patience=1)


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
        valid = all(0 <= beta < 1 for beta in self.betas)
        _require(valid, "optim.betas", self.betas, "two numbers from 0 to below 1")
        valid = 0 <= self.warmup_share < 1
        _require(valid, "optim.warmup_share", self.warmup_share, "from 0 to below 1")
        _require_at_least("optim", self, weight_decay=0, clip_norm=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How long, in which chunks, and what is kept."""

    steps: int
    """Optimizer steps: 4,000 in stage 1, 100 in stage 2 (paper sections 4 and 5)."""
    batch_size: int
    """Images per step, of all processes together and whatever the memory: 512 in stage 1, 128 in
    stage 2. Every candidate of the step is a negative for every query: this changes what is learnt,
    `chunk_size` does not."""
    chunk_size: int = 0
    """Most items (image rows or texts) in one pass through the model; memory follows this, not
    `batch_size` (GradCache). 0 passes all at once, the fastest where it fits. All instructions of
    one image stay in one chunk."""
    chunk_tokens: int = 0
    """Most tokens, padding counted, in one pass; beside `chunk_size`, whichever is reached first.
    Set alone it lets a pass hold few pictures or many short texts, which keeps a GPU busy with
    both. 0: any number."""
    gradient_checkpointing: bool = False
    """Keep less for the backward pass and compute it again: less memory, a third more time."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all candidates (paper section 4)."""
    matryoshka: tuple[int, ...] = ()
    """Narrower widths at which vectors are to work as well, like [256, 128, 64]: the loss is the
    mean over the whole width and these (arXiv 2205.13147)."""
    quantization: Literal["none", "int8", "binary"] = "none"
    """What vectors will be rounded to: the loss is taken of rounded ones as well."""
    gather: GatherMode = "gradient"
    """With several processes: "gradient" passes gradients back to the candidates of the others, so
    the number of processes does not change what is learnt; "published" takes them as constants, as
    the published training code does."""
    seed: int = 0
    """Fixes the first weights, the data order and dropout."""
    checkpoint_every: int = 100
    """Steps between checkpoints. A killed run goes on from the last one."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    log_every: int = 1
    """Steps between lines of `metrics.jsonl`."""
    log_to: Literal["none", "tensorboard", "wandb"] = "none"
    """Where the same lines go besides: TensorBoard files in the run's folder, or Weights & Biases
    (project `abc-embed` unless WANDB_PROJECT says otherwise)."""

    def __post_init__(self) -> None:
        _require_at_least("train", self, steps=1, batch_size=1, chunk_size=0, chunk_tokens=0)
        _require_at_least("train", self, checkpoint_every=1, keep_checkpoints=1, log_every=1)
        _require(0 <= self.seed < 2**63, "train.seed", self.seed, "from 0 to below 2^63")
        valid = 0 <= self.label_smoothing < 1
        _require(valid, "train.label_smoothing", self.label_smoothing, "from 0 to below 1")
        widths = self.matryoshka
        valid = all(w >= 1 for w in widths) and len(set(widths)) == len(widths)
        _require(valid, "train.matryoshka", list(widths), "different widths, each at least 1")

    @property
    def is_chunked(self) -> bool:
        """Whether a step goes through the model in chunks, one at a time (GradCache)."""
        return self.chunk_size > 0 or self.chunk_tokens > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """What the model is asked during training, of pictures that it does not learn from."""

    records: str = ""
    """Records, as `data.records`, or a CtrlBench folder. Empty: nothing is asked."""
    every: int = 100
    """Steps between two times; it is also asked before the first step and after the last. The best
    of them by R@1 is kept as `checkpoints/best`."""
    images: int = 500
    """The first so many images are shown."""
    patience: int = 0
    """Stop after so many times in a row without a better one; 0 never stops early."""
    allow_overlap: bool = False
    """Whether the pictures may be among those of `data.records`."""

    def __post_init__(self) -> None:
        _require_at_least("validation", self, every=1, images=1, patience=0)


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
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        self._check_stage()
        model, data = self.model, self.data
        if model.pixels[0] and 0 < data.max_pixels < model.pixels[0]:
            raise ConfigError(
                f"data.max_pixels is {data.max_pixels}, less than the smallest picture of "
                f"model.pixels ({model.pixels[0]}); raise the one or lower the other"
            )
        if data.negatives_file and not data.negatives:
            raise ConfigError(
                "data.negatives is 0, so nothing of data.negatives_file would be used; raise it, "
                "or remove data.negatives_file"
            )
        if not self.validation.records and self.validation != ValidationConfig():
            raise ConfigError(
                "validation.records is missing, so nothing else of [validation] would be used; "
                "name records or a CtrlBench folder, or remove the section"
            )
        name, alone = ("negatives", 0) if self.stage == "pretrain" else ("instructions", 1)
        if self.train.batch_size == 1 and getattr(data, name) == alone:
            raise ConfigError(
                f"train.batch_size is 1 and data.{name} is {alone}: every query has one candidate "
                "and nothing is learnt; raise one of the two"
            )

    def _check_stage(self) -> None:
        """Refuse what belongs to the other stage: it would be ignored without a word."""
        if self.stage == "instruct" and self.temperature != TemperatureConfig():
            raise ConfigError(
                "temperature is set for stage 2, which keeps the temperature of stage 1; "
                "remove the [temperature] section"
            )
        for name, why in _FOR_THE_OTHER[self.stage].items():
            section, _, key = name.partition(".")
            value = getattr(getattr(self, section), key)
            if value != getattr(ModelConfig() if section == "model" else DataConfig(), key):
                other = 2 if self.stage == "pretrain" else 1
                raise ConfigError(
                    f"{name} is {value!r}, which is for stage {other}, and this is stage "
                    f"{3 - other}, which {why}; remove it"
                )


_FOR_THE_OTHER = {
    "pretrain": {"data.instructions": "asks none", "data.kinds": "asks none"},
    "instruct": {
        "data.negatives": "draws none",
        "data.negatives_file": "draws none",
        "model.head_width": "keeps the head of stage 1",
        "model.pixels": "keeps the pictures' sizes of stage 1",
    },
}
"""Of each stage the fields that it would ignore, and why."""


def default_config(config: TrainConfig) -> TrainConfig:
    """The same stage with every field that has a default at it."""
    adapter, train = config.adapter, config.train
    return TrainConfig(
        stage=config.stage,
        adapter=AdapterConfig(rank=adapter.rank, alpha=adapter.alpha),
        train=RunConfig(steps=train.steps, batch_size=train.batch_size),
    )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a TOML file, then apply overrides of the form `"train.steps=100"`.

    Paths in the file are relative to the current folder, like those of the command line.

    Raises:
        ConfigError: the file cannot be read, a field is unknown or missing, a type is wrong or a
            value impossible; the sentence names the field, the file and the line.
    """
    return read_toml(TrainConfig, path, overrides)
