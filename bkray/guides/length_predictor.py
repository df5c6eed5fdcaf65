"""The guides' predictor of how many sites are worth computing.

Letters: B batch, N sites, D width, K bins.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.nn.bins import checked_bins, length_bins
from bkray.nn.length import LengthPredictor


class SequenceLengthPredictor(nn.Module):
    """Says how many sites of a row are worth computing, from the sites of the shortest bin.

    ``length_bins`` and ``num_length_bins`` may both be assigned, in either order, and before an
    optimizer is made: other bins have an output layer of their own, which starts anew.

    Raises:
        ConfigError: bins that do not grow up to ``max_seq_len``.
    """

    def __init__(self, d_model: int, max_seq_len: int = 128, num_length_bins: int = 8) -> None:
        super().__init__()
        if num_length_bins < 1:
            raise ConfigError(f"num_length_bins must be at least 1, got {num_length_bins}")
        self.d_model, self.max_seq_len = d_model, max_seq_len
        self.num_length_bins = num_length_bins
        bins = length_bins("linear", num_length_bins, max_seq_len)
        self.predictor = LengthPredictor(d_model, bins)

    def forward(
        self, x_embedded: Tensor, return_distribution: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the most probable length of each row, (B,), and if asked all shares, (B, K).

        Args:
            x_embedded: (B, N, D).

        Raises:
            ConfigError: ``length_bins`` and ``num_length_bins`` contradict one another.
        """
        logit_BK: Tensor = self.checked()(x_embedded)
        predicted_B = self.length_bins[logit_BK.argmax(1)]
        return (predicted_B, logit_BK.softmax(1)) if return_distribution else predicted_B

    @property
    def length_bins(self) -> Tensor:
        """The lengths in sites, shortest first, (K,)."""
        return torch.tensor(self.predictor.bins, device=self.predictor.down.weight.device)

    @length_bins.setter
    def length_bins(self, lengths: Tensor | Sequence[int]) -> None:
        given = torch.as_tensor(lengths)
        if given.dim() != 1 or given.is_floating_point():
            raise ConfigError(f"length_bins must be a row of whole numbers, got {lengths}")
        bins = checked_bins(given.tolist(), self.max_seq_len)
        if bins == self.predictor.bins:
            return
        before = self.predictor.down
        self.predictor.bins = bins
        self.predictor.down = nn.Linear(before.in_features, len(bins)).to(before.weight)

    def checked(self) -> LengthPredictor:
        """Return the predictor within, which says logits.

        Raises:
            ConfigError: ``length_bins`` and ``num_length_bins`` contradict one another.
        """
        n_bins = len(self.predictor.bins)
        if n_bins != self.num_length_bins:
            raise ConfigError(
                f"length_bins has {n_bins} lengths and num_length_bins is {self.num_length_bins}: "
                "assign both"
            )
        return self.predictor
