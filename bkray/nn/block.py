"""One layer of the language model. Letters: B batch, N sites, D width."""

from torch import Tensor, nn

from bkray.nn.bk import BKMixer
from bkray.nn.mixer import Mixer, State, StreamingMixer
from bkray.nn.moe import Experts, FeedForward, Routing
from bkray.nn.routers import ScatteringRouter


class Block(nn.Module):
    """Norm, mixer, norm, feed-forward, each added to the residual stream.

    ``running_BN`` marks the tokens that are really there; what lies behind them in a row is
    padding, which no expert sees. ``None`` means all. ``streamed`` is given where the sites are a
    chunk of a longer sequence.
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
        self.scatters = isinstance(feed_forward, Experts) and isinstance(
            feed_forward.router, ScatteringRouter
        )

    def forward(
        self,
        hidden_BND: Tensor,
        position_BN: Tensor,
        running_BN: Tensor | None,
        streamed: "StreamedBlock | None" = None,
    ) -> tuple[Tensor, Routing | None]:
        scattered_BN2 = None
        normed = self.mixer_norm(hidden_BND)
        if self.scatters:
            mixed, scattered_BN2 = self._scatter(normed, position_BN, running_BN, streamed)
        elif streamed is None:
            mixed = self.mixer(normed, position_BN)
        else:
            mixed = streamed.mix(normed, position_BN, running_BN)
        hidden_BND = hidden_BND + self.dropout(mixed)
        normed = self.feed_norm(hidden_BND)
        if isinstance(self.feed_forward, FeedForward):
            return hidden_BND + self.dropout(self.feed_forward(normed)), None
        if running_BN is None:
            scattered_T2 = None if scattered_BN2 is None else scattered_BN2.flatten(0, 1)
            out_TD, routing = self.feed_forward(normed.flatten(0, 1), scattered_T2)
            return hidden_BND + self.dropout(out_TD.view_as(normed)), routing
        scattered_T2 = None if scattered_BN2 is None else scattered_BN2[running_BN]
        out_TD, routing = self.feed_forward(normed[running_BN], scattered_T2)
        added = out_TD.new_zeros(normed.shape).masked_scatter(running_BN[..., None], out_TD)
        return hidden_BND + self.dropout(added), routing

    def _scatter(
        self,
        hidden_BND: Tensor,
        position_BN: Tensor,
        running_BN: Tensor | None,
        streamed: "StreamedBlock | None",
    ) -> tuple[Tensor, Tensor]:
        """Return the mixed sites, and of each what a scattering router goes by, (B, N, 2)."""
        assert isinstance(self.mixer, BKMixer) and isinstance(self.feed_forward, Experts)
        assert isinstance(self.feed_forward.router, ScatteringRouter)
        before = None if streamed is None else streamed.state
        mixed_BND, behind, scattered_BN2 = self.mixer.scatter(
            hidden_BND, position_BN, running_BN, before, self.feed_forward.router.head
        )
        if streamed is not None:
            streamed.state = behind
        return mixed_BND, scattered_BN2


class StreamedBlock:
    """Stands in for a block in a depth policy, over one chunk of a sequence.

    ``state`` is the mixer's behind the chunk before, then behind this one. A policy that does not
    run the block leaves it as it is: to a layer, stopped tokens are not there.
    """

    def __init__(self, block: Block, state: State | None) -> None:
        self.block, self.state = block, state
        self.feed_forward = block.feed_forward

    def __call__(
        self, hidden_BND: Tensor, position_BN: Tensor, running_BN: Tensor | None
    ) -> tuple[Tensor, Routing | None]:
        said: tuple[Tensor, Routing | None] = self.block(
            hidden_BND, position_BN, running_BN, streamed=self
        )
        return said

    def mix(self, hidden_BND: Tensor, position_BN: Tensor, running_BN: Tensor | None) -> Tensor:
        """Return the mixed chunk, and move the state behind it."""
        mixer = self.block.mixer
        assert isinstance(mixer, StreamingMixer)
        mixed_BND, self.state = mixer.stream(hidden_BND, position_BN, running_BN, self.state)
        return mixed_BND
