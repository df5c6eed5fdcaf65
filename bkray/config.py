"""The configuration of one trial: frozen, strict, typed, and the same on every carrier.

A config is built from *overrides*, a flat mapping from config paths to values
(``{"model.d_model": 128}``). A knob of the model that does nothing in the model at hand is
``None``, and setting it is an error, so two equal configs always mean the same trial.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bkray.knobs import acting_knobs, why_idle, why_not_in_chunks

MixerName = Literal["bk", "attention", "linear_recurrence"]

RECALL_DISTANCE = 1024
"""``data.recall_distance`` unless told otherwise."""


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
    depth: Literal["dense", "act", "exit"] | None = None
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
    semiseparable_rank: int | None = Field(None, ge=0)
    """Rank of what the resolvent's values also run through, ``U V^T``; 0 for nothing."""
    d_hidden: int | None = Field(None, ge=1)
    """Hidden width of the feed-forward part, per expert."""
    dropout: float | None = Field(None, ge=0, lt=1)
    n_experts: int | None = Field(None, ge=1)
    router: Literal["learned", "scattering"] | None = None
    """Who chooses the experts: a linear layer, or the phase of one head's Green's function."""
    router_head: int | None = Field(None, ge=0)
    """Head of the resolvent whose phase a scattering router goes by."""
    router_resonance: float | None = Field(None, ge=0, le=1)
    """``|g| eta`` above which a scattering router asks two experts: 0 for always, 1 for never."""
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
        _check_router(self)
        return self


def _check_adaptive(model: ModelConfig) -> None:
    n_layers = model.n_layers or 0
    if model.depth == "exit" and n_layers == 1:
        raise ValueError(
            "model.depth=exit does nothing with model.n_layers=1: all leave behind the last; "
            "set model.n_layers to at least 2 or model.depth=dense"
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


def _check_router(model: ModelConfig) -> None:
    if model.router != "scattering":
        return
    if model.mixer != "bk":
        raise ValueError(
            f"model.router=scattering needs model.mixer=bk, got {model.mixer}: no other mixer has "
            "a phase; set model.router=learned"
        )
    if model.mixer_scale != 1:
        raise ValueError(
            f"model.router=scattering needs model.mixer_scale=1, got {model.mixer_scale}: every "
            "site must have a phase of its own"
        )
    n_heads = model.n_heads or 1
    if (model.router_head or 0) >= n_heads:
        raise ValueError(
            f"model.router_head must be between 0 and {n_heads - 1}, got {model.router_head}: "
            f"model.n_heads={n_heads}"
        )


class DataConfig(_Section):
    """Which text, and how it becomes tokens."""

    corpus: str = "stdlib"
    """``stdlib`` (Python's own library), ``documents`` (its longest packages, kept whole),
    ``mixture`` (patterns, the library and noise), ``recall`` (values asked for again far behind
    their first mention), or the path of a text file, a folder, a WikiText one."""
    tokenizer: Literal["bytes", "words"] = "bytes"
    vocab_size: int | None = Field(None, ge=2)
    """Words kept by ``tokenizer=words``; the rest become ``<unk>``."""
    max_bytes: int | None = Field(None, ge=1024)
    """Read at most so much of the training text, for small runs."""
    recall_distance: int | None = Field(None, ge=8, le=2**20)
    """Longest distance of ``corpus=recall`` in bytes, a power of two; half of it, a quarter and so
    on are asked for too."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        words = given.get("tokenizer") == "words"
        if given.get("vocab_size") is not None and not words:
            raise ValueError("data.vocab_size does nothing with data.tokenizer=bytes: it is 256")
        corpus = given.get("corpus", "stdlib")
        if given.get("recall_distance") is not None and corpus != "recall":
            raise ValueError(
                f"data.recall_distance does nothing with data.corpus={corpus}: "
                "set data.corpus=recall"
            )
        if corpus == "recall" and given.get("recall_distance") is None:
            given = {**given, "recall_distance": RECALL_DISTANCE}
        if words and given.get("vocab_size") is None:
            return {**given, "vocab_size": 8192}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        distance = self.recall_distance or 8
        if distance & (distance - 1):
            raise ValueError(
                f"data.recall_distance must be a power of two from 8 to {2**20}, got {distance}"
            )
        return self


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
    chunk: int | None = Field(None, ge=1)
    """Sites of a row that are held at once, in training and evaluation: the same numbers in the
    memory of one chunk, for another forward pass. ``None`` for whole rows."""
    eval_every: int = Field(100, ge=1)
    eval_windows: int = Field(64, ge=1)
    """Validation windows of ``model.n_seq`` tokens, the same ones for every trial."""
    eval_stretch: int | None = Field(None, ge=2)
    """Tokens of the stretches that validation windows are cut from, so that trials of several
    ``model.n_seq`` score the same ones. ``None`` for windows that are spread one by one."""
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
    monitor: Literal["off", "birman_schwinger"] = "off"
    """Whether every evaluation also takes Schatten norms and condition number of the potential."""
    precision_upgrade: float | None = Field(None, gt=1)
    """Condition number from which on a layer's scan runs in float64; ``None`` for never."""

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
        _check_monitor(given)
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


def _check_monitor(given: Mapping[str, Any]) -> None:
    upgrade = given.get("precision_upgrade")
    if upgrade is None:
        return
    if given.get("monitor", "off") == "off":
        raise ValueError(
            f"train.precision_upgrade={upgrade} does nothing with train.monitor=off: "
            "set train.monitor=birman_schwinger"
        )
    if given.get("precision") == "float64":
        raise ValueError(
            f"train.precision_upgrade={upgrade} does nothing with train.precision=float64: "
            "the scan runs in it anyway"
        )


class LadderConfig(_Section):
    """A ladder of sequence lengths, in tokens; the knobs act where ``lengths`` are given.

    A trial climbs its lengths in turn, an equal share of the steps on each; the sweep ``ladder``
    makes the trials: one per length and seed (``independent``), or one for all (``carry``).
    """

    lengths: str | None = Field(None, pattern=r"^\d+(,\d+)*$")
    """``128,512,2048``, growing; each divides the last one, which is ``model.n_seq``."""
    mode: Literal["independent", "carry"] | None = None
    lr_rule: Literal["given", "transfer", "search"] | None = None
    """Learning rate: as given; searched at the shortest length and taken over, with a test at the
    longest; or searched at every length."""
    batch: Literal["tokens", "rows"] | None = None
    """What all lengths have in common, per step; ``train.batch_size`` is that of the longest."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        chosen = {name: value for name, value in given.items() if value is not None}
        if chosen and "lengths" not in chosen:
            name = next(iter(chosen))
            raise ValueError(f"ladder.{name} does nothing without ladder.lengths: give 128,512,..")
        if isinstance(chosen.get("lengths"), int):  # a single one, as a command line reads it
            chosen["lengths"] = str(chosen["lengths"])
        defaults = {"mode": "independent", "lr_rule": "given", "batch": "tokens"}
        return {**defaults, **chosen} if chosen else chosen

    @property
    def rungs(self) -> tuple[int, ...]:
        """The lengths as numbers; empty without any."""
        return tuple(int(n) for n in self.lengths.split(",")) if self.lengths else ()


class TrialConfig(_Section):
    """Everything that decides the numbers of one trial."""

    model: ModelConfig = Field(default_factory=lambda: ModelConfig())
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig())
    train: TrainConfig = Field(default_factory=lambda: TrainConfig())
    ladder: LadderConfig = Field(default_factory=lambda: LadderConfig())
    seed: int = Field(0, ge=0, lt=2**63)
    threads: int = Field(1, ge=1)
    """CPU threads of one trial: torch, numba and OpenMP alike."""
    arm: str = ""
    """Label of a rival within a sweep, such as ``dense-2``; empty for searched trials."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        """The longest length of a ladder is the model's, unless that is given."""
        try:
            longest = LadderConfig.model_validate(given["ladder"]).rungs[-1]
        except (TypeError, KeyError, IndexError, ValueError):
            return given  # there is none, or the section's own check says what is wrong with it
        return {**given, "model": {"n_seq": longest, **given.get("model", {})}}

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_lengths(self.ladder.rungs, self.model.n_seq, self.train)
        if self.train.monitor != "off" and self.model.mixer != "bk":
            raise ValueError(
                f"train.monitor={self.train.monitor} does nothing in a model with "
                f"mixer={self.model.mixer}: it has no potential; set train.monitor=off"
            )
        if self.train.chunk is not None:
            refusal = why_not_in_chunks(self.model, self.train.chunk)
            if refusal is not None:
                raise ValueError(f"train.chunk={self.train.chunk} {refusal}")
        return self


def _check_lengths(rungs: tuple[int, ...], n_seq: int, train: TrainConfig) -> None:
    if rungs:
        grows = all(a < b for a, b in pairwise(rungs))
        if not grows or rungs[0] < 2 or rungs[-1] != n_seq or any(n_seq % n for n in rungs):
            raise ValueError(
                f"ladder.lengths must grow from at least 2 up to model.n_seq={n_seq}, each a "
                f"divisor of it, got {','.join(map(str, rungs))}"
            )
        if train.steps < len(rungs):
            raise ValueError(
                f"train.steps must be at least {len(rungs)} for as many ladder.lengths, got "
                f"{train.steps}"
            )
    stretch = train.eval_stretch
    if stretch is not None and (stretch % n_seq or train.eval_windows * n_seq % stretch):
        raise ValueError(
            f"train.eval_stretch={stretch} must be a multiple of model.n_seq={n_seq}, and "
            f"train.eval_windows={train.eval_windows} windows whole stretches: change one of them"
        )
