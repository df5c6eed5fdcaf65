"""A model that learns the recall task shows its known benefit, at its distance and not before."""

import pytest
import torch

from bkray.data.batches import Batches
from bkray.data.corpus import Corpus
from bkray.data.recall import ANSWER_NATS, answer_nats, answers, recall
from bkray.data.vocabulary import ByteVocabulary
from bkray.nn.build import language_model
from bkray.nn.lm import LanguageModel
from bkray.overrides import build
from bkray.train.step import token_loss_nats

N, LONGEST, STEPS = 24, 32, 800
MODEL = {"mixer": "attention", "d_model": 64, "n_layers": 2, "n_heads": 4, "n_seq": N}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return recall(LONGEST)


@pytest.fixture(scope="module")
def trained(corpus: Corpus) -> LanguageModel:
    torch.manual_seed(0)
    config = build({f"model.{name}": value for name, value in MODEL.items()}).model
    model = language_model(config, 256)
    assert isinstance(model, LanguageModel)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    train = ByteVocabulary().encode(corpus.text("train"))
    batches = Batches(train, N, 32, 0, segment=corpus.segment)
    for _ in range(STEPS):
        inputs_BN, targets_BN = next(batches)
        optimizer.zero_grad()
        torch.autograd.backward(token_loss_nats(model(inputs_BN), targets_BN).mean())
        optimizer.step()
    return model.eval()


@torch.no_grad()
def loss_of_answers(model: LanguageModel, corpus: Corpus, distance: int, context: int) -> float:
    """Return the mean loss of the answers at a distance, each from ``context`` tokens alone."""
    assert corpus.segment is not None
    valid = torch.from_numpy(ByteVocabulary().encode(corpus.text("valid")).copy()).long()
    first = corpus.kinds.index(f"distance_{distance}")
    rows = [
        segment[place - context : place + 1]
        for segment in valid.split(corpus.segment)[first :: len(corpus.kinds)][:300]
        for place in answers(segment.numpy())
        if place >= context
    ]
    row_BN = torch.stack(rows)
    loss_BN = token_loss_nats(model(row_BN[:, :-1]), row_BN[:, 1:])
    return float(loss_BN[:, -1].mean())


@pytest.mark.slow
@pytest.mark.parametrize("distance", [4, 8])
def test_the_benefit_is_the_entropy_and_comes_with_the_first_mention(
    trained: LanguageModel, corpus: Corpus, distance: int
) -> None:
    for context in (2, distance - 1):
        loss = loss_of_answers(trained, corpus, distance, context)
        assert loss == pytest.approx(answer_nats(distance, context), abs=0.1)
        assert answer_nats(distance, context) == ANSWER_NATS
    loss = loss_of_answers(trained, corpus, distance, N)
    assert loss == pytest.approx(answer_nats(distance, N), abs=0.3)


@pytest.mark.slow
def test_there_is_no_benefit_before_the_distance(trained: LanguageModel, corpus: Corpus) -> None:
    for context in (2, 5, 9, 15):
        loss = loss_of_answers(trained, corpus, 16, context)
        assert loss == pytest.approx(ANSWER_NATS, abs=0.15)
