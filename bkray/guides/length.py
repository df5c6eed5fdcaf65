"""The guides' learned sequence length around any of their models.

Arguments keep the guides' spelling and order; what is trained on follows docs/math.md.
Letters: B batch, N sites, D width, V vocabulary, K bins.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bkray.config import ModelConfig
from bkray.errors import ConfigError
from bkray.guides.length_predictor import SequenceLengthPredictor
from bkray.guides.standard import model_config, rows_of
from bkray.nn.beyond import beyond as policy_named
from bkray.nn.length import LearnedLength
from bkray.nn.lm import LanguageModel, Prediction
from bkray.train.step import losses

WEIGHTS = {"act_lambda": "act", "exit_weight": "exit"}
"""What a base model may weigh in its own loss, and the policy of it; with both, ``act_exit``."""


class AdaptiveSequenceLengthWrapper(nn.Module):
    """A model that computes as many sites of each row as its length predictor says.

    In training all sites are computed, since one causal pass gives the loss of every length; in
    evaluation each row is cut at its own. Sites behind a cut are answered by ``beyond``, and so
    are those behind ``max_seq_len``, which are never computed: ``length_info`` counts them as
    ``sites_behind_max``. ``length_penalty`` may be changed at any time.

    Args:
        base_model: a language model of ``bkray.guides``, or of ``bkray.nn.lm``.
        beyond: ``repeat``, ``shallow`` or ``copy``.

    Raises:
        ConfigError: another model, or a value that is not allowed.
    """

    causal = True

    def __init__(
        self,
        base_model: nn.Module,
        max_seq_len: int = 128,
        num_length_bins: int = 8,
        length_penalty: float = 0.01,
        *,
        beyond: str = "copy",
    ) -> None:
        super().__init__()
        model = within(base_model)
        if model.positions is not None and max_seq_len > model.positions.num_embeddings:
            raise ConfigError(
                f"max_seq_len must be at most n_seq={model.positions.num_embeddings} of the base "
                f"model, got {max_seq_len}"
            )
        self.base_model, self.max_seq_len = base_model, max_seq_len
        self.length_penalty = length_penalty
        self.loss_knobs(length_beyond=beyond)
        d_model, like = model.embedding.embedding_dim, model.head.weight
        predictor = SequenceLengthPredictor(d_model, max_seq_len, num_length_bins)
        self.length_predictor = predictor.to(like)
        self.beyond = policy_named(beyond, d_model).to(like)
        self.reset_length_statistics()

    @property
    def language_model(self) -> LanguageModel:
        """The language model within the base model."""
        return within(self.base_model)

    @property
    def num_length_bins(self) -> int:
        """How many lengths there are to choose from."""
        return self.length_predictor.num_length_bins

    def forward(
        self, x: Tensor, use_adaptive_length: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Return logits (B, N, V) for the token after each of ``x``, (B, N), and what was saved.

        Without ``use_adaptive_length`` these are the base model's logits, alone.

        Raises:
            ConfigError: contradicting bins, or without adaptive length more than ``n_seq`` tokens.
        """
        said = self.predict(x, use_adaptive_length)
        return (
            (said.logits_BNV, self.length_info(said)) if use_adaptive_length else said.logits_BNV
        )

    def predict(self, x: Tensor, use_adaptive_length: bool = True) -> Prediction:
        """Return all that the pass says: layers, remainder, early heads and lengths too."""
        said: Prediction
        if use_adaptive_length:
            said = self.learned_length()(x)
            self._count(said)
        else:
            said = self.language_model(x)
        note = getattr(self.base_model, "note", None)
        if note is not None:
            note(said)
        return said

    def learned_length(self) -> LearnedLength:
        """Return the same model as ``bkray`` has it: tokens in, a prediction out."""
        model: Any = PlacedOnwards(self.language_model)
        learned = LearnedLength(model, self.length_predictor.checked(), self.beyond)
        learned.training = self.training
        return learned

    def length_info(self, said: Prediction) -> dict[str, Any]:
        """Return the guides' numbers of a pass, the pass itself, and ACT's ponder cost."""
        assert said.lengths is not None
        n_sites = said.logits_BNV.shape[1]
        predicted_B = predicted(said)
        lengths = predicted_B.tolist()
        average = sum(lengths) / len(lengths)
        info = {
            "predicted_lengths": predicted_B,
            "length_probs": said.lengths.logit_BK.softmax(1),
            "avg_predicted_length": average,
            "max_predicted_length": max(lengths),
            "original_length": n_sites,
            "speedup_estimate": n_sites / average,
            "sites_behind_max": max(n_sites - self.max_seq_len, 0),
            "prediction": said,
        }
        if said.layers_BN is not None and said.remainder_BN is not None:
            info["ponder_cost"] = (said.layers_BN + said.remainder_BN).mean()
        return info

    def compute_loss(
        self, logits: Tensor, targets: Tensor, length_info: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what ``losses`` does, of a pass by its results; or cross-entropy alone."""
        if length_info is None:
            return self.losses(Prediction(logits), targets)
        return self.losses(length_info["prediction"]._replace(logits_BNV=logits), targets)

    def losses(self, said: Prediction, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss that is trained on, the cross-entropy and the cost of length.

        The first is the base model's own loss (ACT's ponder cost and early heads included) plus
        what a row is expected to cost, over all lengths. In evaluation, where one length alone is
        known, it is the base model's loss plus the cost of that one. The cross-entropy is a mean
        over all sites, behind the cut too.

        Args:
            targets: (B, N) or (B * N,), token ids.

        Raises:
            ConfigError: not one target per token, or a ``length_penalty`` that is not allowed.
        """
        is_cut = said.lengths is not None and not self.training
        trained = said._replace(lengths=None) if is_cut else said
        numbers = losses(trained, rows_of(targets, said.logits_BNV), self.loss_knobs(), None)
        total, ce_loss = numbers["total"], numbers["loss_nats"]
        if said.lengths is None:
            return total, ce_loss, torch.zeros_like(ce_loss)
        expected = (
            predicted(said).to(total.dtype).mean() if is_cut else numbers["length/expected_length"]
        )
        length_cost = self.length_penalty * expected / self.max_seq_len
        return (total + length_cost if is_cut else total), ce_loss, length_cost

    def loss_knobs(self, **knobs: Any) -> ModelConfig:
        """Return what the loss weighs: the length penalty, and what the base model weighs.

        Raises:
            ConfigError: a value that is not allowed.
        """
        own = [name for name in WEIGHTS if hasattr(self.base_model, name)]
        knobs |= {name: getattr(self.base_model, name) for name in own}
        knobs["depth"] = "_".join(WEIGHTS[name] for name in own) or "dense"
        return model_config(
            num_experts=1, top_k=1, length="learned", length_penalty=self.length_penalty, **knobs
        )

    def get_length_statistics(self) -> dict[str, Any]:
        """Return means over the rows since the last reset, NaN where there was none.

        ``length_distribution`` is the percentage of rows for each of ``length_bins``, which has
        lengths that were bins before too, if any row was given them.
        """
        chosen, n_rows = self._chosen, self._chosen.total()
        bins = sorted({*self.length_predictor.length_bins.tolist(), *chosen})
        return {
            "avg_predicted_length": self._n_predicted / n_rows if n_rows else math.nan,
            "length_distribution": [
                100 * chosen[n] / n_rows if n_rows else math.nan for n in bins
            ],
            "length_bins": bins,
            "avg_speedup": self._n_given / self._n_predicted if n_rows else math.nan,
            "total_predictions": n_rows,
        }

    def reset_length_statistics(self) -> None:
        """Start counting anew."""
        self._chosen: Counter[int] = Counter()
        self._n_given = self._n_predicted = 0

    def _count(self, said: Prediction) -> None:
        assert said.lengths is not None
        chosen = said.lengths.bins_K[said.lengths.logit_BK.argmax(1)].tolist()
        n_sites = said.logits_BNV.shape[1]
        self._chosen.update(chosen)
        self._n_given += len(chosen) * n_sites
        self._n_predicted += sum(min(length, n_sites) for length in chosen)


class PlacedOnwards(nn.Module):
    """A language model that also embeds sites behind its last position, as if all stood there.

    Only what answers behind a cut ever reads them.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model, self.run, self.read = model, model.run, model.read

    def embed(self, tokens_BN: Tensor) -> Tensor:
        """Return the hidden states before the first layer, (B, N, D)."""
        positions = self.model.positions
        if positions is None or tokens_BN.shape[1] <= positions.num_embeddings:
            return self.model.embed(tokens_BN)
        n_known = positions.num_embeddings
        onwards_BND = self.model.embedding(tokens_BN[:, n_known:]) + positions.weight[-1]
        return torch.cat([self.model.embed(tokens_BN[:, :n_known]), onwards_BND], dim=1)


def within(base_model: nn.Module) -> LanguageModel:
    """Return the language model that one of the guides' models has within, or the model itself."""
    model = getattr(base_model, "language_model", base_model)
    if not isinstance(model, LanguageModel):
        raise ConfigError(
            f"base_model must be a language model of bkray, got {type(base_model).__name__}"
        )
    return model


def predicted(said: Prediction) -> Tensor:
    """Return the length of each row that is the most probable, at most the row's own, (B,)."""
    assert said.lengths is not None
    chosen_B = said.lengths.bins_K[said.lengths.logit_BK.argmax(1)]
    return chosen_B.clamp(max=said.logits_BNV.shape[1])
