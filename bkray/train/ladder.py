"""What each length of a ladder came to, and its checkpoint in the guides' form."""

import math

import torch
from torch.nn.functional import pad

from bkray.atomic import replace
from bkray.data.of_trial import UNSCORED, Pair
from bkray.events import RungDone
from bkray.rungs import DISTANCES, Rung, rows_at
from bkray.train import checkpoint
from bkray.train.evaluate import Evaluation, evaluate
from bkray.train.run import Run, Windows, peak_memory_mib, validation_at

SPECTRAL = ("schatten_s1", "schatten_s2", "condition_number", "precision_upgrades")


def rung_done(run: Run, rung: Rung, lr: float, *, diverged: bool) -> RungDone:
    """Return the numbers of one length, under the guides' names; of the loss that of validation.

    ``gradient_norm`` and its standard deviation are over the steps at this length, before
    clipping; ``memory_gb`` is 2^30 bytes, the peak so far; ``context_worth_nats`` is what the
    first half of a window is worth to the second, and ``context_worth_beyond_<d>_nats`` what lies
    further back than ``d`` tokens and up to twice as many.
    """
    progress, tally = run.progress, run.progress.tally
    metrics = {
        "spike_count": float(progress.health.spike_count - tally.spikes_before),
        "nan_count": float(tally.nan_count),
        "tokens_per_second": tally.tokens / tally.train_seconds,
        "memory_gb": peak_memory_mib(run) / 2**10,
        "learning_rate": lr,
        "steps": float(progress.step - rung.first_step + 1),
        "tokens_per_step": float(rung.tokens_per_step),
        "train_seconds": tally.train_seconds,
    }
    if tally.norms.count:
        metrics |= {"gradient_norm": tally.norms.mean, "gradient_norm_std": tally.norms.std}
    loss_nats = progress.final_val_loss_nats
    if loss_nats is not None and not diverged:
        metrics |= {"loss": loss_nats, "perplexity": math.exp(min(loss_nats, 700.0))}
        metrics |= context_worths(run)
        seen = {name: progress.metrics.get(f"stability/{name}") for name in SPECTRAL}
        metrics |= {name: value for name, value in seen.items() if value is not None}
    return RungDone(step=progress.step, n_seq=rung.n_seq, diverged=diverged, metrics=metrics)


def context_worths(run: Run) -> dict[str, float]:
    """Return how much greater the loss of the second half of every validation window is, in nats
    per token, with less of its past in front: above 0 context helps.

    ``context_worth_nats`` is without the first half. ``context_worth_beyond_<d>_nats`` is in rows
    of ``2 d`` sites, the second half of each scored: all tokens keep at least ``d`` of their past,
    and ``1.5 d`` in the mean. It is told where windows are long enough for that.
    """
    windows = validation_at(run)
    n_seq = windows.inputs_WN.shape[1]
    half, whole = n_seq // 2, run.progress.metrics["context/late_loss_nats"]
    late = windows.inputs_WN[:, half:], windows.targets_WN[:, half:]
    worths = {"context_worth_nats": _score(run, late, windows.rows).loss_nats - whole}
    for distance in DISTANCES:
        if n_seq < 4 * distance:
            continue
        rows = _with_past(windows, half, distance)
        scored = _score(run, rows, rows_at(run.config, 2 * distance)[1])
        worth = scored.metrics["context/late_loss_nats"] - whole
        worths[f"context_worth_beyond_{distance}_nats"] = worth
    return worths


def _with_past(windows: Windows, half: int, distance: int) -> Pair:
    """Return rows of ``2 distance`` sites whose second halves are the sites from ``half`` on."""
    n_more = -(windows.inputs_WN.shape[1] - half) % distance
    first = half - distance
    inputs_WM = pad(windows.inputs_WN[:, first:], (0, n_more))
    targets_WM = pad(windows.targets_WN[:, first:], (0, n_more), value=UNSCORED)
    inputs_Wn, targets_Wn = (
        x_WM.unfold(1, 2 * distance, distance).flatten(0, 1) for x_WM in (inputs_WM, targets_WM)
    )
    return inputs_Wn, targets_Wn


def _score(run: Run, pair: Pair, rows: int) -> Evaluation:
    chunk = run.config.train.chunk
    return evaluate(
        run.model, *pair, batch_size=rows, autocast=run.autocast, chunk=chunk, team=run.team
    )


def save_rung(run: Run, rung: Rung) -> None:
    """Write ``checkpoint_seq<N>_final.pt``, and after the last length ``checkpoint_final.pt``."""
    if run.folder is None or not run.team.leads:
        return
    state = {
        "step": run.progress.step,
        "seq_len": rung.n_seq,
        "model_state_dict": run.model.state_dict(),
        "optimizer_state_dict": run.optimizer.state_dict(),
        "loss": run.progress.final_val_loss_nats,
        "config": run.config.model_dump(),
    }
    names = [f"checkpoint_seq{rung.n_seq}_final.pt"]
    names += ["checkpoint_final.pt"] if rung == run.rungs[-1] else []
    for name in names:
        with replace(run.folder / checkpoint.FOLDER / name) as temporary:
            torch.save(state, temporary)
