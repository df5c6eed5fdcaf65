"""A model that looks its answers up shows their known worth, at their distance and not before."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bkray.data.corpus import Corpus
from bkray.data.recall import (
    ANSWER_NATS,
    FACT,
    VALUES,
    answer_nats,
    answer_windows,
    answers,
    distances_to,
    recall,
)
from bkray.data.vocabulary import ByteVocabulary, Tokens
from bkray.nn.lm import Prediction
from bkray.train.context import ContextBenefit, context_benefit

LONGEST, N, W = 32, 64, 16
OFF = torch.autocast("cpu", torch.bfloat16, enabled=False)
SURE = 30.0


class LooksUp(nn.Module):
    """Says the value that the last key in its input was given there; else any value."""

    def __init__(self) -> None:
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(SURE))

    def forward(self, tokens_BN: Tensor) -> Prediction:
        rows = [self._last(row.tolist()) for row in tokens_BN]
        last_BV = torch.stack(rows)[:, None]
        before = torch.zeros(*tokens_BN[:, 1:].shape, 256)
        return Prediction(torch.cat([before, last_BV], dim=1))

    def _last(self, row: list[int]) -> Tensor:
        text = bytes(row)
        said = text.rfind(FACT + text[-1:], 0, -1)
        likely = VALUES if said < 0 else text[said + 2 : said + 3]
        logits_V = torch.zeros(256)
        logits_V[list(likely)] = SURE
        return logits_V


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return recall(LONGEST)


@pytest.fixture(scope="module")
def valid(corpus: Corpus) -> Tokens:
    return ByteVocabulary().encode(corpus.text("valid"))


@pytest.fixture(scope="module")
def sides(corpus: Corpus, valid: Tokens) -> dict[str, tuple[Tensor, Tensor]]:
    assert corpus.segment is not None
    return answer_windows(valid, N, W, segment=corpus.segment, kinds=corpus.kinds)


def benefit(pair: tuple[Tensor, Tensor]) -> ContextBenefit:
    return context_benefit(LooksUp(), *pair, batch_size=8, autocast=OFF, n_targets=1)


@pytest.mark.parametrize("distance", distances_to(LONGEST))
def test_the_benefit_is_the_entropy_and_comes_with_the_first_mention(
    sides: dict[str, tuple[Tensor, Tensor]], distance: int
) -> None:
    """The reader goes by the key: at the distance itself, the last byte in sight is the value."""
    found = benefit(sides[f"distance_{distance}"])
    assert found.verdict == "benefit" and found.n_windows == W
    assert found.loss_nats == pytest.approx(answer_nats(distance, N), abs=1e-6)
    for one in found.benefits:
        if one.distance <= distance:
            assert one.over_cut.shown.mean == pytest.approx(ANSWER_NATS, abs=1e-6)
            assert one.over_cut.is_benefit
        else:
            assert one.over_cut.shown.mean == one.over_shuffled.shown.mean == 0
            assert not one.over_cut.is_benefit and not one.over_shuffled.is_benefit


def test_what_lies_beyond_the_window_is_of_no_benefit(corpus: Corpus, valid: Tokens) -> None:
    assert corpus.segment is not None
    short = answer_windows(valid, 16, W, segment=corpus.segment, kinds=corpus.kinds)
    found = benefit(short["distance_16"])
    assert found.loss_nats == pytest.approx(ANSWER_NATS, abs=1e-6)
    assert found.verdict == "flat"


def test_every_window_of_a_kind_ends_at_another_answer(
    corpus: Corpus, valid: Tokens, sides: dict[str, tuple[Tensor, Tensor]]
) -> None:
    assert corpus.segment is not None
    assert list(sides) == list(corpus.kinds)
    for distance, (inputs_WN, targets_WN) in zip(
        distances_to(LONGEST), sides.values(), strict=True
    ):
        assert torch.equal(inputs_WN[:, 1:], targets_WN[:, :-1])
        assert distance + 2 <= inputs_WN.shape[1] <= N, "the first mention has room"
        for inputs, targets in zip(inputs_WN, targets_WN, strict=True):
            whole = np.append(inputs.numpy(), targets[-1:].numpy())
            assert answers(whole)[-1] == len(whole) - 1
            assert whole[-1 - distance] == whole[-1]
        assert len({tuple(row.tolist()) for row in inputs_WN}) == W


def test_windows_are_as_many_as_there_are_answers(corpus: Corpus, valid: Tokens) -> None:
    assert corpus.segment is not None
    one_turn = valid[: corpus.segment * len(corpus.kinds)]
    few = answer_windows(one_turn, N, 500, segment=corpus.segment, kinds=corpus.kinds)
    for place, (inputs_WN, _) in enumerate(few.values()):
        segment = one_turn[place * corpus.segment :][: corpus.segment]
        assert len(inputs_WN) == len(answers(segment))
