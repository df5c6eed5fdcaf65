"""What latent vectors are drawn from: the standard normal, or what the encoder was seen to write.

Letters: N rows, B batch, Z latent width, K classes.
"""

import torch
from torch import Tensor, nn


class FittedPrior(nn.Module):
    """A Gaussian with a mean for each class and one covariance; standard normal until ``fit``.

    All of it is buffers, so that a state dict holds it. ``fitted_rows`` is 0 until it is fitted.
    """

    mean_KZ: Tensor
    factor_ZZ: Tensor
    """Lower triangular; its product with its transpose is the covariance."""
    fitted_rows: Tensor

    def __init__(self, n_classes: int, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean_KZ", torch.zeros(n_classes, latent_dim))
        self.register_buffer("factor_ZZ", torch.eye(latent_dim))
        self.register_buffer("fitted_rows", torch.zeros((), dtype=torch.int64))

    def forget(self) -> None:
        """Be the standard normal again."""
        self.mean_KZ.zero_()
        self.factor_ZZ.copy_(torch.eye(len(self.factor_ZZ)))
        self.fitted_rows.zero_()

    def forward(self, noise_BZ: Tensor, labels_B: Tensor | None) -> Tensor:
        """Return latent vectors, (B, Z), of standard normal noise and of classes, if any."""
        class_B = 0 if labels_B is None else labels_B
        z_BZ: Tensor = self.mean_KZ[class_B] + noise_BZ @ self.factor_ZZ.mT
        return z_BZ

    @torch.no_grad()
    def fit(self, mean_NZ: Tensor, log_variance_NZ: Tensor, label_N: Tensor) -> None:
        """Take mean and covariance of what posteriors with such means and variances hold.

        Raises:
            torch.linalg.LinAlgError: a value is not finite.
        """
        mean_KZ = torch.stack([mean_NZ[label_N == k].mean(0) for k in range(len(self.mean_KZ))])
        apart_NZ = mean_NZ - mean_KZ[label_N]
        covariance_ZZ = apart_NZ.mT @ apart_NZ / len(label_N)
        covariance_ZZ += log_variance_NZ.exp().mean(0).diag()
        self.factor_ZZ.copy_(torch.linalg.cholesky(covariance_ZZ))
        self.mean_KZ.copy_(mean_KZ)
        self.fitted_rows.fill_(len(label_N))
