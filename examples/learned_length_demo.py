"""Learned sequence length under the names of the public guides, beside a model of fixed length.

    python examples/learned_length_demo.py [--quick]

Half the rows repeat a short word, which what answers behind a cut sees at once; the others are two
walks in turn, which take a model. Every number is measured, on one CPU thread, in about a minute.
Letters: B batch, N sites.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from bkray.guides import (
    AdaptiveSequenceLengthWrapper,
    LanguageModel,
    LearnedSequenceLengthTrainer,
)
from bkray.trial import use_threads

VOCABULARY, WIDTH, LAYERS, SITES, BINS, BATCH = 32, 64, 4, 128, 8, 16
STRIDES = 3
"""Ways for a walk to go on: the best perplexity there."""

Kind = Callable[[int], Tensor]


def main() -> None:
    """Train both from one start and print what lengths save and cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few training steps")
    steps = 4 if parser.parse_args().quick else 200
    use_threads(1)
    fixed, learned = trained(steps, use_adaptive_length=False), trained(steps)
    print(f"{steps} training steps from the same start, {SITES} sites, lengths", end=" ")
    print(*learned.model.length_predictor.length_bins.tolist())
    print("\n           perplexity                              average  speedup    speedup")
    print("rows       trained plain  learned, whole  and cut   length  estimated  measured")
    rows = {"patterns": patterns, "walks": walks, "both": both}
    for name, kind in rows.items():
        batches = [pair(kind) for _ in range(4)]
        plain = fixed.evaluate(batches, use_adaptive_length=False)
        whole = learned.evaluate(batches, use_adaptive_length=False)
        cut = learned.evaluate(batches, use_adaptive_length=True)
        print(
            f"{name:9s}  {plain['perplexity']:13.2f}  {whole['perplexity']:14.2f}"
            f"  {cut['perplexity']:7.2f}  {cut['avg_predicted_length']:7.1f}"
            f"  {cut['avg_speedup']:9.2f}  {cut['speedup_measured']:8.2f}"
        )


def trained(steps: int, use_adaptive_length: bool = True) -> LearnedSequenceLengthTrainer:
    """Return the trainer of a model that has seen ``steps`` batches of both kinds."""
    torch.manual_seed(0)
    base = LanguageModel(VOCABULARY, WIDTH, LAYERS, SITES, num_experts=1, dropout_p=0.0)
    model = AdaptiveSequenceLengthWrapper(base, SITES, BINS, length_penalty=0.02)
    trainer = LearnedSequenceLengthTrainer(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    for step in range(1, steps + 1):
        said = trainer.train_step(*pair(both), use_adaptive_length=use_adaptive_length)
        if step % 50 == 0:
            print(f"step {step}: " + ", ".join(f"{name} {x:.3f}" for name, x in said.items()))
    return trainer


def pair(kind: Kind) -> tuple[Tensor, Tensor]:
    """Return a batch of rows (B, N) and what comes next at every site."""
    rows_BN = kind(BATCH)
    return rows_BN[:, :-1], rows_BN[:, 1:]


def both(n_rows: int) -> Tensor:
    """Return as many rows of the one kind as of the other."""
    return torch.cat([patterns(n_rows // 2), walks(n_rows - n_rows // 2)])


def patterns(n_rows: int) -> Tensor:
    """Return rows (B, N + 1) that repeat a random word of 2 to 8 tokens."""
    words = [torch.randint(VOCABULARY, (int(torch.randint(2, 9, ())),)) for _ in range(n_rows)]
    return torch.stack([word.repeat(SITES)[: SITES + 1] for word in words])


def walks(n_rows: int) -> Tensor:
    """Return rows (B, N + 1) in which a token is 1 to 3 above the last but one."""
    rows = list(torch.randint(VOCABULARY, (2, n_rows)))
    while len(rows) <= SITES:
        rows.append((rows[-2] + torch.randint(1, 1 + STRIDES, (n_rows,))) % VOCABULARY)
    return torch.stack(rows, dim=1)


if __name__ == "__main__":
    main()
