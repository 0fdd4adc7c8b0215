"""A run as dataclasses. They are the schema: YAML, dotted overrides, help and the saved run all come from them."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_type_hints

from ra_blip.errors import ConfigError
from ra_blip.records import write_text


@dataclasses.dataclass
class VisionConfig:
    """The vision tower: any Hugging Face vision model by name or folder, or built from a config with random weights."""

    name: str | None = None  # Hugging Face name or local folder; None builds from `config`
    config: dict[str, Any] = dataclasses.field(default_factory=dict)  # {model_type: resnet, ...}; eva_vit is BLIP-2's
    image_size: int = 224
    mean: list[float] = dataclasses.field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])  # CLIP's
    std: list[float] = dataclasses.field(default_factory=lambda: [0.26862954, 0.26130258, 0.27577711])
    layer: int = -1  # hidden state read out: -1 is the last; -2 suits CLIP
    decode: Literal["exact", "fast", "fastest"] = "exact"  # how pictures are decoded and resized, see models/pixels.py
    gradient_checkpointing: bool = False  # a tower that trains computes its layers twice and keeps less
    concepts: int = 0  # outputs of a caption-words head for a tower trained from nothing, see models/from_scratch.py


@dataclasses.dataclass
class QFormerConfig:
    """The Q-Former; the defaults are BLIP-2's."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    queries: int = 32
    cross_every: int = 2  # cross-attention in layers 0, 2, 4 ...
    dropout: float = 0.1
    max_positions: int = 512
    norm_first: bool = False  # BERT and BLIP-2 normalise after; before is easier to train from nothing
    text_init: str | None = None  # a BERT-architecture model, name or folder: text side and fusion start from it
    reader_text: bool = True  # the generator's Q-Former takes text beside its queries; BLIP-2's (stage 2) takes none
    ln_vision_eps: float = 1e-5  # of the norm on visual features; Hugging Face's files have their vision tower's here
    gradient_checkpointing: bool = False  # training computes the layers twice and keeps less


@dataclasses.dataclass
class RetrieverConfig:
    """Fusion and the shared space."""

    fusion_layers: int = 3
    dimension: int = 768
    temperature: float = 0.07  # learnt from here, kept within [0.001, 0.5]
    text_length: int = 128


@dataclasses.dataclass
class FromScratchConfig:
    """What a generator trained from nothing needs to copy names it never saw, in minutes; all off by default.

    A pretrained LLM does not need these. They live in ``models/from_scratch.py`` and in the prompt, not in the main
    classes.
    """

    overlap_marks: bool = False  # the prompt marks the words that an item shares with the question
    copy_head: bool = False  # pointer-generator output over the source tokens
    local_mixing: bool = False  # a width-5 convolution over the prompt embeddings
    match_head: bool = False  # a direction of the soft tokens that says "this picture is the one asked for"


@dataclasses.dataclass
class LoraConfig:
    """Low-rank adapters in the LLM (extra ``peft``); their tensors are called ``..lora_A..`` and ``..lora_B..``."""

    rank: int = 0  # 0 is none
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] = dataclasses.field(default_factory=list)  # layer names; peft's choice for the LLM where empty


@dataclasses.dataclass
class GeneratorConfig:
    """The LLM behind soft prompts: any Hugging Face seq2seq or causal model, by name or folder, or from a config.

    Prompt and decoding, all of it: what is written here goes into every trace.
    """

    name: str | None = None
    config: dict[str, Any] = dataclasses.field(default_factory=dict)  # {model_type: t5, ...}; beside a name: overrides
    layout: Literal["release", "interleaved"] = "release"  # where pictures stand in the prompt, see models/prompt.py
    image_slots: int = 2
    template: str = "{}"  # how the question is put, for example "Question: {} Short answer:"
    guide: Literal["question", "prompt"] = "question"  # the Q-Former reads question and caption, or all
    begin: str | None = None  # causal: the token behind the leading picture; None leaves it to the tokenizer
    end: str | None = None  # causal: the token that ends an answer; None is the tokenizer's end token
    prompt_length: int = 512
    answer_length: int = 128
    min_answer_length: int = 0
    beams: int = 1
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    from_scratch: FromScratchConfig = dataclasses.field(default_factory=FromScratchConfig)


@dataclasses.dataclass
class TokenizerConfig:
    """The Q-Former's (BERT style) and the LLM's tokenizer: a name or folder each, or trained on the run's own texts."""

    text: str | None = None
    llm: str | None = None
    vocabulary: int = 512  # size where they are trained


Precision = Literal["fp32", "bf16", "fp16"]


@dataclasses.dataclass
class PrecisionConfig:
    """Number formats of what is frozen; Q-Formers, projection, fusion and heads are always fp32."""

    vision: Precision = "fp32"
    features: Precision = "bf16"  # in which picture features are kept
    llm: Precision = "fp32"  # T5 overflows in fp16


@dataclasses.dataclass
class ModelConfig:
    """All parts of RA-BLIP."""

    vision: VisionConfig = dataclasses.field(default_factory=VisionConfig)
    qformer: QFormerConfig = dataclasses.field(default_factory=QFormerConfig)
    retriever: RetrieverConfig = dataclasses.field(default_factory=RetrieverConfig)
    generator: GeneratorConfig = dataclasses.field(default_factory=GeneratorConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    precision: PrecisionConfig = dataclasses.field(default_factory=PrecisionConfig)


@dataclasses.dataclass
class StageConfig:
    """What one stage trains, and how its losses are weighed."""

    name: Literal["pretrain", "retrieve", "rank", "answer"] = "answer"
    # pretrain
    concepts: float = 0.0  # caption words read off the patches; needs model.vision.concepts
    itc: float = 1.0
    itm: float = 1.0
    itg: float = 1.0
    itm_samples: int = 0  # pairs of the batch that enter matching, each three times; 0 takes all
    # retrieve
    conditioned: float = 0.5  # probability that a batch encodes pictures with the anchor's question (leakage rule)
    conditioned_candidates: int = 8
    hard_negatives: int = 2  # listed or mined negatives encoded per question
    symmetric: bool = False  # items look for their questions, too, and pictures for texts of the same question
    token_dropout: float = 0.0  # share of a picture's feature tokens hidden from the Q-Former in training
    caption_dropout: float = 0.0  # probability that a captioned gold or negative picture is read without its caption
    # answer
    qformer_from_retriever: bool = False  # start the generator's Q-Former from the retriever's
    qa: float = 1.0
    askg: float = 0.1
    answer_word: float = 0.0  # the answer's first word read off the projected query tokens of a single gold picture
    answer_match: float = 0.0  # tell, by those tokens, the wordless picture that is asked for (needs the match_head)
    negatives_min: int = 1
    negatives_max: int = 4
    retrieved: float = 0.3  # probability that the QA prompt holds distractors too
    warmup_steps: int = 0  # steps with the two settings below, for a generator trained from nothing
    warmup_askg: float = 1.0
    warmup_retrieved: float = 0.0


@dataclasses.dataclass
class DataConfig:
    """Where the training records come from: a name in ``data/sources.py``, and what that source needs."""

    name: Literal["records", "captions", "dataset", "shards", "atlas", "atlas_captions"] = "records"
    items: str | None = None  # items.jsonl
    questions: str | None = None  # questions.jsonl
    mined: str | None = None  # hits.jsonl of `ra-blip search`: hard negatives by question id
    root: str | None = None  # folder of a data set, or of shards; of a generated world, OUT/world where None
    dataset: str | None = None  # name in `data/readers/__init__.py`; None tells the layout by its files
    split: str = "train"  # of the data set; another one is trained on only when it is named here
    strict: bool = False  # stop at the first wrong record of a data set, instead of leaving it out and counting it
    entities: int = 400  # named buildings of a generated world
    pictures: int = 4000  # size of a generated caption set
    categories: list[str] | None = None  # question categories drawn from; all where None
    golds: int = 0  # most golds of each kind (text, picture ...) in one sample, drawn anew each time; 0 takes all
    balanced: bool = False  # go round the entities of the questions' golds: each is asked about as often as any other
    views: int = 1  # pictures are also seen flipped and cropped, as this many views drawn from; 1 is the picture alone
    rename: bool = False  # fresh names and facts each time an entity is drawn
    features: str | None = None  # folder that keeps frozen vision features across runs; memory alone where None


@dataclasses.dataclass
class ParamRule:
    """One line of the ordered parameter rules: the first match wins, every parameter must match."""

    match: str = ".*"
    lr: float | None = None  # None freezes
    weight_decay: float = 0.0


@dataclasses.dataclass
class TrainConfig:
    """The loop."""

    steps: int = 1000
    batch_size: int = 32
    warmup: int = 100  # steps of linear warm-up, then cosine to `floor` x lr
    floor: float = 0.0
    betas: list[float] = dataclasses.field(default_factory=lambda: [0.9, 0.98])
    clip: float = 1.0
    threads: int = 0  # torch threads; 0 leaves torch's choice
    precision: Literal["fp32", "bf16"] = "fp32"
    log_every: int = 1


@dataclasses.dataclass
class CheckpointConfig:
    """How often to save, and how many to keep."""

    every: int = 0  # steps; 0 saves at the end only
    keep: int = 2


@dataclasses.dataclass
class RunConfig:
    """One training run."""

    out: str = "runs/run"
    seed: int = 0
    init: str | None = None  # model folder to start from
    stage: StageConfig = dataclasses.field(default_factory=StageConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    params: list[ParamRule] = dataclasses.field(default_factory=lambda: [ParamRule(lr=1e-4, weight_decay=0.05)])
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Resolve a run: dataclass defaults, then the YAML file, then ``a.b=c`` overrides.

    Raises:
        ConfigError: no such file, bad YAML (object tags and duplicate keys are refused), an unknown key
            (naming the nearest), a value of the wrong type, an interpolation ``${...}`` (no environment is read).
    """
    from omegaconf import OmegaConf

    with _explained(str(path), RunConfig):
        run = OmegaConf.structured(RunConfig)
        if path is not None:
            loaded = OmegaConf.load(path)
            if not OmegaConf.is_dict(loaded):
                raise ConfigError(f"{path}: a recipe is a mapping of keys to values")
            _refuse_interpolation(OmegaConf.to_container(loaded, resolve=False), str(path))
            run = OmegaConf.merge(run, loaded)
    for override in overrides:
        source = f"override {override!r}"
        key, equals, value = override.partition("=")
        if not key or not equals:
            raise ConfigError(f"{source}: expected a.b=value")
        _refuse_interpolation(value, source)
        with _explained(source, RunConfig):
            OmegaConf.update(run, key, OmegaConf.from_dotlist([f"value={value}"])["value"])
    with _explained(str(path or "overrides"), RunConfig):
        return cast(RunConfig, OmegaConf.to_object(run))


def dump_config(config: Any) -> str:
    """A config dataclass as YAML that :func:`load_config` reads back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


def save_config(config: Any, path: str | Path) -> None:
    """Write a config dataclass as YAML. Raises :class:`OutputError`."""
    write_text(path, dump_config(config))


def model_config_from_dict(value: dict[str, Any], where: str) -> ModelConfig:
    """A :class:`ModelConfig` from parsed JSON. Raises :class:`ConfigError` naming ``where`` and the key."""
    from omegaconf import OmegaConf

    _refuse_interpolation(value, where)
    with _explained(where, ModelConfig):
        return cast(ModelConfig, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), value)))


def _refuse_interpolation(value: Any, source: str, key: str = "") -> None:
    """OmegaConf would fill ``${oc.env:HOME}`` from the environment; a recipe means the same on every machine."""
    if isinstance(value, dict):
        for name, part in value.items():
            _refuse_interpolation(part, source, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for position, part in enumerate(value):
            _refuse_interpolation(part, source, f"{key}[{position}]")
    elif isinstance(value, str) and "${" in value:
        raise ConfigError(f"{source}: interpolation {value!r} is not allowed; write the value{_named(key)}")


@contextlib.contextmanager
def _explained(source: str, schema: type[Any]) -> Iterator[None]:
    """Turn what OmegaConf, PyYAML and the file system raise into one :class:`ConfigError` line about ``source``."""
    from omegaconf.errors import GrammarParseError, OmegaConfBaseException
    from yaml import MarkedYAMLError, YAMLError

    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"{source}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read ({error.strerror or error})") from None
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = (error.problem or "not YAML").replace("found duplicate key", "duplicate key")
        raise ConfigError(f"{source}{line}: {problem}") from None
    except GrammarParseError as error:
        raise ConfigError(
            f"{source}: not an allowed value, '${{' begins an interpolation{_named(error.full_key)}"
        ) from None
    except OmegaConfBaseException as error:
        first = _with_nearest(str(error).strip().splitlines()[0], schema)
        raise ConfigError(f"{source}: {first}{_named(error.full_key)}") from None
    except (YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from None


def _named(key: str | None) -> str:
    return f" (key {key!r})" if key else ""


def _with_nearest(message: str, schema: type[Any]) -> str:
    """Add to OmegaConf's words on an unknown key, which know its section only: the key may stand in another one."""
    unknown = re.match(r"Key '(.*)' not in '(\w+)'", message)
    if unknown is None:
        return message
    wanted, section = unknown.groups()
    paths = dict(_paths(schema))
    inside = [path.rpartition(".")[2] for path, owner in paths.items() if owner == section]
    leaves = {path.rpartition(".")[2]: path for path in reversed(paths)}  # reversed: the first of a name wins
    if wanted in leaves:
        return f"{unknown[0]}. Did you mean: {leaves[wanted]!r}?"
    if "Did you mean" in message or not inside:
        return message
    if close := difflib.get_close_matches(wanted, inside, n=1) or difflib.get_close_matches(wanted, leaves, n=1):
        return f"{message}. Did you mean: {close[0] if close[0] in inside else leaves[close[0]]!r}?"
    return f"{message}. Keys here: {', '.join(inside)}"


def _paths(schema: type[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, owning dataclass's name) of every field below ``schema``; ``params[0]`` stands for each rule."""
    for name, hint in get_type_hints(schema).items():
        yield f"{prefix}{name}", schema.__name__
        inner = next((part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)), None)
        if isinstance(inner, type):
            yield from _paths(inner, f"{prefix}{name}{'' if inner is hint else '[0]'}.")
