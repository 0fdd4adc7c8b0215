"""A run as dataclasses. They are the schema: YAML, dotted overrides, help and the saved run all come from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from ra_blip.config_errors import explained, refuse_interpolation
from ra_blip.errors import ConfigError

Settings = TypeVar("Settings")


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
    match_head: bool = False  # a bilinear score writes into soft tokens how far the picture is the one asked for


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
    threshold: float | None = None  # of P(Yes) for a relevant item, measured at the end of the stage "rerank"
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

    name: Literal["pretrain", "retrieve", "rank", "answer", "rerank", "finetune"] = "answer"
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
    noise_step: int = 0  # noise-injected training: diffusion steps of 1000 on the contrasted picture, 0 is off
    noise_at: Literal["pixels", "features", "soft"] = "pixels"  # what is noised: pixels, the tower's or the soft tokens
    # finetune
    label_smoothing: float = 0.1
    # rerank, which takes all settings of answer
    relevance: float = 1.0  # Yes or No to one item
    held_out: int = 200  # samples kept out of training for the adaptive threshold, at most a tenth of them


@dataclasses.dataclass
class DataConfig:
    """Where the training records come from: a name in ``data/sources.py``, and what that source needs."""

    name: Literal["records", "captions", "dataset", "shards", "retrieved", "atlas", "atlas_captions"] = "records"
    items: str | None = None  # items.jsonl
    questions: str | None = None  # questions.jsonl
    mined: str | None = None  # hits.jsonl of `ra-blip search`: hard negatives by question id
    tasks: dict[str, float] = dataclasses.field(default_factory=dict)  # source `retrieved`: weight by question category
    keep: int = 3  # source `retrieved`: most retrieved items in a prompt
    no_retrieval: float = 0.1  # of its samples have no item, and this share
    random_retrieval: float = 0.1  # items drawn at random
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
    damaged: float = 0.001  # share of samples replaced because a picture cannot be opened; 0 stops at the first


@dataclasses.dataclass
class ParamRule:
    """One line of the ordered parameter rules: the first match wins, every parameter must match."""

    match: str = ".*"
    lr: float | None = None  # None freezes
    weight_decay: float = 0.0
    layer_decay: float = 1.0  # factor on lr for each layer further down; `match` names the layer as (?P<layer>\d+)


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
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of autocast; fp16 scales the loss
    accumulate: int = 1  # parts into which a rank's share of the batch is cut, one after another, to save memory
    ema: float = 0.0  # decay of an average of the weights, which is then evaluated and exported; 0 is off
    compile: str | None = None  # torch.compile's backend for the layers, e.g. inductor
    nonfinite: Literal["stop", "skip"] = "stop"  # a loss or gradient that is no number: the run stops, or leaves it out
    max_skips: int = 10  # steps left out in a run before it stops all the same
    log_every: int = 1
    workers: int = 0  # threads that draw the samples of the next steps and open their pictures; 0 does it in the step


@dataclasses.dataclass
class EvaluationConfig:
    """Evaluation on held-out samples within the run, and by what the best checkpoint is told."""

    every: int = 0  # steps, with a checkpoint each time; 0 never
    data: dict[str, Any] = dataclasses.field(default_factory=dict)  # where it differs from `data`, e.g. {split: val}
    samples: int = 0  # at most; 0 takes all
    metric: str = "loss"  # a number of the log: loss, a loss term, or what the stage reports, e.g. recall@1
    greater: bool = False  # whether more of it is better


@dataclasses.dataclass
class CheckpointConfig:
    """How often to save, and how many to keep."""

    every: int = 0  # steps; 0 saves at the end only
    keep: int = 2
    failures: int = 3  # saves in a row that may fail, as on a full disk, before the run stops


@dataclasses.dataclass
class TrackConfig:
    """Where the log goes beside ``log.jsonl`` (extra ``track``)."""

    wandb: str | None = None  # project
    wandb_mode: Literal["online", "offline"] = "offline"
    tensorboard: bool = False


@dataclasses.dataclass
class StrategyConfig:
    """How several processes share the work; the launcher (``torchrun``, ``deepspeed``, SLURM) says how many."""

    name: Literal["auto", "single", "ddp", "zero", "fsdp2"] = "auto"  # auto: ddp where there are several processes
    config: str | None = None  # zero: DeepSpeed's own JSON, for example projects/deepspeed/zero2.json
    cpu_offload: bool = False  # fsdp2: weights and moments wait in CPU memory; for zero its JSON says so
    timeout: float = 600.0  # seconds after which a rank that waits for another gives up


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
    strategy: StrategyConfig = dataclasses.field(default_factory=StrategyConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: TrackConfig = dataclasses.field(default_factory=TrackConfig)


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Resolve a run: dataclass defaults, then the YAML file, then ``a.b=c`` overrides.

    Raises:
        ConfigError: no such file, bad YAML (object tags and duplicate keys are refused), an unknown key
            (naming the nearest), a value of the wrong type, an interpolation ``${...}`` (no environment is read).
    """
    from omegaconf import OmegaConf

    run = _read(path, RunConfig)
    for override in overrides:
        source = f"override {override!r}"
        key, equals, value = override.partition("=")
        if not key or not equals:
            raise ConfigError(f"{source}: expected a.b=value")
        refuse_interpolation(value, source)
        with explained(source, RunConfig):
            OmegaConf.update(run, key, OmegaConf.from_dotlist([f"value={value}"])["value"])
    with explained(str(path or "overrides"), RunConfig):
        return cast(RunConfig, OmegaConf.to_object(run))


def load_settings(path: str | Path, schema: type[Settings]) -> Settings:
    """Any dataclass from a YAML file that lists what differs from its defaults. Raises as :func:`load_config`."""
    from omegaconf import OmegaConf

    with explained(str(path), schema):
        return cast(Settings, OmegaConf.to_object(_read(path, schema)))


def _read(path: str | Path | None, schema: type[Any]) -> Any:
    from omegaconf import OmegaConf

    with explained(str(path), schema):
        settings = OmegaConf.structured(schema)
        if path is None:
            return settings
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            raise ConfigError(f"{path}: a recipe is a mapping of keys to values")
        refuse_interpolation(OmegaConf.to_container(loaded, resolve=False), str(path))
        return OmegaConf.merge(settings, loaded)


def dump_config(config: Any) -> str:
    """A config dataclass as YAML that :func:`load_config` reads back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


def merged(config: Settings, changes: dict[str, Any], where: str) -> Settings:
    """A config dataclass with the values of ``changes`` in it. Raises :class:`ConfigError` naming ``where``."""
    from omegaconf import OmegaConf

    refuse_interpolation(changes, where)
    with explained(where, type(config)):
        return cast(Settings, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), changes)))
