"""The sequence generator. Letters: B batch, L frames, T frames of training, D width, Z latent."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import adaptive_avg_pool1d, interpolate

from bkray.data.augmentation import augmented
from bkray.errors import ConfigError
from bkray.nn.two_sided import TwoSidedMixer
from bkray.nn.vae import VAEGenerator, interpolated, pooled, vae_loss
from bkray.nn.vae_loss import kl_nats, kl_weight
from bkray.nn.vae_parts import LearnedUpsampler
from bkray.ops.pooling import covariance, interpolation, pooling, recoverable
from bkray.ops.pooling import interpolated as interpolated_share

B, L, T, D, Z, CLASSES = 5, 50, 6, 12, 4, 3
every_mixer = pytest.mark.parametrize("mixer", ["flat", "bk"])


def small(**knobs: Any) -> VAEGenerator:
    torch.manual_seed(0)
    sizes = {"input_dim": D, "hidden_dim": 16, "latent_dim": Z, "training_sequence_length": T}
    return VAEGenerator(**{**sizes, **knobs})


def rows(n_frames: int = L) -> Tensor:
    return torch.randn(B, n_frames, D, generator=torch.Generator().manual_seed(1))


def labels() -> Tensor:
    return torch.arange(B) % CLASSES


@every_mixer
def test_a_pass_says_what_the_loss_is_made_of(mixer: str) -> None:
    model = small(mixer=mixer)
    said = model(rows())
    assert said.short_BTD.shape == said.pooled_BTD.shape == (B, T, D)
    assert said.full_BLD.shape == (B, L, D)
    assert said.mean_BZ.shape == said.log_variance_BZ.shape == (B, Z)
    assert torch.equal(said.pooled_BTD, adaptive_avg_pool1d(rows().mT, T).mT)
    full_BDL = interpolate(said.short_BTD.mT, size=L, mode="linear", align_corners=False)
    assert torch.equal(said.full_BLD, full_BDL.mT)
    assert model(rows(), full_length=False).full_BLD is None
    assert model(rows(T)).full_BLD.shape == (B, T, D), (
        "rows may be as short as the training length"
    )


@every_mixer
@pytest.mark.parametrize("conditioned", [False, True])
def test_gradients_reach_every_parameter(mixer: str, conditioned: bool) -> None:
    classes = {"use_conditioned_vae": True, "n_classes": CLASSES} if conditioned else {}
    model = small(mixer=mixer, use_learned_upsampling=True, **classes)
    said = model(rows(), labels() if conditioned else None)
    vae_loss(said, 0.5, full_target_BLD=rows()).total_nats.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@every_mixer
def test_what_was_trained_generates_at_any_length(mixer: str) -> None:
    model = small(mixer=mixer, use_learned_upsampling=True, output_sequence_length=20)
    torch.nn.init.normal_(model.upsampler.filters.weight)
    longer = small(mixer=mixer, use_learned_upsampling=True, output_sequence_length=33)
    longer.load_state_dict(model.state_dict())

    def drawn(model: VAEGenerator, length: int | None = None) -> Tensor:
        return model.sample(3, length, generator=torch.Generator().manual_seed(7))

    assert drawn(model).shape == (3, 20, D)
    assert drawn(longer).shape == (3, 33, D)
    assert torch.equal(drawn(longer, 20), drawn(model))
    assert torch.equal(drawn(model, T), drawn(longer, T)), (
        "at the training length nothing is added"
    )
    without = small(mixer=mixer)
    kept = {k: v for k, v in model.state_dict().items() if "upsampler" not in k}
    without.load_state_dict(kept)
    short = drawn(without).mT
    linear = interpolate(short, size=33, mode="linear", align_corners=False).mT
    assert torch.equal(drawn(without, 33), linear)
    assert not torch.allclose(drawn(longer), linear)


def test_samples_depend_on_their_generator_and_class_alone() -> None:
    model = small(use_conditioned_vae=True, n_classes=CLASSES)

    def drawn(seed: int, label: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return model.sample(2, labels=torch.full((2,), label), generator=generator)

    assert torch.equal(drawn(0, 1), drawn(0, 1))
    assert not torch.allclose(drawn(0, 1), drawn(0, 2))
    assert not torch.allclose(drawn(0, 1), drawn(1, 1))


def test_training_draws_from_the_posterior_and_evaluation_takes_its_mean() -> None:
    model = small()
    x = rows()

    def said(seed: int) -> Tensor:
        out: Tensor = model(x, generator=torch.Generator().manual_seed(seed)).short_BTD
        return out

    assert torch.equal(said(0), said(0))
    assert not torch.allclose(said(0), said(1))
    model.eval()
    assert torch.equal(said(0), said(1))


def test_a_nan_in_a_row_is_a_nan_in_what_is_said_of_it_and_of_no_other() -> None:
    x = rows()
    x[1, 3, 0] = torch.nan
    for mixer in ("flat", "bk"):
        said = small(mixer=mixer).eval()(x)
        assert said.short_BTD[1].isnan().all()
        assert said.short_BTD[[0, 2, 3, 4]].isfinite().all()


def test_the_resolvent_has_no_parameter_that_grows_with_the_length() -> None:
    def n_parameters(**knobs: Any) -> int:
        return sum(p.numel() for p in small(**knobs).parameters())

    short, long = (n_parameters(mixer="bk", training_sequence_length=n) for n in (4, 64))
    assert short == long
    assert n_parameters(mixer="flat", training_sequence_length=64) > 4 * n_parameters()


def test_the_two_sided_mixer_reads_before_and_behind_and_says_so() -> None:
    torch.manual_seed(0)
    mixer = TwoSidedMixer(8, 4, 2)
    assert not mixer.causal
    hidden = torch.randn(1, 9, 8, requires_grad=True)
    mixed = mixer(hidden, torch.arange(9)[None])
    (influence_1ND,) = torch.autograd.grad(mixed[0, 4].sum(), hidden)
    assert (influence_1ND.abs().sum(2) > 0).all()


def test_the_divergence_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(7, Z).double(), torch.randn(7, Z).double()
    normal = Normal(torch.zeros(Z).double(), torch.ones(Z).double())
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), normal).sum(1)
    assert torch.allclose(kl_nats(mean, log_variance), expected, rtol=1e-12)
    assert (kl_nats(torch.zeros(1, Z), torch.zeros(1, Z)) == 0).all()


def test_the_loss_adds_up_and_parts_of_a_batch_give_the_whole() -> None:
    model = small().eval()
    x = rows()[:4]

    def loss(x: Tensor) -> Any:
        return vae_loss(model(x), 0.3, noise_variance=0.5, full_target_BLD=x)

    whole = loss(x)
    said = model(x)
    assert torch.allclose(
        whole.reconstruction_nats, (said.short_BTD - said.pooled_BTD).square().sum() / 4
    )
    share = T / L * (said.full_BLD - x).square().sum() / 4
    assert torch.allclose(whole.upsampling_nats, share)
    total = whole.reconstruction_nats + 0.3 * whole.kl_nats + whole.upsampling_nats
    assert torch.allclose(whole.total_nats, total)
    parts = torch.stack([loss(x[:2]).total_nats, loss(x[2:]).total_nats])
    assert torch.allclose(parts.mean(), whole.total_nats)
    assert vae_loss(said, 0.3).upsampling_nats == 0


def test_the_weight_of_the_divergence_warms_up() -> None:
    assert [kl_weight(step, 4, 2.0) for step in (1, 2, 4, 5, 99)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert kl_weight(1, 0) == 1.0


def test_learned_shapes_come_closer_to_the_bound_than_interpolation() -> None:
    n_fine, n_coarse, exponent = 96, 8, 2.0
    root = torch.linalg.cholesky(torch.from_numpy(covariance(n_fine, exponent)))
    white = torch.randn(500, n_fine, generator=torch.Generator().manual_seed(0)).double()
    x_BL1 = (white @ root.T)[..., None]
    short_BT1 = pooled(x_BL1, n_coarse)
    upsampler = LearnedUpsampler(1).double()

    def share() -> Tensor:
        full_BL1 = interpolated(short_BT1, n_fine) + upsampler(short_BT1, n_fine)
        return 1 - (full_BL1 - x_BL1).square().sum() / x_BL1.square().sum()

    before = share().item()
    optimizer = torch.optim.LBFGS(upsampler.parameters(), max_iter=25)

    def closure() -> Tensor:
        optimizer.zero_grad()
        missed = -share()
        missed.backward()
        return missed

    optimizer.step(closure)
    bound = recoverable(covariance(n_fine, exponent), n_coarse)
    assert abs(before - interpolated_share(covariance(n_fine, exponent), n_coarse)) < 0.02
    assert before + 0.5 * (bound - before) < share().item() < bound + 0.02


def test_the_learned_shapes_are_the_sum_that_is_written_down() -> None:
    n_fine, n_coarse, width = 17, 5, 2
    upsampler = LearnedUpsampler(width).double()
    torch.nn.init.normal_(upsampler.filters.weight)
    x = torch.randn(1, n_coarse, width).double()
    added = upsampler(x, n_fine)
    weight = upsampler.filters.weight.view(width, 8, 5)  # channel, shape, neighbour
    for t in range(n_fine):
        place = (t + 0.5) * n_coarse / n_fine
        i = int(place)
        near = [min(max(i + j, 0), n_coarse - 1) for j in (-2, -1, 0, 1, 2)]
        shape = torch.cos(torch.pi * torch.arange(8).double() * (place - i))
        for channel in range(width):
            expected = shape @ weight[channel] @ x[0, near, channel]
            assert torch.isclose(added[0, t, channel], expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"training_sequence_length": 0}, "training_sequence_length must be at least 1"),
        ({"output_sequence_length": 3}, "output_sequence_length must be at least"),
        ({"output_sequence_length": T, "use_learned_upsampling": True}, "does nothing with"),
        ({"use_conditioned_vae": True}, "needs n_classes of at least 2"),
        ({"n_classes": 3}, "n_classes=3 does nothing without use_conditioned_vae"),
        ({"mixer": "gru"}, "mixer must be flat or bk, got 'gru'"),
    ],
)
def test_what_is_not_allowed_is_one_clear_error(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small(**knobs)


def test_rows_and_labels_that_do_not_fit_are_one_clear_error() -> None:
    plain, conditioned = small(), small(use_conditioned_vae=True, n_classes=CLASSES)
    for wrong in (rows()[..., 1:], rows(T - 1), rows()[0]):
        with pytest.raises(ConfigError, match="rows must be"):
            plain(wrong)
    with pytest.raises(ConfigError, match="labels are for a model with use_conditioned_vae"):
        plain(rows(), labels())
    with pytest.raises(ConfigError, match="labels are for a model with use_conditioned_vae"):
        plain.sample(B, labels=labels())
    for call in (lambda y: conditioned(rows(), y), lambda y: conditioned.sample(B, labels=y)):
        with pytest.raises(ConfigError, match="needs a label from 0 to 2 for each row, got none"):
            call(None)
        with pytest.raises(ConfigError, match="labels must be 5 whole numbers"):
            call(labels()[1:])
        with pytest.raises(ConfigError, match="labels must be from 0 to 2"):
            call(labels() + 1)
    with pytest.raises(ConfigError, match="n must be at least 1"):
        plain.sample(0)
    with pytest.raises(ConfigError, match="output_sequence_length must be at least"):
        plain.sample(1, T - 1)
    with pytest.raises(ConfigError, match="needs a pass with full_length=True"):
        vae_loss(plain(rows(), full_length=False), 1.0, full_target_BLD=rows())


def test_pooling_and_interpolation_are_the_matrices_of_the_bound() -> None:
    x = rows().double()
    for n_short in (1, 4, T, 7, L):
        matrix = torch.from_numpy(pooling(L, n_short))
        assert torch.allclose(pooled(x, n_short), matrix @ x, atol=1e-12)
        back = torch.from_numpy(interpolation(n_short, L))
        short = matrix @ x
        assert torch.allclose(interpolated(short, L), back @ short, atol=1e-12)


def test_a_generator_learns_what_pooling_leaves() -> None:
    """Rows of rank 2 in time and channels: with a latent vector of 4 nearly all can be said."""
    generator = torch.Generator().manual_seed(0)
    place_L = torch.linspace(0, 1, L)
    waves_2L = torch.stack([torch.ones(L), torch.cos(torch.pi * place_L)])
    x = torch.einsum(
        "bk,kl,kd->bld",
        torch.randn(64, 2, generator=generator),
        waves_2L,
        torch.randn(2, D, generator=generator),
    )
    for mixer in ("flat", "bk"):
        model = small(mixer=mixer)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(1, 101):
            optimizer.zero_grad()
            said = model(x, full_length=False, generator=generator)
            weight = kl_weight(step, 50)
            vae_loss(said, weight, noise_variance=0.01).total_nats.backward()
            optimizer.step()
        said = model.eval()(augmented(x, None, "off", generator).read_BLD)
        missed = (said.full_BLD - x).square().sum() / x.square().sum()
        assert missed < 0.1, mixer


def test_samples_spread_as_what_the_encoder_writes_once_the_prior_is_fitted() -> None:
    n_rows, latent = 3000, 3
    model = small(latent_dim=latent, use_conditioned_vae=True, n_classes=CLASSES)
    draw = torch.Generator().manual_seed(2)
    label_N = torch.arange(n_rows) % CLASSES
    x_NTD = torch.randn(n_rows, T, D, generator=draw) + 2 * label_N[:, None, None]
    said = model.eval()(x_NTD, label_N, full_length=False)
    model.train().fit_prior(x_NTD, label_N)
    assert model.training
    noise_NZ = torch.randn(60_000, latent, generator=draw)
    for k in range(CLASSES):
        z_NZ = model.prior(noise_NZ, torch.full((len(noise_NZ),), k))
        own_NZ = said.mean_BZ[label_N == k]
        assert torch.allclose(z_NZ.mean(0), own_NZ.mean(0), atol=0.05)
    apart_NZ = (
        said.mean_BZ
        - torch.stack([said.mean_BZ[label_N == k].mean(0) for k in range(CLASSES)])[label_N]
    )
    covariance_ZZ = apart_NZ.mT.cov(correction=0) + said.log_variance_BZ.exp().mean(0).diag()
    assert torch.allclose(z_NZ.mT.cov(), covariance_ZZ, rtol=0.03, atol=0.03)


def test_a_state_dict_holds_the_fitted_prior() -> None:
    model, fresh = small(), small()
    model.fit_prior(rows())
    assert int(model.prior.fitted_rows) == B and int(fresh.prior.fitted_rows) == 0

    def drawn(model: VAEGenerator) -> Tensor:
        return model.sample(3, generator=torch.Generator().manual_seed(7))

    assert not torch.equal(drawn(model), drawn(fresh))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(drawn(model), drawn(fresh))


def test_a_pass_never_waits_for_a_device() -> None:
    model = small(use_conditioned_vae=True, n_classes=CLASSES).to("meta")
    said = model(rows().to("meta"), labels().to("meta"))  # any look at a value raises there
    assert said.full_BLD.shape == (B, L, D)
