"""Which knobs of a model act: the others do nothing in it, and setting one is an error."""

from collections.abc import Mapping
from typing import Any


def acting_knobs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the knobs that act in the chosen model, with their defaults."""
    if given.get("build") is not None:
        return {"build": None, "options": {}}
    mixer = given.get("mixer") or "bk"
    knobs: dict[str, Any] = {
        "mixer": mixer,
        "mixer_scale": 1,
        "depth": "dense",
        "multiscale": False,
        "sparsity": "off",
        "length": "fixed",
        "position": "rope" if mixer == "attention" else "none",
        "d_model": 64,
        "n_layers": 4,
        "d_hidden": 4 * _whole(given.get("d_model"), 64),
        "dropout": 0.0,
        "n_experts": 1,
    }
    if mixer == "bk":
        knobs |= {"n_heads": 16, "n_values": 6, "energies": "spread", "semiseparable_rank": 0}
    elif mixer == "attention":
        knobs |= {"n_heads": 4}
    elif mixer == "mamba":
        knobs |= {"d_state": 16, "expand": 2}
    if _whole(given.get("n_experts"), 1) > 1:
        knobs |= _ROUTERS.get(str(given.get("router")), _ROUTERS["learned"])
    if given.get("depth") in ("act", "act_exit"):
        knobs |= {"act_threshold": 0.99, "act_lambda": 0.01, "halt_lr_factor": 1.0}
        if given.get("multiscale") in (True, "true"):
            knobs |= {"act_scales": "middle"}
    if given.get("depth") in ("exit", "act_exit"):
        surest = 0.5 if given.get("exit_rule") == "entropy" else 0.9
        knobs |= {"exit_heads": "shared", "exit_rule": "confidence", "exit_threshold": surest}
        knobs |= {"exit_weight": 1.0}
    if given.get("sparsity") == "learned":
        knobs |= {"sparsity_lambda": 0.01}
    if given.get("length") == "learned":
        knobs |= _LENGTH_KNOBS
        if given.get("length_list") is None:
            knobs |= {"length_layout": "linear", "length_bins": 8}
    return knobs


_ROUTERS: dict[str, dict[str, Any]] = {
    "learned": {"router": "learned", "top_k": 1, "balance_weight": 0.01},
    "scattering": {"router": "scattering", "router_head": 0, "router_resonance": 0.1},
}

_LENGTH_KNOBS = {
    "length_list": None,
    "length_penalty": 0.01,
    "length_beyond": "copy",
    "length_scope": "prefix",
    "length_grouping": "by_length",
    "length_gradient": "exact",
    "length_train_cut": 0.0,
}


def _whole(value: Any, default: int) -> int:
    try:
        return default if value is None else int(float(value))
    except (TypeError, ValueError, OverflowError):
        return default  # the field's own check says what is wrong with it


def why_idle(name: str, given: Mapping[str, Any]) -> str:
    if given.get("build") is not None:
        return f"does nothing in the model of build={given['build']}: give it as model.options.*"
    if name == "act_scales":
        return "does nothing in this model: set model.multiscale=true and model.depth=act"
    if name in ("act_threshold", "act_lambda", "halt_lr_factor"):
        return (
            f"does nothing with model.depth={given.get('depth') or 'dense'}: "
            "set model.depth=act or act_exit"
        )
    if name.startswith("exit_"):
        return (
            f"does nothing with model.depth={given.get('depth') or 'dense'}: "
            "set model.depth=exit or act_exit"
        )
    if name == "sparsity_lambda":
        return "does nothing with model.sparsity=off: set model.sparsity=learned"
    if name in ("length_layout", "length_bins") and given.get("length_list") is not None:
        return f"does nothing beside model.length_list={given['length_list']}: drop one of them"
    if name.startswith("length_"):
        return "does nothing with model.length=fixed: set model.length=learned"
    if name in ("top_k", "balance_weight", "router", "router_head", "router_resonance"):
        if _whole(given.get("n_experts"), 1) <= 1:
            return "does nothing with one expert: allowed up to n_experts=1; set model.n_experts"
        other = "learned" if given.get("router") == "scattering" else "scattering"
        return (
            f"does nothing with model.router={given.get('router') or 'learned'}: "
            f"set model.router={other}"
        )
    if name == "options":
        return "does nothing without model.build"
    return f"does nothing in a model with mixer={given.get('mixer') or 'bk'}"


def why_not_in_chunks(model: Any, chunk: int) -> str | None:
    """Return why rows of a model's config cannot be trained on in chunks, or ``None``."""
    if chunk >= model.n_seq:
        return f"does nothing with model.n_seq={model.n_seq}: a row is one chunk; leave it out"
    if model.build is not None:
        return "needs a built-in model: your own one takes whole rows; leave it out"
    if model.mixer == "attention":
        return (
            "needs a mixer with a state of fixed size: attention over a window would be another "
            "model; use model.mixer=bk, mamba or linear_recurrence, or leave it out"
        )
    for name, off in (("multiscale", False), ("mixer_scale", 1), ("length", "fixed")):
        if getattr(model, name) != off:
            return f"needs model.{name}={str(off).lower()}: groups and lengths are of whole rows"
    if model.dropout:
        return (
            f"needs model.dropout=0, got {model.dropout}: a chunk is computed twice and would "
            "drop other units"
        )
    return None
