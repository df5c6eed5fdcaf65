"""One layer of the language model. Letters: B batch, N sites, D width."""

from torch import Tensor, nn

from bkray.nn.mixer import Mixer
from bkray.nn.moe import Experts, FeedForward, Routing


class Block(nn.Module):
    """Norm, mixer, norm, feed-forward, each added to the residual stream.

    ``running_BN`` marks the tokens that are really there; what lies behind them in a row is
    padding, which no expert sees. ``None`` means all.
    """

    def __init__(
        self, d_model: int, mixer: Mixer, feed_forward: FeedForward | Experts, dropout: float
    ) -> None:
        super().__init__()
        self.mixer_norm = nn.RMSNorm(d_model)
        self.mixer = mixer
        self.feed_norm = nn.RMSNorm(d_model)
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, hidden_BND: Tensor, position_BN: Tensor, running_BN: Tensor | None
    ) -> tuple[Tensor, Routing | None]:
        mixed = self.mixer(self.mixer_norm(hidden_BND), position_BN)
        hidden_BND = hidden_BND + self.dropout(mixed)
        normed = self.feed_norm(hidden_BND)
        if isinstance(self.feed_forward, FeedForward):
            return hidden_BND + self.dropout(self.feed_forward(normed)), None
        if running_BN is None:
            out_TD, routing = self.feed_forward(normed.flatten(0, 1))
            return hidden_BND + self.dropout(out_TD.view_as(normed)), routing
        out_TD, routing = self.feed_forward(normed[running_BN])
        added = out_TD.new_zeros(normed.shape).masked_scatter(running_BN[..., None], out_TD)
        return hidden_BND + self.dropout(added), routing
