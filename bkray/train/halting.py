"""What to tell the user when a halting policy has collapsed, with the guides' remedies."""

from collections.abc import Mapping

EXTREME_SHARE = 0.99
"""Share of tokens at one depth beyond which the policy no longer adapts."""

HIGH_SPREAD = 0.42
"""Standard deviation of the layers run, as a share of their range. Half of the tokens at each end
is 0.5, the most there can be; with two layers there is nothing in between to be missed."""


def advice(metrics: Mapping[str, float], n_layers: int) -> str:
    """Return one sentence on an evaluation's histogram of layers; empty where all is well."""
    if "act/avg_layers_executed" not in metrics:
        return ""
    at_first = metrics.get("act/share_at_layer_1", 0.0)
    at_last = metrics.get(f"act/share_at_layer_{n_layers}", 0.0)
    if at_first >= EXTREME_SHARE:
        return (
            f"all halt at layer 1 ({at_first:.1%} of tokens): lower model.act_lambda or raise "
            "model.act_threshold; the unit of a token that stops there gets no gradient"
        )
    if at_last >= EXTREME_SHARE:
        return (
            f"none halts before layer {n_layers} ({at_last:.1%} of tokens): raise "
            "model.act_lambda or lower model.act_threshold"
        )
    if n_layers > 2 and metrics["act/std_layers_executed"] >= HIGH_SPREAD * (n_layers - 1):
        return (
            "high variance (most tokens run through very few layers or nearly all): lower "
            "model.halt_lr_factor or model.act_lambda, or train longer"
        )
    return ""
