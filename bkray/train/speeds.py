"""Time and memory of a mixer by sequence length, in turn with a reference's at as many parameters.

One row at a time, of random tokens; the models are untrained. Letters: B batch, here 1, N sites.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from bkray.config import ModelConfig, TrialConfig
from bkray.errors import ConfigError
from bkray.nn.build import language_model
from bkray.nn.equal import with_mixer
from bkray.nn.lm import Carried, check_streams
from bkray.overrides import Overrides, build
from bkray.train import measure
from bkray.train.optim import adamw
from bkray.train.step import token_loss_nats

KINDS = ("train", "eval", "stream")
"""A training step over a whole row; a row scored; a chunk of a stream whose past is as long as the
row, in the state of whoever has one."""

CHUNK = 256
"""Tokens of the stream at a time."""
WARM_UP = 64
SECONDS = 5.0
"""Of rounds for one number, where there are more than the fewest."""
FEWEST_ROUNDS = 3
"""Behind a first pass, which finds cold caches: a single ratio may be several times off."""
LONG = 20.0
"""Seconds of a pass from which on one round has to do."""

Pass = Callable[[], None]


def speeds(
    config: TrialConfig, vocab_size: int, device: torch.device, autocast: torch.autocast
) -> dict[str, float]:
    """Return the numbers of each of ``train.speed_lengths``, as ``speed/seq<N>/<kind>_...``.

    ``..._microseconds_per_token`` and ``..._memory_mib`` (what a pass takes beyond model and
    state) of the trial's model, and after ``_reference`` of the other one; ``..._over_reference``
    is the median ratio of their times, measured in turn, beside the ``_least`` and ``_most`` of
    its ``..._rounds``. Without a mixer that streams there are no such numbers.
    """
    mixer = config.train.speed_reference_mixer or config.model.mixer
    reference = with_mixer(config.model, str(mixer))
    found: dict[str, float] = {}
    for n_seq in map(int, (config.train.speed_lengths or "").split(",")):
        models = [
            _model(overrides, n_seq, config.train.precision, vocab_size).to(device)
            for overrides in (with_mixer(config.model, str(config.model.mixer)), reference)
        ]
        row_BN = torch.randint(vocab_size, (1, n_seq + 1), device=device)
        for kind, passes in _passes(models, row_BN, config, autocast):
            n_tokens = min(CHUNK, n_seq // 2) if kind == "stream" else n_seq
            seen = _in_turn(passes, n_tokens, device)
            found |= {f"speed/seq{n_seq}/{kind}_{name}": value for name, value in seen.items()}
    return found


def _model(overrides: Overrides, n_seq: int, precision: str, vocab_size: int) -> nn.Module:
    model: ModelConfig = build({**overrides, "model.n_seq": n_seq}).model
    built = language_model(model, vocab_size)
    return built.double() if precision == "float64" else built


def _passes(
    models: Sequence[nn.Module], row_BN: Tensor, config: TrialConfig, autocast: torch.autocast
) -> Iterator[tuple[str, list[Pass]]]:
    """Yield what is to be timed, after compiling it on a few tokens."""
    for model in models:
        _train(model, adamw(model, config.optimizer), row_BN[:, : WARM_UP + 1], autocast)
    steps: list[Pass] = [
        partial(_train, model, adamw(model, config.optimizer), row_BN, autocast)
        for model in models
    ]
    yield "train", steps
    for model in models:
        model.zero_grad()
        model.eval()
    yield "eval", [partial(_score, model, row_BN, autocast) for model in models]
    if all(map(_streams, models)):
        yield "stream", [_stream(model, row_BN, autocast) for model in models]


def _streams(model: nn.Module) -> bool:
    try:
        check_streams(model)
    except ConfigError:
        return False
    return True


def _train(
    model: nn.Module, optimizer: torch.optim.Optimizer, row_BN: Tensor, autocast: torch.autocast
) -> None:
    with autocast:
        loss = token_loss_nats(model(row_BN[:, :-1]), row_BN[:, 1:]).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def _score(model: nn.Module, row_BN: Tensor, autocast: torch.autocast) -> None:
    with autocast:
        token_loss_nats(model(row_BN[:, :-1]), row_BN[:, 1:]).mean()


@torch.no_grad()
def _stream(model: nn.Module, row_BN: Tensor, autocast: torch.autocast) -> Pass:
    """Return what reads the next chunk behind a first one, again and again the same.

    Attention holds room for a whole row of keys from its first chunk on, and reads all of it.
    """
    n_tokens = min(CHUNK, (row_BN.shape[1] - 1) // 2)
    first_BN, next_BN = row_BN[:, :n_tokens], row_BN[:, n_tokens : 2 * n_tokens + 1]
    with autocast:
        carried = model(first_BN, Carried()).carried

    @torch.no_grad()
    def read() -> None:
        with autocast:
            token_loss_nats(model(next_BN[:, :-1], carried), next_BN[:, 1:]).mean()

    return read


def _in_turn(
    passes: Sequence[Pass],
    n_tokens: int,
    device: torch.device,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return times and memory of the model's pass and the reference's; ``now`` is in seconds.

    The first passes warm up and tell the memory, and how many rounds there is time for.
    """
    with measure.machine_lock():
        first, memory = [], []
        for one in passes:
            measure.forget_peak_memory(device)
            held = measure.peak_memory_mib(device)
            first.append(_seconds(one, device, now))
            memory.append(measure.peak_memory_mib(device) - held)
        shortest, both = max(1e-9, min(first)), max(1e-9, sum(first))
        wanted = math.ceil(measure.SHORTEST_SECONDS / shortest)
        repeats = max(1, min(wanted, int(SECONDS / FEWEST_ROUNDS / both)))
        fewest = 1 if max(first) > LONG else FEWEST_ROUNDS
        rounds = min(measure.ROUNDS, max(fewest, int(SECONDS / (repeats * both))))
        seconds: list[list[float]] = [[] for _ in passes]
        for round_ in range(rounds):
            # as in measure.speed: whoever comes second finds a warm cache
            for i in range(len(passes)) if round_ % 2 else reversed(range(len(passes))):
                seconds[i].append(_seconds(passes[i], device, now, repeats))
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    own, other = (1e6 * statistics.median(of_one) / n_tokens for of_one in seconds)
    return {
        "microseconds_per_token": own,
        "reference_microseconds_per_token": other,
        "over_reference": statistics.median(ratios),
        "over_reference_least": min(ratios),
        "over_reference_most": max(ratios),
        "rounds": float(rounds),
        "memory_mib": memory[0],
        "reference_memory_mib": memory[1],
    }


def _seconds(one: Pass, device: torch.device, now: Callable[[], float], repeats: int = 1) -> float:
    """Return the mean time of one pass."""
    elapsed = measure.stopwatch(device, now)
    for _ in range(repeats):
        one()
    return elapsed() / repeats
