"""Whose half-written files are removed when."""

from pathlib import Path

from bkray.cluster.folder import claimed


def test_a_view_may_still_be_writing_when_the_sweep_ends(tmp_path: Path) -> None:
    workers = tmp_path / "trials" / "a" / "events" / "0.parquet.1234.tmp"
    views = tmp_path / "trials" / "a" / "stability" / "spikes.json.1234.tmp"
    with claimed(tmp_path, "first", resume=False):
        for path in (workers, views):
            path.parent.mkdir(parents=True)
            path.write_text("half")
    assert not workers.exists()
    assert views.exists()
    with claimed(tmp_path, "second", resume=False):
        assert not views.exists(), "its process is dead: another one claims the sweep"
