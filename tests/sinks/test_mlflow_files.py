"""What becomes an artifact lies in the folder that it is said to lie in."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from bkray.sinks.mlflow_files import TrialFiles, placed


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of one trial, beside a file that is nobody's business."""
    (tmp_path / "secret.txt").write_text("not yours")
    (tmp_path / "forensics").mkdir()
    (tmp_path / "forensics/secret.json").write_text("{}")
    forensics = tmp_path / "sweep/trials/t0/forensics"
    forensics.mkdir(parents=True)
    (forensics / "report.json").write_text("{}")
    return tmp_path / "sweep"


def attached(sweep: Path, trial_id: str, told: list[str]) -> list[str]:
    files = TrialFiles(sweep, None, told.append)
    return [f"{folder}/{path.name}" for path, folder in files.of(trial_id)]


def test_files_of_a_trial_are_attached(sweep: Path) -> None:
    told: list[str] = []
    assert attached(sweep, "t0", told) == ["forensics/report.json"]
    assert not told


@pytest.mark.parametrize("trial_id", ["..", "../..", "t0/../../..", "/", "."])
def test_a_trial_of_another_folder_has_no_files(sweep: Path, trial_id: str) -> None:
    told: list[str] = []
    assert attached(sweep, trial_id, told) == []
    assert len(told) == 1


def test_an_absolute_path_is_no_trial(sweep: Path) -> None:
    told: list[str] = []
    assert attached(sweep, str(sweep.parent), told) == []
    assert "no name of a trial" in told[0]


def test_a_link_out_of_a_trial_is_left_out_and_told(sweep: Path) -> None:
    (sweep / "trials/t0/forensics/leak.json").symlink_to(sweep.parent / "secret.txt")
    told: list[str] = []
    assert attached(sweep, "t0", told) == ["forensics/report.json"]
    assert "links out of its folder" in told[0]


def test_what_a_view_makes_elsewhere_is_left_out(sweep: Path) -> None:
    def elsewhere(folder: Path) -> Sequence[Path]:
        return [folder / "../../../secret.txt"]

    told: list[str] = []
    files = TrialFiles(sweep, elsewhere, told.append).of("t0")
    assert [path.name for path, _ in files] == ["report.json"]
    assert told


def test_links_out_of_a_report_are_left_out(sweep: Path) -> None:
    (sweep / "report.html").write_text("<p>")
    figures = sweep / "figures"
    figures.mkdir()
    (figures / "loss.png").write_text("")
    (figures / "leak.png").symlink_to(sweep.parent / "secret.txt")
    (figures / "same.png").symlink_to(figures / "loss.png")
    found = {path.name: folder for path, folder in placed([sweep / "report.html", figures])}
    assert found == {"report.html": "", "loss.png": "figures", "same.png": "figures"}
