"""The configuration of one trial: frozen, strict, typed, and the same on every carrier.

A config is built from *overrides*, a flat mapping from config paths to values
(``{"model.d_model": 128}``). A knob of the model that does nothing in the model at hand is
``None``, and setting it is an error, so two equal configs always mean the same trial.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bkray.knobs import acting_knobs, why_idle

MixerName = Literal["bk", "attention", "linear_recurrence"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(_Section):
    """Which language model. Slots: ``mixer``, ``depth``, ``position``, experts; or ``build``.

    ``None`` means that the knob does nothing here; ``acting_knobs`` says which knobs act, and
    their defaults.
    """

    build: str | None = Field(None, pattern=r"^[\w.]+:\w+$")
    """Dotted path of the user's own model, ``package.module:function``; ``options`` are its
    knobs."""
    options: dict[str, bool | int | float | str] | None = None
    n_seq: int = Field(128, ge=2)
    """Training context, in tokens."""
    mixer: MixerName | None = None
    mixer_scale: int | None = Field(None, ge=1)
    """Sites per group that the mixers run over; 1 for every site by itself."""
    depth: Literal["dense", "act", "exit", "act_exit"] | None = None
    multiscale: bool | None = None
    """Whether all blocks but the first and the last run over pairs of sites."""
    sparsity: Literal["off", "learned"] | None = None
    """Whether each layer but the first decides which tokens it computes."""
    position: Literal["none", "learned", "rope"] | None = None
    d_model: int | None = Field(None, ge=2)
    n_layers: int | None = Field(None, ge=1)
    n_heads: int | None = Field(None, ge=1)
    n_values: int | None = Field(None, ge=1)
    """Value channels per head of the resolvent."""
    d_hidden: int | None = Field(None, ge=1)
    """Hidden width of the feed-forward part, per expert."""
    dropout: float | None = Field(None, ge=0, lt=1)
    n_experts: int | None = Field(None, ge=1)
    top_k: int | None = Field(None, ge=1)
    balance_weight: float | None = Field(None, ge=0)
    act_threshold: float | None = Field(None, gt=0, le=1)
    act_lambda: float | None = Field(None, ge=0)
    halt_lr_factor: float | None = Field(None, gt=0)
    """Learning rate of the halting units, as a multiple of ``optimizer.lr``."""
    exit_heads: Literal["shared", "own"] | None = None
    """Who reads the early layers: the model's own norm and head, or a pair of them per layer."""
    exit_rule: Literal["confidence", "entropy"] | None = None
    exit_threshold: float | None = Field(None, ge=0)
    """Least probability of the likeliest token, or most entropy in nats, with which to leave."""
    exit_weight: float | None = Field(None, ge=0)
    """Weight of an early head's loss, relative to the last one's."""
    sparsity_lambda: float | None = Field(None, ge=0)
    """Nats per token that computing every scored layer costs more than none."""
    length: Literal["fixed", "learned"] | None = None
    length_layout: Literal["linear", "exponential"] | None = None
    length_bins: int | None = Field(None, ge=2)
    length_list: str | None = Field(None, pattern=r"^\d+(,\d+)+$")
    """The bins themselves, ``32,64,128``, in place of layout and number."""
    length_penalty: float | None = Field(None, ge=0)
    """Nats per token that the longest bin costs more than none."""
    length_beyond: Literal["repeat", "shallow", "copy"] | None = None
    """Who answers behind a cut."""
    length_scope: Literal["prefix", "full"] | None = None
    """What the predictor sees: the shortest bin, or the whole row and with it the future."""
    length_grouping: Literal["by_length", "per_sequence", "batch_maximum"] | None = None
    length_gradient: Literal["exact", "gumbel"] | None = None
    length_train_cut: float | None = Field(None, ge=0, lt=1)
    """Share of training rows that are cut as in evaluation."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        if given.get("mixer") not in (None, *get_args(MixerName)):
            return given  # the field's own check says so; which knobs act is anyone's guess
        acting = acting_knobs(given)
        idle = [
            name
            for name in cls.model_fields
            if name not in acting and given.get(name) is not None and name != "n_seq"
        ]
        if idle:
            raise ValueError(f"model.{idle[0]}={given[idle[0]]} {why_idle(idle[0], given)}")
        chosen = {name: value for name, value in given.items() if value is not None}
        return {**acting, **chosen}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.top_k is not None and self.n_experts is not None and self.top_k > self.n_experts:
            raise ValueError(
                f"model.top_k must be between 1 and model.n_experts={self.n_experts}, "
                f"got {self.top_k}: raise n_experts or lower top_k"
            )
        if self.mixer == "attention" and (self.d_model or 0) % (2 * (self.n_heads or 1)):
            raise ValueError(
                f"model.d_model must be a multiple of 2 * model.n_heads for attention, "
                f"got d_model={self.d_model} with n_heads={self.n_heads}"
            )
        if self.position == "rope" and self.mixer != "attention":
            raise ValueError(
                f"model.position=rope does nothing in a model with mixer={self.mixer}: "
                "use none or learned"
            )
        if self.depth == "act" and self.n_layers == 1:
            raise ValueError(
                "model.depth=act does nothing with model.n_layers=1: the last layer always stops; "
                "set model.n_layers to at least 2 or model.depth=dense"
            )
        _check_adaptive(self)
        return self


def _check_adaptive(model: ModelConfig) -> None:
    n_layers = model.n_layers or 0
    if model.depth in ("exit", "act_exit") and n_layers == 1:
        raise ValueError(
            f"model.depth={model.depth} does nothing with model.n_layers=1: all leave behind the "
            "last; set model.n_layers to at least 2 or model.depth=dense"
        )
    if model.depth == "act_exit" and model.multiscale:
        raise ValueError(
            "model.depth=act_exit does not go with model.multiscale=true: pairs halt, but sites "
            "leave; set model.depth to act or exit, or model.multiscale=false"
        )
    if model.exit_rule == "confidence" and not 0 < (model.exit_threshold or 0) <= 1:
        raise ValueError(
            "model.exit_threshold must be above 0 and at most 1 with model.exit_rule=confidence, "
            f"got {model.exit_threshold}"
        )
    if model.exit_heads == "own" and model.exit_weight == 0:
        raise ValueError(
            "model.exit_heads=own needs a model.exit_weight above 0, got 0: nothing else trains "
            "them; raise it or set model.exit_heads=shared"
        )
    if model.sparsity == "learned" and model.depth != "dense":
        raise ValueError(
            f"model.sparsity=learned needs model.depth=dense, got depth={model.depth}: both "
            "decide which layers a token runs through; drop one of them"
        )
    if model.sparsity == "learned" and n_layers == 1:
        raise ValueError(
            "model.sparsity=learned does nothing with model.n_layers=1: the first layer computes "
            "every token; set model.n_layers to at least 2 or model.sparsity=off"
        )
    fewest = 4 if model.depth == "act" else 3
    if model.multiscale and n_layers < fewest:
        raise ValueError(
            f"model.multiscale=true with model.depth={model.depth} needs model.n_layers of at "
            f"least {fewest}, got {n_layers}: the first and the last block run over all sites"
        )
    if model.mixer_scale is not None and model.mixer_scale > model.n_seq:
        raise ValueError(
            f"model.mixer_scale must be between 1 and model.n_seq={model.n_seq}, "
            f"got {model.mixer_scale}: no group of sites would ever be whole"
        )


class DataConfig(_Section):
    """Which text, and how it becomes tokens."""

    corpus: str = "stdlib"
    """``stdlib`` (Python's own library), ``mixture`` (patterns, that and noise), or the path of a
    text file, a folder, a WikiText one."""
    tokenizer: Literal["bytes", "words"] = "bytes"
    vocab_size: int | None = Field(None, ge=2)
    """Words kept by ``tokenizer=words``; the rest become ``<unk>``."""
    max_bytes: int | None = Field(None, ge=1024)
    """Read at most so much of the training text, for small runs."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        words = given.get("tokenizer") == "words"
        if given.get("vocab_size") is not None and not words:
            raise ValueError("data.vocab_size does nothing with data.tokenizer=bytes: it is 256")
        if words and given.get("vocab_size") is None:
            return {**given, "vocab_size": 8192}
        return given


class OptimizerConfig(_Section):
    """AdamW, warm-up and cosine."""

    lr: float = Field(5e-3, gt=0)
    final_lr_fraction: float = Field(0.1, ge=0, le=1)
    warmup_steps: int = Field(40, ge=0)
    weight_decay: float = Field(0.1, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    clip_norm: float = Field(0.5, gt=0)


class TrainConfig(_Section):
    """How long, in which portions, and how often to look."""

    steps: int = Field(400, ge=1)
    batch_size: int = Field(16, ge=1)
    """Sequences per optimizer step, over all accumulation rounds."""
    accumulation: int = Field(1, ge=1)
    eval_every: int = Field(100, ge=1)
    eval_windows: int = Field(64, ge=1)
    """Validation windows of ``model.n_seq`` tokens, the same ones for every trial."""
    checkpoint_every: int = Field(100, ge=1)
    precision: Literal["float32", "float64", "bf16"] = "float32"
    """``bf16`` is autocast and needs a GPU; the scan stays in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    speed_reference_layers: int | None = Field(None, ge=1)
    """Depth of the dense model that speedups are relative to; default: the trial's own depth."""
    speed_reference_experts: int | None = Field(None, ge=1)
    """Experts of that model; default: the trial's own."""
    on_spike: Literal["record", "skip_step", "rewind"] = "record"
    """After a loss more than twice the one before: go on, undo that step, or go back to the last
    good state and on from there with other data."""
    max_interventions: int | None = Field(None, ge=1)
    """Spikes that ``on_spike`` answers; further ones are only recorded."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        acts = given.get("on_spike", "record") != "record"
        if given.get("max_interventions") is not None and not acts:
            raise ValueError(
                "train.max_interventions does nothing with train.on_spike=record: "
                "set train.on_spike to skip_step or rewind"
            )
        if acts and given.get("max_interventions") is None:
            return {**given, "max_interventions": 10}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"train.batch_size={self.batch_size} must be a multiple of "
                f"train.accumulation={self.accumulation}"
            )
        return self


class TrialConfig(_Section):
    """Everything that decides the numbers of one trial."""

    model: ModelConfig = Field(default_factory=lambda: ModelConfig())
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig())
    train: TrainConfig = Field(default_factory=lambda: TrainConfig())
    seed: int = Field(0, ge=0, lt=2**63)
    threads: int = Field(1, ge=1)
    """CPU threads of one trial: torch, numba and OpenMP alike."""
    arm: str = ""
    """Label of a rival within a sweep, such as ``dense-2``; empty for searched trials."""
