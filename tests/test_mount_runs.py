"""deploy/mount-runs.sh on plain files: which disk is formatted, mounted, or left alone."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.shell import program

SCRIPT = Path(__file__).parents[1] / "deploy/mount-runs.sh"
MIB = 1 << 20
ZERO = bytes(3 * MIB)
SUDO = """
case $1 in
    blkid) exit "$BLKID" ;;
    head | tail) exec "$@" ;;
    tee) cat > /dev/null ;;
esac
echo "$*" >> "$SAID"
"""


def mount(tmp_path: Path, *, blkid: int, disk: bytes | None = ZERO) -> tuple[int, list[str]]:
    """What root does to a disk of which ``blkid -p`` says this status; ``None``: unreadable."""
    said, device = tmp_path / "said", tmp_path / "device"
    said.write_text("")
    program(tmp_path, "sudo", SUDO)
    if disk is None:
        device.mkdir()  # is there, and cannot be read, by root neither
    else:
        device.write_bytes(disk)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "BLKID": str(blkid), "SAID": str(said)}
    words = ["sh", str(SCRIPT), str(device), str(tmp_path / "runs")]
    done = subprocess.run(words, env=os.environ | own, capture_output=True, timeout=30)
    return done.returncode, [line.split()[0] for line in said.read_text().splitlines()]


def test_a_disk_of_zeros_is_formatted_and_mounted(tmp_path: Path) -> None:
    assert mount(tmp_path, blkid=2) == (0, ["mkfs.ext4", "tee", "mount", "chown"])


def test_a_disk_with_a_file_system_is_mounted_as_it_is(tmp_path: Path) -> None:
    assert mount(tmp_path, blkid=0) == (0, ["tee", "mount", "chown"])


@pytest.mark.parametrize(
    "disk",
    [
        random.Random(0).randbytes(3 * MIB),
        b"\0" * 4096 + b"x" + ZERO,  # a partition table that nobody knows
        ZERO + b"x",  # a label of a RAID lies at the end
        bytes(MIB - 1),
        b"",
        None,
    ],
    ids=["random", "first MiB", "last byte", "too small", "empty", "unreadable"],
)
def test_what_blkid_does_not_know_is_not_formatted(tmp_path: Path, disk: bytes | None) -> None:
    assert mount(tmp_path, blkid=2, disk=disk) == (1, [])


@pytest.mark.parametrize("blkid", [1, 4, 8])
def test_a_disk_that_blkid_refuses_is_left_alone(tmp_path: Path, blkid: int) -> None:
    assert mount(tmp_path, blkid=blkid) == (1, [])
