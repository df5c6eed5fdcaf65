"""What each length of a ladder came to, and its checkpoint in the guides' form."""

import math

import torch

from bkray.atomic import replace
from bkray.events import RungDone
from bkray.rungs import Rung
from bkray.train import checkpoint
from bkray.train.evaluate import evaluate
from bkray.train.run import Run, peak_memory_mib, validation_at

SPECTRAL = ("schatten_s1", "schatten_s2", "condition_number")


def rung_done(run: Run, rung: Rung, lr: float, *, diverged: bool) -> RungDone:
    """Return the numbers of one length, under the guides' names; of the loss that of validation.

    ``gradient_norm`` and its standard deviation are over the steps at this length, before
    clipping; ``memory_gb`` is 2^30 bytes, the peak so far; ``context_worth_nats`` is what the
    first half of a window is worth to the second.
    """
    progress, tally = run.progress, run.progress.tally
    metrics = {
        "spike_count": float(progress.health.spike_count - tally.spikes_before),
        "nan_count": float(tally.nan_count),
        "tokens_per_second": tally.tokens / tally.train_seconds,
        "memory_gb": peak_memory_mib(run) / 2**10,
        "learning_rate": lr,
        "steps": float(progress.step - rung.first_step + 1),
        "train_seconds": tally.train_seconds,
    }
    if tally.norms.count:
        metrics |= {"gradient_norm": tally.norms.mean, "gradient_norm_std": tally.norms.std}
    loss_nats = progress.final_val_loss_nats
    if loss_nats is not None and not diverged:
        metrics |= {"loss": loss_nats, "perplexity": math.exp(min(loss_nats, 700.0))}
        metrics["context_worth_nats"] = context_worth_nats(run)
        seen = {name: progress.metrics.get(f"stability/{name}") for name in SPECTRAL}
        metrics |= {name: value for name, value in seen.items() if value is not None}
    return RungDone(step=progress.step, n_seq=rung.n_seq, diverged=diverged, metrics=metrics)


def context_worth_nats(run: Run) -> float:
    """Return the loss of the second half of every validation window scored by itself, less that
    of the same tokens with the first half in front: above 0 context helps."""
    inputs_WN, targets_WN, rows = validation_at(run)
    half = inputs_WN.shape[1] // 2
    alone = evaluate(
        run.model,
        inputs_WN[:, half:],
        targets_WN[:, half:],
        batch_size=rows,
        autocast=run.autocast,
        chunk=run.config.train.chunk,
        team=run.team,
    )
    return alone.loss_nats - run.progress.metrics["context/late_loss_nats"]


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
