"""Which language model, and which of its knobs act."""

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from bkray.config.section import Section
from bkray.knobs import acting_knobs, why_idle

MixerName = Literal["bk", "attention", "linear_recurrence", "mamba"]


class ModelConfig(Section):
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
    n_values: int | None = Field(None, ge=0)
    """Value channels per head of the resolvent; 0 for its diagonal alone."""
    energies: Literal["spread", "zero"] | None = None
    """Where the heads' energies start: spread over the band, or all of them at its edge, 0."""
    semiseparable_rank: int | None = Field(None, ge=0)
    """Rank of what the resolvent's values also run through, ``U V^T``; 0 for nothing."""
    d_state: int | None = Field(None, ge=1)
    """States per inner channel of the selective scan."""
    expand: int | None = Field(None, ge=1)
    """Inner channels of the selective scan, as a multiple of ``d_model``."""
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
    act_scales: Literal["middle", "each"] | None = None
    """Who halts in an hourglass: the pairs in its middle, or sites before and behind it too."""
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
        if self.semiseparable_rank and self.n_values == 0:
            raise ValueError(
                f"model.semiseparable_rank={self.semiseparable_rank} does nothing with "
                "model.n_values=0: there is nothing to run through it; leave one of them out"
            )
        _check_adaptive(self)
        _check_router(self)
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
