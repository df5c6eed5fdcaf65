"""A generator of sequences: a variational autoencoder at a short length, upsampled to a long one.

Letters: B batch, L sites of a row, T sites of training, D width, H hidden width, Z latent width.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, interpolate

from bkray.errors import ConfigError
from bkray.nn.vae_loss import Reconstruction as Reconstruction
from bkray.nn.vae_loss import vae_loss as vae_loss
from bkray.nn.vae_parts import BKDecoder, BKEncoder, FlatDecoder, FlatEncoder, LearnedUpsampler
from bkray.nn.vae_prior import FittedPrior

GeneratorMixer = Literal["flat", "bk"]

PART = 32
"""Rows that are encoded at once where the prior is fitted to them."""


class VAEGenerator(nn.Module):
    """Rows of any length are pooled to the training length, encoded, decoded and upsampled.

    In training the latent vector is drawn from the posterior, in evaluation it is its mean.
    What lies above the resolution of ``training_sequence_length`` is lost in pooling: at 4, the
    default of old set-ups, nearly everything (docs/math.md has the bound). A state dict loads into
    a model with another ``output_sequence_length``, with the learned upsampler too.

    Args:
        input_dim: D, width of a site.
        hidden_dim: H.
        latent_dim: Z.
        training_sequence_length: T; parameters of ``mixer="flat"`` grow with it.
        output_sequence_length: sites of a sample unless told otherwise; by default T.
        use_learned_upsampling: add learned shapes to the linear interpolation between T and L.
        use_conditioned_vae: encoder and decoder are told the class of a row.
        n_classes: with ``use_conditioned_vae`` alone.
        mixer: "flat" for one network over all sites, "bk" for the two-sided resolvent over them.

    Raises:
        ConfigError: a value that is not allowed, or one that does nothing.
    """

    def __init__(
        self,
        input_dim: int = 768,
        hidden_dim: int = 1024,
        latent_dim: int = 256,
        training_sequence_length: int = 32,
        output_sequence_length: int | None = None,
        *,
        use_learned_upsampling: bool = False,
        use_conditioned_vae: bool = False,
        n_classes: int | None = None,
        mixer: GeneratorMixer = "flat",
    ) -> None:
        super().__init__()
        T = training_sequence_length
        sizes = {"input_dim": input_dim, "hidden_dim": hidden_dim, "latent_dim": latent_dim}
        sizes |= {"training_sequence_length": T}
        for name, size in sizes.items():
            if size < 1:
                raise ConfigError(f"{name} must be at least 1, got {size}")
        _check_output(output_sequence_length, T, learned=use_learned_upsampling)
        _check_classes(use_conditioned_vae, n_classes)
        self.input_dim, self.latent_dim = input_dim, latent_dim
        self.training_sequence_length = T
        self.output_sequence_length = output_sequence_length or T
        self.n_classes = n_classes
        self.encoder: nn.Module
        self.decoder: nn.Module
        if mixer == "flat":
            self.encoder = FlatEncoder(T, input_dim, hidden_dim, latent_dim)
            self.decoder = FlatDecoder(T, input_dim, hidden_dim, latent_dim)
        elif mixer == "bk":
            self.encoder = BKEncoder(input_dim, hidden_dim, latent_dim)
            self.decoder = BKDecoder(T, input_dim, hidden_dim, latent_dim)
        else:
            raise ConfigError(f"mixer must be flat or bk, got {mixer!r}")
        self.encoder_classes = _classes(n_classes, hidden_dim)
        self.decoder_classes = _classes(n_classes, hidden_dim)
        self.upsampler = LearnedUpsampler(input_dim) if use_learned_upsampling else None
        self.prior = FittedPrior(n_classes or 1, latent_dim)

    def forward(
        self,
        x_BLD: Tensor,
        labels_B: Tensor | None = None,
        *,
        full_length: bool = True,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """Return the rows' reconstruction, and what the loss is made of.

        Args:
            x_BLD: (B, L, D) with L at least T.
            labels_B: (B,), class of each row; for a conditional model alone. On a GPU their
                values are not looked at, for which the host would wait (``require_classes``).
            full_length: whether to upsample to L too, which costs memory of a second batch.
            generator: of the posterior's draws, on the model's device.

        Raises:
            ConfigError: a shape that does not fit, or labels missing or not wanted.
        """
        self._require_rows(x_BLD)
        self._require_labels(labels_B, x_BLD.shape[0])
        pooled_BTD = pooled(x_BLD, self.training_sequence_length)
        said_BS = self.encoder(pooled_BTD, _told(self.encoder_classes, labels_B))
        mean_BZ, log_variance_BZ = said_BS.chunk(2, dim=1)
        z_BZ = mean_BZ
        if self.training:
            noise_BZ = torch.empty_like(mean_BZ).normal_(generator=generator)
            z_BZ = mean_BZ + (log_variance_BZ / 2).exp() * noise_BZ
        short_BTD = self.decoder(z_BZ, _told(self.decoder_classes, labels_B))
        full_BLD = self.upsampled(short_BTD, x_BLD.shape[1]) if full_length else None
        return Reconstruction(short_BTD, full_BLD, pooled_BTD, mean_BZ, log_variance_BZ)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        output_sequence_length: int | None = None,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return ``n`` rows, (n, L, D), without observation noise: from what the encoder writes of
        the training rows where ``fit_prior`` was told, else from the standard normal prior.

        Args:
            output_sequence_length: L, at least T; by default the model's own.
            labels: (n,), class of each row; for a conditional model alone.
            generator: on the model's device.

        Raises:
            ConfigError: a value that is not allowed, or labels missing or not wanted.
        """
        if n < 1:
            raise ConfigError(f"n must be at least 1, got {n}")
        _check_output(output_sequence_length, self.training_sequence_length)
        self._require_labels(labels, n)
        if labels is not None:
            require_classes(labels, self.n_classes or 0)
        like = next(self.decoder.parameters())
        z_BZ = like.new_empty(n, self.latent_dim).normal_(generator=generator)
        z_BZ = self.prior(z_BZ, labels)
        short_BTD = self.decoder(z_BZ, _told(self.decoder_classes, labels))
        return self.upsampled(short_BTD, output_sequence_length or self.output_sequence_length)

    @torch.no_grad()
    def fit_prior(self, x_NLD: Tensor, labels_N: Tensor | None = None) -> None:
        """Let ``sample`` draw from a Gaussian that is fitted to what the encoder writes of rows.

        It has a mean for each class and a covariance that they share: that of the posteriors'
        means about them, plus the posteriors' own variance. A state dict holds it. Weights that
        change afterwards want it fitted anew.

        Args:
            x_NLD: rows on any device, (N, L, D) with L at least T; read in parts.
            labels_N: (N,), each class at least once; for a conditional model alone.

        Source: ex-post density estimation, Ghosh et al. 2020, arXiv:1903.12436, section 4.
        """
        was_training, like = self.training, next(self.parameters())
        self.eval()
        said = []
        for first in range(0, len(x_NLD), PART):
            chosen = slice(first, first + PART)
            label_B = None if labels_N is None else labels_N[chosen].to(like.device)
            x_BLD = x_NLD[chosen].to(like.device, like.dtype)
            one = self(x_BLD, label_B, full_length=False)
            said.append((one.mean_BZ.double(), one.log_variance_BZ.double()))
        mean_NZ, log_variance_NZ = map(torch.cat, zip(*said, strict=True))
        class_N = torch.zeros(len(x_NLD), dtype=torch.long) if labels_N is None else labels_N
        self.prior.fit(mean_NZ, log_variance_NZ, class_N.to(like.device))
        self.train(was_training)

    def upsampled(self, short_BTD: Tensor, n_sites: int) -> Tensor:
        """Return rows of the training length at ``n_sites`` = L, (B, L, D); at T as they are."""
        if n_sites == short_BTD.shape[1]:
            return short_BTD
        full_BLD = interpolated(short_BTD, n_sites)
        return (
            full_BLD if self.upsampler is None else full_BLD + self.upsampler(short_BTD, n_sites)
        )

    def _require_rows(self, x_BLD: Tensor) -> None:
        T, D = self.training_sequence_length, self.input_dim
        if x_BLD.dim() != 3 or x_BLD.shape[2] != D or x_BLD.shape[1] < T:
            raise ConfigError(
                f"rows must be (B, L, input_dim={D}) with L at least "
                f"training_sequence_length={T}, got {tuple(x_BLD.shape)}"
            )

    def _require_labels(self, labels_B: Tensor | None, n_rows: int) -> None:
        if self.n_classes is None:
            if labels_B is not None:
                raise ConfigError("labels are for a model with use_conditioned_vae=True alone")
            return
        if labels_B is None:
            raise ConfigError(
                f"a model with use_conditioned_vae=True needs a label from 0 to "
                f"{self.n_classes - 1} for each row, got none"
            )
        if labels_B.shape != (n_rows,) or labels_B.is_floating_point():
            raise ConfigError(
                f"labels must be {n_rows} whole numbers, got {tuple(labels_B.shape)} of "
                f"{labels_B.dtype}"
            )
        if labels_B.device.type == "cpu":
            require_classes(labels_B, self.n_classes)


def require_classes(labels_B: Tensor, n_classes: int) -> None:
    """Refuse labels that are no class; the host waits for the device.

    Raises:
        ConfigError: a label below 0 or above ``n_classes - 1``.
    """
    if len(labels_B) and not 0 <= int(labels_B.min()) <= int(labels_B.max()) < n_classes:
        raise ConfigError(f"labels must be from 0 to {n_classes - 1}")


def pooled(x_BLD: Tensor, n_sites: int) -> Tensor:
    """Return means over ``n_sites`` bins of sites, (B, T, D)."""
    return adaptive_avg_pool1d(x_BLD.mT, n_sites).mT


def interpolated(x_BTD: Tensor, n_sites: int) -> Tensor:
    """Return rows stretched to ``n_sites`` by linear interpolation between bins' middles."""
    return interpolate(x_BTD.mT, size=n_sites, mode="linear", align_corners=False).mT


def _classes(n_classes: int | None, hidden_dim: int) -> nn.Embedding | None:
    if n_classes is None:
        return None
    classes = nn.Embedding(n_classes, hidden_dim)
    nn.init.normal_(classes.weight, std=0.1)
    return classes


def _told(classes: nn.Embedding | None, labels_B: Tensor | None) -> Tensor | None:
    return None if classes is None or labels_B is None else classes(labels_B)


def _check_output(length: int | None, training: int, *, learned: bool = False) -> None:
    if length is not None and length < training:
        raise ConfigError(
            f"output_sequence_length must be at least training_sequence_length={training}, "
            f"got {length}"
        )
    if learned and length == training:
        raise ConfigError(
            f"use_learned_upsampling does nothing with output_sequence_length={length}, which is "
            "the training_sequence_length: leave it out, or generate longer rows"
        )


def _check_classes(conditioned: bool, n_classes: int | None) -> None:
    if conditioned and (n_classes is None or n_classes < 2):
        raise ConfigError(
            f"use_conditioned_vae=True needs n_classes of at least 2, got {n_classes}"
        )
    if not conditioned and n_classes is not None:
        raise ConfigError(
            f"n_classes={n_classes} does nothing without use_conditioned_vae=True: set it, or "
            "leave n_classes out"
        )
