"""From config to model: the only registry."""

import importlib

from torch import nn

from bkray.config import ModelConfig, TrialConfig
from bkray.errors import ConfigError
from bkray.nn.act import ActDepth
from bkray.nn.act_exit import ActExitDepth
from bkray.nn.attention import AttentionMixer
from bkray.nn.beyond import beyond
from bkray.nn.bins import checked_bins, length_bins
from bkray.nn.bk import BKMixer
from bkray.nn.block import Block
from bkray.nn.depth import DenseDepth
from bkray.nn.exits import ExitDepth
from bkray.nn.length import LearnedLength, LengthPredictor
from bkray.nn.linear_recurrence import LinearRecurrenceMixer
from bkray.nn.lm import DepthPolicy, LanguageModel
from bkray.nn.mamba import MambaMixer
from bkray.nn.mixer import Mixer
from bkray.nn.moe import Experts, FeedForward
from bkray.nn.multiscale import N_STAGES, MultiscaleDepth, ScaledMixer
from bkray.nn.own_model import check_own_model
from bkray.nn.routers import ScatteringRouter
from bkray.nn.sparsity import SparseDepth


def build(config: TrialConfig, vocab_size: int) -> nn.Module:
    """Return the model of a config, freshly initialised from torch's global generator.

    Raises:
        ConfigError: the user's own model cannot be imported or breaks the contract.
    """
    if config.model.build is None:
        return built_in(config.model, vocab_size)
    builder = own_builder(config.model.build)
    try:
        model = builder(config, vocab_size)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(f"model.build={config.model.build} fails: {said}") from error
    check_own_model(model, vocab_size, config.model.n_seq, name=config.model.build)
    return model  # type: ignore[no-any-return]  # checked by its contract


def built_in(model: ModelConfig, vocab_size: int) -> LanguageModel | LearnedLength:
    """Return the built-in model: the language model, wrapped where its length is learned."""
    inner = language_model(model, vocab_size)
    if model.length == "fixed":
        return inner
    assert model.d_model is not None and model.length_beyond is not None
    assert model.length_scope is not None and model.length_grouping is not None
    return LearnedLength(
        inner,
        LengthPredictor(model.d_model, bins_of(model), model.length_scope),
        beyond(model.length_beyond, model.d_model),
        grouping=model.length_grouping,
        train_cut=model.length_train_cut or 0.0,
    )


def bins_of(model: ModelConfig) -> tuple[int, ...]:
    """Return the lengths that a learned length chooses from, in sites.

    Raises:
        ConfigError: they do not grow up to ``model.n_seq``.
    """
    if model.length_list is not None:
        return checked_bins([int(n) for n in model.length_list.split(",")], model.n_seq)
    assert model.length_layout is not None and model.length_bins is not None
    return length_bins(model.length_layout, model.length_bins, model.n_seq)


def language_model(model: ModelConfig, vocab_size: int) -> LanguageModel:
    """Return the language model with the slots filled as ``model`` says, of fixed length."""
    assert model.d_model is not None and model.n_layers is not None
    blocks = [
        Block(model.d_model, mixer(model), feed_forward(model), model.dropout or 0.0)
        for _ in range(model.n_layers)
    ]
    return LanguageModel(
        vocab_size=vocab_size,
        d_model=model.d_model,
        blocks=blocks,
        depth=depth_policy(model, vocab_size),
        n_positions=model.n_seq if model.position == "learned" else None,
    )


def mixer(model: ModelConfig) -> Mixer:
    """Return one layer's token mixer, at its scale."""
    if model.mixer_scale is None or model.mixer_scale == 1:
        return full_rate_mixer(model)
    return ScaledMixer(full_rate_mixer(model), model.mixer_scale)


def full_rate_mixer(model: ModelConfig) -> Mixer:
    """Return one layer's token mixer, over all sites."""
    assert model.d_model is not None
    match model.mixer:
        case "bk":
            assert model.n_heads is not None and model.n_values is not None
            rank, spread = model.semiseparable_rank or 0, model.energies == "spread"
            return BKMixer(model.d_model, model.n_heads, model.n_values, rank, spread=spread)
        case "attention":
            assert model.n_heads is not None
            rope = model.position == "rope"
            return AttentionMixer(model.d_model, model.n_heads, rope=rope, window=model.n_seq)
        case "mamba":
            assert model.d_state is not None and model.expand is not None
            return MambaMixer(model.d_model, model.d_state, model.expand)
        case _:
            return LinearRecurrenceMixer(model.d_model)


def feed_forward(model: ModelConfig) -> FeedForward | Experts:
    """Return one layer's feed-forward part."""
    assert model.d_model is not None and model.d_hidden is not None
    if model.n_experts is None or model.n_experts == 1:
        return FeedForward(model.d_model, model.d_hidden)
    router = None
    if model.router == "scattering":
        assert model.router_head is not None and model.router_resonance is not None
        router = ScatteringRouter(model.n_experts, model.router_head, model.router_resonance)
    return Experts(model.d_model, model.d_hidden, model.n_experts, model.top_k, router)


def depth_policy(model: ModelConfig, vocab_size: int) -> DepthPolicy:
    """Return how many layers a token runs through, and which of them over pairs."""
    assert model.d_model is not None and model.n_layers is not None
    if model.depth == "exit":
        n_heads = (N_STAGES if model.multiscale else model.n_layers) - 1
        exits = exit_depth(model, n_heads, vocab_size)
        return MultiscaleDepth(around=exits) if model.multiscale else exits
    n_layers = model.n_layers - 2 if model.multiscale else model.n_layers
    policy: DenseDepth | ActDepth | SparseDepth = DenseDepth()
    if model.act_threshold is not None:
        policy = ActDepth(model.d_model, n_layers, model.act_threshold)
        if model.depth == "act_exit":
            return ActExitDepth(policy, exit_depth(model, n_layers - 1, vocab_size))
    elif model.sparsity == "learned":
        policy = SparseDepth(model.d_model, n_layers if model.multiscale else n_layers - 1)
    if not model.multiscale:
        return policy
    around = None
    if model.act_scales == "each":
        assert model.act_threshold is not None
        around = ActDepth(model.d_model, N_STAGES, model.act_threshold)
    return MultiscaleDepth(policy, around)


def exit_depth(model: ModelConfig, n_heads: int, vocab_size: int) -> ExitDepth:
    """Return early exit with ``n_heads`` early heads."""
    assert model.d_model is not None
    assert model.exit_rule is not None and model.exit_threshold is not None
    own = range(n_heads) if model.exit_heads == "own" else ()
    heads = [
        nn.Sequential(nn.RMSNorm(model.d_model), nn.Linear(model.d_model, vocab_size, bias=False))
        for _ in own
    ]
    return ExitDepth(model.exit_rule, model.exit_threshold, heads)


def own_builder(path: str):  # type: ignore[no-untyped-def]  # whatever the user's module holds
    """Return the function that a dotted path ``package.module:function`` names."""
    module_name, _, function = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), function)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # the module is there; something it imports is not
        raise ConfigError(
            f"model.build={path}: no module {error.name!r} on the import path; "
            "run bkray from the folder that holds it, or install it"
        ) from None
    except AttributeError:
        raise ConfigError(f"model.build={path}: {module_name} has no {function!r}") from None
    if not callable(found):
        raise ConfigError(f"model.build={path} is a {type(found).__name__}, not a function")
    return found
