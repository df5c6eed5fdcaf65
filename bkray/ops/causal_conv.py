"""A short causal convolution per channel. Shapes: B rows, N sites, K taps, D channels."""

from torch import Tensor


def causal_conv(x_BMD: Tensor, weight_KD: Tensor, bias_D: Tensor) -> Tensor:
    """Return ``y_t = bias + sum_k weight_k x_{t+k}``, (B, N, D), of ``M = N + K - 1`` sites.

    The first ``K - 1`` sites of ``x`` are those before the first of ``y``, so the last tap is the
    one on a site itself.
    """
    n_sites = x_BMD.shape[1] - len(weight_KD) + 1
    y_BND = bias_D + weight_KD[0] * x_BMD[:, :n_sites]
    for k in range(1, len(weight_KD)):
        y_BND = y_BND + weight_KD[k] * x_BMD[:, k : k + n_sites]
    return y_BND
