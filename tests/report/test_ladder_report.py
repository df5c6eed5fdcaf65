"""The ladder of a sweep is what its files say, means over seeds and all."""

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_ladder import LENGTHS, loss_at, rung, write_ladder, write_rungs
from made_sweep import write_act_sweep
from trials import of as events_of
from trials import play, short_config

from bkray.cli.look import report as report_verb
from bkray.cli.look import show
from bkray.events import RungDone
from bkray.report.ladder import Ladder, ladder, plain
from bkray.report.ladder_plots import ladder_figures
from bkray.report.ladder_words import sentences
from bkray.report.render import write_report
from bkray.report.rung_rows import rungs
from bkray.report.tables import collect
from bkray.report.vega import png
from bkray.sinks.parquet import ParquetSink


def standing(folder: Path, n_seeds: int = 1) -> Path:
    """A model per length and seed, seeds a hundredth of a nat apart."""
    sweep = write_ladder(folder / "s")
    for seed in range(n_seeds):
        for n_seq in LENGTHS:
            write_rungs(sweep, rung(n_seq, loss=loss_at(n_seq) + seed / 100), seed=seed)
    return sweep


def of(sweep: Path) -> Ladder:
    found = ladder(sweep)
    assert found is not None
    return found


def test_means_go_over_the_seeds(tmp_path: Path) -> None:
    found = of(standing(tmp_path, n_seeds=3))
    assert [line.n_seq for line in found.lines] == list(LENGTHS)
    assert [len(line.rows) for line in found.lines] == [3] * 5
    line = found.lines[1]
    assert line.mean("loss") == pytest.approx(loss_at(512) + 0.01)
    assert line.mean("perplexity") == pytest.approx(math.exp(loss_at(512) + 0.01))
    assert found.longest_stable == LENGTHS[-1]


def test_the_degradation_is_by_the_shortest_length_of_the_same_seed(tmp_path: Path) -> None:
    sweep = standing(tmp_path, n_seeds=2)
    found = of(sweep)
    wanted = [math.exp(loss_at(n) - loss_at(128)) for n in LENGTHS]
    assert found.degradation == pytest.approx(wanted)
    rows = {(row["seq_len"], row["seed"]): row["perplexity_degradation"] for row in collect(sweep)}
    assert [rows[n, 1] for n in LENGTHS] == pytest.approx(wanted)


def test_the_shortest_length_is_taken_at_its_best_rate(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s", **{"ladder.lr_rule": "transfer"})
    for lr, loss in ((0.01, 4.0), (0.03, 3.0)):
        write_rungs(sweep, rung(128, loss=loss), lr=lr, arm=f"seq-128-lr-{lr}")
    write_rungs(sweep, rung(512, loss=2.0), lr=0.03)
    found = of(sweep)
    assert [line.learning_rate for line in found.main] == [0.03, 0.03]
    assert found.degradation == pytest.approx([math.exp(1), 1, math.exp(-1)])


def test_one_that_climbed_is_measured_by_itself(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s", **{"ladder.mode": "carry"})
    done = [rung(n, step=100 * i) for i, n in enumerate(LENGTHS, start=1)]
    write_rungs(sweep, *done, mode="carry")
    found = of(sweep)
    assert [line.n_seq for line in found.main] == list(LENGTHS)
    assert sentences(found)[-1].startswith("One model climbed")
    [row] = collect(sweep)
    assert row["perplexity_degradation"] == pytest.approx(math.exp(loss_at(32768) - loss_at(128)))


def test_a_diverged_seed_makes_a_length_unstable(tmp_path: Path) -> None:
    sweep = standing(tmp_path)
    for n_seq in LENGTHS:
        loss, spikes = (1e9, 45.0) if n_seq == 8192 else (None, 0.0)
        write_rungs(sweep, rung(n_seq, loss=loss, spike_count=spikes), seed=1)
    found = of(sweep)
    lost = found.lines[3]
    assert (lost.outcome, lost.n_diverged) == ("diverged", 1)
    assert lost.mean("loss") is None
    assert lost.mean("spike_count") == 22.5
    assert found.longest_stable == 2048  # 32,768 is no answer above a length that diverged
    assert found.degradation[3] is None


def test_the_last_attempt_alone_counts(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s")
    write_rungs(sweep, rung(128, step=40, loss=1e9))
    write_rungs(sweep, rung(128, loss=3.0), attempt=2)
    [row] = rungs(sweep)
    assert (row.outcome, row.metrics["loss"]) == ("ok", 3.0)


def test_a_length_that_a_trial_did_not_get_through_says_how_it_ended(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s", **{"ladder.mode": "carry"})
    write_rungs(sweep, rung(128), mode="carry", lengths=(128, 512, 2048), outcome="oom")
    write_rungs(
        sweep, rung(128), mode="carry", lengths=(128, 512, 2048), outcome="running", seed=1
    )
    found = [(row.seed, row.n_seq, row.outcome) for row in rungs(sweep)]
    assert found == [(0, 128, "ok"), (0, 512, "oom"), (1, 128, "ok")]
    assert of(sweep).longest_stable == 128


def test_without_lengths_there_is_no_ladder(tmp_path: Path) -> None:
    sweep = write_act_sweep(tmp_path / "act", 8, n_steps=50)
    assert rungs(sweep) == []
    assert ladder(sweep) is None
    assert all(row["perplexity_degradation"] is None for row in collect(sweep))


def test_lengths_within_another_sweep_are_no_ladder(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s")
    write_rungs(sweep, rung(128), arm="act")
    write_rungs(sweep, rung(128), arm="dense-1")
    assert ladder(sweep) is None


def test_what_grows_with_length_is_fitted(tmp_path: Path) -> None:
    fits = plain(of(standing(tmp_path, n_seeds=2)))["fits"]
    assert fits["seconds_per_token"]["parameters"]["b"] == pytest.approx(0.1)
    assert fits["memory_gb"]["parameters"]["b"] == pytest.approx(2**-20)
    assert fits["loss"]["parameters"]["b"] == pytest.approx(-0.05, abs=1e-3)
    assert fits["seconds_per_token"]["backtest"]["error"] == pytest.approx(0, abs=1e-6)
    assert fits["memory_gb"]["best_form"] == "linear"


def test_two_lengths_have_no_fit(tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s")
    for n_seq in LENGTHS[:2]:
        write_rungs(sweep, rung(n_seq))
    found = plain(of(sweep))["fits"]["loss"]
    assert found["parameters"] is None
    assert "at least 3 different lengths, got 2" in found["why_not"]


def test_a_report_leaves_the_results_and_where_the_models_lie(tmp_path: Path) -> None:
    sweep = standing(tmp_path)
    write_rungs(sweep, rung(65536, loss=1e9))
    report = write_report(sweep)
    assert report.results == sweep / "long_context_results.json"
    said = json.loads(report.results.read_text())
    assert set(said) >= {"config", "results", "longest_stable_length", "fits", "transfer"}
    assert said["config"]["data.corpus"] == "made_up.txt"
    assert list(said["results"]) == [*map(str, LENGTHS), "65536"]
    first, last = said["results"]["128"], said["results"]["65536"]
    assert first["loss"] == pytest.approx(loss_at(128))
    assert (first["gradient_norm_mean"], first["gradient_norm_std"]) == (2.0, 0.25)
    assert (first["seeds"], first["diverged"]) == ([0], False)
    [path] = first["checkpoints"]
    assert (sweep / path).read_text() == "a model"
    assert (last["loss"], last["diverged"], last["checkpoints"]) == (None, True, [])
    assert said["longest_stable_length"] == 32768
    table = pq.read_table(report.parquet).to_pylist()
    assert sum(row["perplexity_degradation"] is not None for row in table) == 5


def test_the_page_has_the_ladder_with_its_figures(tmp_path: Path) -> None:
    sweep = standing(tmp_path)
    report = write_report(sweep)
    page = report.html.read_text()
    assert "<h2>Length ladder</h2>" in page
    assert "Longest stable length: 32,768 tokens" in page
    names = {path.stem for path in report.figures}
    drawn = {"loss", "gradient_norm", "spikes", "memory", "tokens_per_second"}
    assert {f"ladder_{name}" for name in drawn} <= names
    assert all(page.count(f'id="plot-ladder_{name}"') == 1 for name in drawn)
    assert "long_context_results.json" in page


def test_figures_draw_every_length_and_mark_what_diverged(tmp_path: Path) -> None:
    sweep = standing(tmp_path)
    write_rungs(sweep, rung(65536, loss=1e9, spike_count=45.0))
    found = {figure.name: figure for figure in ladder_figures(of(sweep))}
    spikes = list(found["ladder_spikes"].spec["datasets"].values())
    assert {row["x"] for row in max(spikes, key=len)} == {*LENGTHS, 65536}
    assert [row["y"] for row in min(spikes, key=len)] == [45.0]
    assert "A triangle marks a length that diverged" in found["ladder_loss"].note
    assert "length^0.100" in found["ladder_tokens_per_second"].note
    assert "1 KiB per token" in found["ladder_memory"].note
    assert png(found["ladder_loss"]).startswith(b"\x89PNG")


def test_what_was_fitted_is_drawn_through_the_points(tmp_path: Path) -> None:
    found = {figure.name: figure for figure in ladder_figures(of(standing(tmp_path)))}
    for name, at in (("loss", loss_at), ("tokens_per_second", lambda n: 1e4 * n**-0.1)):
        curve = max(found[f"ladder_{name}"].spec["datasets"].values(), key=len)
        assert len(curve) == 40
        ends = {round(row["x"]): row["y"] for row in (curve[0], curve[-1])}
        assert ends == pytest.approx({n: at(n) for n in (128, 32768)})


def test_a_trial_that_climbed_is_read_from_its_own_rows(text: Path, tmp_path: Path) -> None:
    sweep = write_ladder(tmp_path / "s", **{"ladder.mode": "carry"})
    folder = sweep / "trials" / "one"
    folder.mkdir()
    (folder / "proposal.json").write_text(json.dumps({"number": 0}))
    knobs = {"ladder.lengths": "4,8,16", "ladder.mode": "carry", "batch_size": 2, "steps": 12}
    events = play(short_config(text, arm="carry", **knobs), folder)
    sink = ParquetSink(folder)
    for event in events:
        sink(event)
    sink.close()
    done = events_of(RungDone, events)
    found = rungs(sweep)
    assert [row.n_seq for row in found] == [4, 8, 16]
    assert [dict(row.metrics) for row in found] == [dict(one.metrics) for one in done]
    assert all((sweep / str(row.checkpoint)).exists() for row in found)
    assert of(sweep).longest_stable == 16


def test_the_verbs_tell_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = standing(tmp_path)
    assert show(sweep, True) == 0
    said = json.loads(capsys.readouterr().out)["ladder"]
    assert said["longest_stable_length"] == 32768
    assert show(sweep) == 0
    assert "Length ladder" in capsys.readouterr().out
    assert report_verb(sweep) == 0
    assert "long_context_results.json" in capsys.readouterr().out


def test_a_sweep_without_lengths_has_no_ladder_to_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_act_sweep(tmp_path / "act", 8, n_steps=50)
    assert show(sweep, True) == 0
    assert json.loads(capsys.readouterr().out)["ladder"] is None
    assert write_report(sweep).results is None
