"""The guides' trainer at long contexts: metrics per length, spikes told as they come.

Letters: B batch, N sites.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.guides.long_context_metrics import LongContextMetrics, log_line
from bkray.guides.long_context_stream import MemoryOptimization, inner_model
from bkray.guides.trainer import MAX_GRAD_NORM, device_for
from bkray.nn.bk import BKMixer
from bkray.nn.lm import Prediction
from bkray.stability import GradientNormTracker, LossSpikeDetector
from bkray.train import measure
from bkray.train.chunked import backward_in_chunks
from bkray.train.spectrum import spectrum
from bkray.train.step import token_loss_nats
from bkray.train.streaming import OFF

Batch = tuple[Tensor, Tensor]
"""Tokens (B, N) and targets (B, N) or (B * N,)."""
SPECTRAL = ("schatten_s1", "schatten_s2", "condition_number")


@dataclass(slots=True)
class _Epoch:
    """What the steps of an epoch add up to."""

    seq_len: int = 0
    losses: list[float] = field(default_factory=list)
    norms: GradientNormTracker = field(default_factory=GradientNormTracker)
    last_norm: float = math.nan
    tokens: int = 0
    nan_count: int = 0
    inf_count: int = 0


class LongContextTrainer:
    """Trains a model on its cross-entropy, at one length or a list of them.

    Args:
        model: one of the guides, or of ours; with ``position="learned"`` up to its ``n_seq``.
        device: where batches, and the model, are sent; default: where the model is.
        grad_clip: most gradient norm of a step.
        memory: how rows longer than its chunk are held; default: whole.
        use_birman_schwinger: whether each epoch ends with Schatten norms and condition number.
        log_interval: steps between two lines; a spike is told at once.
        say: who is told.

    Raises:
        ConfigError: a GPU is asked for where there is none, or what the model cannot do.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: str | torch.device | None = None,
        *,
        grad_clip: float = MAX_GRAD_NORM,
        memory: MemoryOptimization | None = None,
        use_birman_schwinger: bool = False,
        log_interval: int = 100,
        say: Callable[[str], None] = print,
    ) -> None:
        self.device = device_for(model, device)
        self.model, self.optimizer = model.to(self.device), optimizer
        self.grad_clip, self.log_interval, self.say = grad_clip, log_interval, say
        self.language_model = inner_model(model)
        self.memory = memory or MemoryOptimization(enabled=False)
        if self.memory.enabled:
            self.memory.check(self.language_model)
        self.use_birman_schwinger = use_birman_schwinger
        if use_birman_schwinger and not any(isinstance(m, BKMixer) for m in model.modules()):
            raise ConfigError(
                "use_birman_schwinger=True needs a model with a BK mixer: there is no potential"
            )
        self.step = 0
        self.spike_detector = LossSpikeDetector()

    def train_epoch(self, dataloader: Iterable[Batch], epoch: int = 1) -> LongContextMetrics:
        """Train on every batch once; return, and tell, what came out.

        Raises:
            ConfigError: no batch, batches of several lengths, or not one target per token.
        """
        self.model.train()
        measure.forget_peak_memory(self.device)
        tally, start = _Epoch(), time.perf_counter()
        spikes_before = self.spike_detector.get_spike_count()
        for x_batch, y_batch in dataloader:
            x_BN = x_batch.to(self.device)
            if x_BN.shape[1] != (tally.seq_len or x_BN.shape[1]):
                raise ConfigError(
                    f"an epoch has one length, got batches of {tally.seq_len} and "
                    f"{x_BN.shape[1]} tokens: use train_multi_length"
                )
            tally.seq_len = x_BN.shape[1]
            self._train_step(x_BN, y_batch.to(self.device), tally)
        if not tally.tokens:
            raise ConfigError("dataloader has no batch to train on")
        seconds = time.perf_counter() - start
        n_spikes = self.spike_detector.get_spike_count() - spikes_before
        metrics = self._metrics(tally, epoch, seconds, n_spikes, x_BN)
        self.say(str(metrics))
        return metrics

    def train_multi_length(
        self, dataloaders: Mapping[int, Iterable[Batch]], epochs: int = 1
    ) -> dict[int, LongContextMetrics]:
        """Train at growing lengths, ``epochs`` on each; return each length's last epoch.

        The first loss at a new length is no spike: it has no neighbour there.

        Args:
            dataloaders: by length; gone through once per epoch.

        Raises:
            ConfigError: batches of another length than they stand under; as ``train_epoch``.
        """
        results: dict[int, LongContextMetrics] = {}
        for seq_len in sorted(dataloaders):
            self.spike_detector = LossSpikeDetector()
            for epoch in range(1, epochs + 1):
                results[seq_len] = self.train_epoch(dataloaders[seq_len], epoch)
                if results[seq_len].seq_len != seq_len:
                    raise ConfigError(
                        f"dataloaders[{seq_len}] has batches of {results[seq_len].seq_len} tokens"
                    )
        return results

    def _train_step(self, x_BN: Tensor, targets: Tensor, tally: _Epoch) -> None:
        if targets.numel() != x_BN.numel():
            raise ConfigError(
                f"targets must hold one token for each of the {x_BN.numel()} inputs, "
                f"got shape {tuple(targets.shape)}"
            )
        self.optimizer.zero_grad()
        loss = self._backward(x_BN, targets.reshape(x_BN.shape))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip).item()
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step()
        elif math.isnan(loss) or math.isnan(norm):
            tally.nan_count += 1
        else:
            tally.inf_count += 1
        self.step += 1
        tally.losses.append(loss)
        tally.norms.add_norm(tally.seq_len, norm)
        tally.last_norm, tally.tokens = norm, tally.tokens + x_BN.numel()
        is_spike, ratio = self.spike_detector.add_loss(loss)
        if is_spike or self.step % self.log_interval == 0:
            self.say(log_line(self.step, loss, ratio if is_spike else None))

    def _backward(self, x_BN: Tensor, y_BN: Tensor) -> float:
        """Take the gradient of the mean loss, and return that."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)

        def share(prediction: Prediction, targets_BN: Tensor) -> Tensor:
            part = token_loss_nats(prediction, targets_BN).sum() / y_BN.numel()
            total.add_(part.detach())
            return part

        if self.memory.enabled and x_BN.shape[1] > self.memory.chunk:
            chunk = self.memory.chunk
            backward_in_chunks(self.language_model, x_BN, y_BN, chunk, share, autocast=OFF)
        else:
            torch.autograd.backward(share(self.language_model(x_BN), y_BN))
        return total.item()

    def _metrics(
        self, tally: _Epoch, epoch: int, seconds: float, n_spikes: int, x_BN: Tensor
    ) -> LongContextMetrics:
        loss = math.fsum(tally.losses) / len(tally.losses)
        norms = tally.norms.get_statistics(tally.seq_len)
        memory_gb = measure.peak_memory_mib(self.device) / 2**10
        seen: dict[str, float] = {}
        if self.use_birman_schwinger:
            chunk = self.memory.chunk if self.memory.enabled else None
            numbers = spectrum(self.language_model, x_BN, chunk=chunk, autocast=OFF).metrics
            seen = {name: numbers[f"stability/{name}"] for name in SPECTRAL}
        return LongContextMetrics(
            seq_len=tally.seq_len,
            epoch=epoch,
            step=self.step,
            loss=loss,
            perplexity=math.inf if loss >= 700 else math.exp(loss),
            gradient_norm=tally.last_norm,
            gradient_norm_mean=norms["mean"],
            gradient_norm_std=norms["std"],
            memory_gb=memory_gb,
            tokens_per_second=tally.tokens / seconds,
            spike_count=n_spikes,
            nan_count=tally.nan_count,
            inf_count=tally.inf_count,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            **seen,
        )
