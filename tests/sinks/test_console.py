"""The console says enough and not too much, on a terminal and elsewhere."""

import io
import math
import re
from dataclasses import replace

from rich.console import Console

from bkray.events import (
    CellDone,
    EvalDone,
    Event,
    Rewound,
    RungDone,
    Spiked,
    StepsDone,
    TrialEnded,
    TrialStarted,
    Warned,
)
from bkray.sinks.console import ConsoleView


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def started(arm: str = "", seed: int = 0) -> TrialStarted:
    return TrialStarted(
        trial_id="t",
        sweep="act",
        arm=arm,
        seed=seed,
        attempt=1,
        config={"train.steps": 32, "model.act_lambda": 0.01},
        n_params=12345,
        causal=True,
        data_hash="d",
    )


def window(step: int, loss: float = 2.5) -> StepsDone:
    return StepsDone(
        step=step,
        tokens=step * 1000,
        loss_nats=(9.0, loss),
        grad_norm=(1.0, 1.0),
        lr=1e-3,
        window_seconds=0.5,
        metrics={"act/avg_layers_executed": 2.25},
    )


EVENTS: list[Event] = [
    started(),
    *(window(step) for step in range(2, 33, 2)),
    Spiked(step=32, ratio=2.5),
    EvalDone(step=32, tokens=32000, split="val", loss_nats=2.125, metrics={}),
    TrialEnded(step=32, outcome="ok", reason="all steps done", summary={}),
]


def plain(view_events: list[Event], total: int = 1) -> list[str]:
    out = io.StringIO()
    view = ConsoleView(total, Console(file=out, width=40), ("model.act_lambda",), now=Clock())
    sink = view.trial("t")
    for event in view_events:
        sink(event)
    sink.close()
    view.close()
    return out.getvalue().splitlines()


def climbed(step: int, *, diverged: bool = False, **metrics: float) -> RungDone:
    numbers = {"gradient_norm": 1.234, "gradient_norm_std": 0.2, "spike_count": 2.0, **metrics}
    return RungDone(step=step, n_seq=2048, diverged=diverged, metrics=numbers)


def test_elsewhere_there_is_a_line_per_start_spike_evaluation_and_end() -> None:
    assert plain(EVENTS) == [
        "start  act_lambda=0.01 seed=0: trial t, 12,345 parameters",
        "spike  act_lambda=0.01 seed=0: Step 32 | Loss 2.5000 | SPIKE 2.50x",
        "eval   act_lambda=0.01 seed=0: step 32/32, train loss 2.5000, val loss 2.1250, "
        "layers 2.25, tokens/s 4,000",
        "end    act_lambda=0.01 seed=0: ok at step 32 (all steps done); "
        "1 done, 0 running, 1 in all, 0:00:00 elapsed",
    ]


def test_a_warning_and_a_rewind_are_a_line_each() -> None:
    told: list[Event] = [Warned(step=0, message="last.pt is broken"), Rewound(step=32, to_step=16)]
    assert plain([replace(started(), split=2), *told, *EVENTS[-1:]])[:3] == [
        "start  act_lambda=0.01 seed=0: trial t, 12,345 parameters, micro-batches cut into 2",
        "warn   act_lambda=0.01 seed=0: last.pt is broken",
        "rewind act_lambda=0.01 seed=0: from step 32 to step 16",
    ]


def test_a_spike_has_the_loss_of_its_own_step() -> None:
    told: list[Event] = [window(32), Spiked(step=31, ratio=2.34)]
    assert plain([started(), *told])[1].endswith(": Step 31 | Loss 9.0000 | SPIKE 2.34x")


def test_what_the_robust_rule_finds_is_no_line() -> None:
    assert len(plain([started(), window(32), Spiked(step=32, ratio=2.34, rule="robust")])) == 1


def test_a_length_of_a_ladder_is_a_line() -> None:
    told = [climbed(100, loss=2.34567), climbed(7, diverged=True, spike_count=1.0)]
    assert plain([started("seq-2048"), *told])[1:] == [
        "rung   seq-2048 seed=0: seq 2048  Step 100 | Loss 2.3457 | Grad 1.23 +- 0.20 | 2 spikes",
        "rung   seq-2048 seed=0: seq 2048  Step 7 | DIVERGED | Grad 1.23 +- 0.20 | 1 spike",
    ]


def test_a_cell_is_a_line() -> None:
    numbers = {"ppl": 5.1234, "late_ppl": 5.2, "recall_long": 0.75}
    told = [
        CellDone(step=9, n_eval=512, strategy=name, metrics=metrics)
        for name, metrics in (("truncate", numbers), ("extrapolate", {}))
    ]
    assert plain([started("bk-none-256"), *told])[1:] == [
        "cell   bk-none-256 seed=0: 512 tokens by truncate: ppl 5.123, second half 5.200, "
        "recall 0.750",
        "cell   bk-none-256 seed=0: 512 tokens by extrapolate: not applicable",
    ]


def test_trials_that_follow_are_counted_in() -> None:
    out = io.StringIO()
    view = ConsoleView(2, Console(file=out, width=200), n_done=1, now=Clock())
    for name in "abc":
        sink = view.trial(name)
        for event in (started(name), EVENTS[-1]):
            sink(event)
        sink.close()
    assert [
        re.findall(r"; (.* in all)", line)[0] for line in out.getvalue().splitlines()[1::2]
    ] == [
        "2 done, 0 running, 2 in all",
        "3 done, 0 running, 3 in all",
        "4 done, 0 running, 4 in all",
    ]


def test_a_terminal_keeps_a_length_above_its_table() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, height=20, color_system=None)
    view = ConsoleView(1, console, now=Clock())
    sink = view.trial("a")
    for event in [started(), climbed(100, loss=2.0), *EVENTS[1:]]:
        sink(event)
    view.close()
    assert out.getvalue().count("seq 2048  Step 100 | Loss 2.0000") == 1


def test_a_terminal_keeps_a_warning_above_its_table() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, height=20, color_system=None)
    view = ConsoleView(1, console, now=Clock())
    sink = view.trial("a")
    for event in [started(), Warned(step=0, message="last.pt is broken"), *EVENTS[1:]]:
        sink(event)
    view.close()
    assert out.getvalue().count("last.pt is broken") == 1


def test_elsewhere_there_are_no_control_characters() -> None:
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", "\n".join(plain([started("[bold]x"), *EVENTS])))


def test_markup_in_a_name_is_text() -> None:
    assert plain([started("[bold]:smile:")])[0].startswith("start  [bold]:smile: seed=0: ")


def test_a_loss_that_is_no_number_is_shown_as_such() -> None:
    lines = plain([started(), window(2, math.nan), EVENTS[-2]])
    assert "train loss nan" in lines[1]


def test_a_terminal_shows_a_table_with_summary_and_all_columns() -> None:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=True, width=120, height=20, color_system=None)
    view = ConsoleView(3, console, now=clock)
    first, second = view.trial("a"), view.trial("b")
    for event in EVENTS:
        first(event)
    clock.seconds = 3725
    second(started("dense-2", seed=4))
    view.close()
    last_frame = out.getvalue().rpartition("trial")[2]
    assert "dense-2 seed=4" in last_frame
    assert "1 done, 1 running, 3 in all, 1:02:05 elapsed" in last_frame
    row = next(line for line in last_frame.splitlines() if "act seed=0" in line)
    assert row.split() == ["act", "seed=0", "32/32", "2.5000", "2.1250", "2.25", "4,000", "ok"]


def test_a_terminal_is_drawn_at_most_four_times_a_second() -> None:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=True, width=120, height=20, color_system=None)
    sink = ConsoleView(1, console, now=clock).trial("a")
    sink(started())
    drawn = out.getvalue().count("val loss")
    for i in range(1000):
        clock.seconds = i / 1000
        sink(window(2))
    assert 2 <= out.getvalue().count("val loss") - drawn <= 4


def test_running_trials_stay_on_a_small_screen_when_many_ended() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, height=10, color_system=None)
    view = ConsoleView(50, console, now=Clock())
    for i in range(40):
        sink = view.trial(f"t{i}")
        sink(started(f"arm-{i}"))
        if i > 0:
            sink(EVENTS[-1])
    view.close()
    last_frame = out.getvalue().rpartition("val loss")[2]
    assert "arm-0 " in last_frame
    assert "arm-39 " in last_frame
    assert "arm-20 " not in last_frame
    assert "39 done, 1 running, 50 in all" in last_frame


def test_a_trial_closed_before_its_end_no_longer_runs() -> None:
    out = io.StringIO()
    view = ConsoleView(2, Console(file=out), now=Clock())
    lost = view.trial("a")
    lost(started())
    lost.close()
    view.trial("b")(EVENTS[-1])
    assert "2 done, 0 running" in out.getvalue()
