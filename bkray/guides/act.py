"""The guides' model with adaptive computation time, and its block.

Arguments keep the guides' spelling and order; what is counted as cost follows docs/math.md.
Letters: B batch, N sites, D width, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bkray.errors import ConfigError
from bkray.guides.standard import MoEResNetBKLayer, check_length, positions
from bkray.nn.act import HaltingLayer, HaltingUnit, run_until_halted
from bkray.nn.depth import Deep, Running, alone
from bkray.nn.lm import LanguageModel, Prediction
from bkray.nn.mixer import Mixer
from bkray.train.step import token_loss_nats


class AdaptiveResNetBKBlock(nn.Module):
    """One layer and the unit that says who stops behind it.

    Blocks called one after another, with ``last=True`` at the last one, give what
    ``ACTLanguageModel`` gives. ``threshold`` may be changed at any time.

    Args:
        n_layers: depth of the model that the block is for: halting starts at ``1 / n_layers``.
        last: everybody stops here with the rest of the weight; ``halting_unit`` is ``None``.

    Raises:
        ConfigError: a value that is not allowed.
    """

    halting_unit: nn.Module | None
    """``(B, N, D) -> (B, N)``, the logit of stopping here."""
    ponder_cost: Tensor
    """Of the last pass: tokens that ran here plus the remainders of those that stopped here."""

    def __init__(
        self,
        d_model: int,
        n_seq: int,
        num_experts: int = 4,
        top_k: int = 1,
        dropout_p: float = 0.1,
        threshold: float = 0.99,
        *,
        n_layers: int = 2,
        last: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise ConfigError(f"threshold must be above 0 and at most 1, got {threshold}")
        if not last and n_layers < 2:
            raise ConfigError(f"n_layers must be at least 2 unless last=True, got {n_layers}")
        self.d_model, self.n_seq, self.threshold = d_model, n_seq, threshold
        self.bk_layer = MoEResNetBKLayer(d_model, n_seq, num_experts, top_k, dropout_p)
        self.halting_unit = None if last else HaltingUnit(d_model, n_layers)
        self.reset_ponder_cost()

    def forward(
        self,
        x: Tensor,
        halting_prob_cumsum: Tensor | None = None,
        still_running: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run the tokens that have not stopped; the others are invisible and stay as they are.

        Args:
            x: (B, N, D).
            halting_prob_cumsum: (B, N), probability so far; default: 0.
            still_running: (B, N), who runs; default: those below ``threshold``.

        Returns:
            States (B, N, D); probability so far, at most 1; who still runs (bool); and the weight
            of each state in the result, 0 for a token that did not run. The last three (B, N).

        Raises:
            ConfigError: more than ``n_seq`` sites.
        """
        check_length(x.shape[1], self.n_seq)
        c_BN = x.new_zeros(x.shape[:2])
        if halting_prob_cumsum is not None:
            c_BN = halting_prob_cumsum.to(c_BN)
        runs_BN = ~(c_BN >= self.threshold) if still_running is None else still_running.bool()
        none_BN = torch.zeros_like(c_BN)
        if not runs_BN.any():
            self.reset_ponder_cost()
            return x, c_BN, runs_BN, none_BN
        run = Running(x, positions(x), c_BN)
        run = run if runs_BN.all() else run.without(~runs_BN)
        halted = self.halting_layer().run(run)
        remainder_BM = torch.where(halted.stops_BM, halted.weight_BM, 0.0)
        self.ponder_cost = runs_BN.sum() + run.add_to(none_BN, remainder_BM).sum()
        stops_BN = run.add_to(none_BN.long(), halted.stops_BM.long()) > 0
        return (
            run.add_to(x.masked_fill(runs_BN[..., None], 0), halted.hidden_BMD),
            run.add_to(c_BN.masked_fill(runs_BN, 0), halted.c_BM).clamp(max=1),
            runs_BN & ~stops_BN,
            run.add_to(none_BN, halted.weight_BM),
        )

    def reset_ponder_cost(self) -> None:
        """Set ``ponder_cost`` to 0, as before the first pass."""
        self.ponder_cost = torch.tensor(0.0)

    def halting_layer(self) -> HaltingLayer:
        """Return the block as the depth policy takes it."""
        return HaltingLayer(alone(self.bk_layer.block), self.halting_unit, self.threshold)

    @property
    def mixer(self) -> Mixer:
        """The token mixer, which a language model asks whether it is causal."""
        return self.bk_layer.block.mixer

    def __getstate__(self) -> dict[str, Any]:
        # A tensor with a history can be neither copied nor saved.
        return {**self.__dict__, "ponder_cost": self.ponder_cost.detach()}


class ACTLanguageModel(nn.Module):
    """Embedding with learned positions, adaptive blocks, norm, head.

    ``language_model`` is the model within, whose pass says layers and remainder of every token.
    ``act_lambda`` and the ``threshold`` of each block may be changed at any time.

    Raises:
        ConfigError: a value that is not allowed.
    """

    causal = True

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 64,
        n_layers: int = 4,
        n_seq: int = 128,
        num_experts: int = 4,
        top_k: int = 1,
        dropout_p: float = 0.1,
        act_threshold: float = 0.99,
        act_lambda: float = 0.01,
    ) -> None:
        super().__init__()
        if n_layers < 1:
            raise ConfigError(f"n_layers must be at least 1, got {n_layers}")
        self.d_model, self.n_seq, self.n_layers = d_model, n_seq, n_layers
        self.act_lambda = act_lambda
        self.avg_layers_executed = torch.tensor(math.nan)
        blocks = [
            AdaptiveResNetBKBlock(
                d_model,
                n_seq,
                num_experts,
                top_k,
                dropout_p,
                act_threshold,
                n_layers=n_layers,
                last=layer == n_layers,
            )
            for layer in range(1, n_layers + 1)
        ]
        self.language_model = LanguageModel(
            vocab_size=vocab_size,
            d_model=d_model,
            blocks=blocks,  # type: ignore[arg-type]  # run_blocks knows how to run these
            depth=run_blocks,  # type: ignore[arg-type]
            n_positions=n_seq,
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, first to last."""
        return self.language_model.blocks

    def forward(
        self, x: Tensor, return_ponder_cost: bool = True
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Return logits (B, N, V) and the ponder cost of tokens (B, N); or the logits alone.

        The ponder cost, a scalar with a gradient, is layers run plus remainder, a mean over
        tokens: above 1 and at most ``n_layers + 1``.

        Raises:
            ConfigError: more than ``n_seq`` tokens.
        """
        check_length(x.shape[1], self.n_seq)
        said: Prediction = self.language_model(x)
        self.note(said)
        assert said.layers_BN is not None and said.remainder_BN is not None
        if not return_ponder_cost:
            return said.logits_BNV
        return said.logits_BNV, (said.layers_BN + said.remainder_BN).mean()

    def compute_loss(
        self, logits: Tensor, targets: Tensor, ponder_cost: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``ce_loss + act_lambda * ponder_cost``, the cross-entropy, the ponder cost.

        Args:
            logits: (B, N, V) or (B * N, V).
            targets: (B, N) or (B * N,), token ids.

        Raises:
            ConfigError: not one target per token.
        """
        logits_1TV = logits.flatten(0, -2)[None]
        if targets.numel() != logits_1TV.shape[1]:
            raise ConfigError(
                f"targets must hold one token for each of the {logits_1TV.shape[1]} logits, "
                f"got shape {tuple(targets.shape)}"
            )
        ce_loss = token_loss_nats(Prediction(logits_1TV), targets).mean()
        return ce_loss + self.act_lambda * ponder_cost, ce_loss, ponder_cost

    def note(self, said: Prediction) -> None:
        """Keep the layers run in a pass of ``language_model``, wherever it was called."""
        assert said.layers_BN is not None
        self.avg_layers_executed = said.layers_BN.to(torch.float32).mean()

    def get_avg_layers_executed(self) -> float:
        """Return the layers run in the last pass, a mean over tokens; NaN before the first one."""
        return float(self.avg_layers_executed)


def run_blocks(
    blocks: Sequence[AdaptiveResNetBKBlock], hidden_BND: Tensor, position_BN: Tensor
) -> Deep:
    """Run adaptive blocks as the depth policy they are, and tell each one its ponder cost."""
    deep = run_until_halted([b.halting_layer() for b in blocks], hidden_BND, position_BN)
    assert deep.remainder_BN is not None
    for layer, block in enumerate(blocks, start=1):
        left_BN = torch.where(deep.layers_BN == layer, deep.remainder_BN, 0.0)
        block.ponder_cost = (deep.layers_BN >= layer).sum() + left_BN.sum()
    return deep
