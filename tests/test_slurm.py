"""deploy/slurm.sh, run with programs in place of SLURM, Ray and bkray that write down."""

import os
import signal
import subprocess
import time
from pathlib import Path

from tests.servers import wait_until
from tests.shell import program

SCRIPT = Path(__file__).parents[1] / "deploy/slurm.sh"

SRUN = 'shift 2; echo "srun $*" >> "$SAID"; shift; exec "$@"'
RAY = """
echo "ray $*" >> "$SAID"
if [ "$1" = start ]; then
    echo "token $(stat -c %a "$RAY_AUTH_TOKEN_PATH") $RAY_AUTH_MODE" >> "$SAID"
    exec sleep 60
fi
"""
BKRAY = """
[ "$2" = verify ] && sleep 0.5  # until the nodes have spoken
echo "bkray $*" >> "$SAID"
if [ "$1" = sweep ] && [ -n "$SLOW" ]; then
    trap 'echo "asked to end" >> "$SAID"; exit 130' TERM
    for _ in {1..300}; do sleep 0.1; done
fi
"""


def start(tmp_path: Path, *words: str, slow: str = "") -> "subprocess.Popen[bytes]":
    programs = tmp_path / "env/bin"
    programs.mkdir(parents=True, exist_ok=True)
    program(programs, "scontrol", "printf 'one\\ntwo\\n'")
    program(programs, "srun", SRUN)
    program(programs, "ray", RAY)
    program(programs, "bkray", BKRAY)
    own = {
        "HOME": str(tmp_path),
        "SAID": str(tmp_path / "said"),
        "SLOW": slow,
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "[one-two]",
        "SLURM_CPUS_PER_TASK": "3",
        "SLURM_GPUS_ON_NODE": "1",
    }
    return subprocess.Popen(["bash", str(SCRIPT), *words], env=os.environ | own)


def said(tmp_path: Path) -> list[str]:
    path = tmp_path / "said"
    return path.read_text().splitlines() if path.exists() else []


def test_a_node_of_ray_for_each_machine_and_then_the_sweep(tmp_path: Path) -> None:
    assert start(tmp_path, "act", "--preset", "small").wait(30) == 0
    lines = said(tmp_path)
    starts = [line for line in lines if line.startswith("ray start")]
    slots = '--num-cpus=3 --num-gpus=1 --resources={"slot": 3}'
    assert starts == [
        f"ray start --block {slots} --head --port=20007 --dashboard-host=127.0.0.1",
        f"ray start --block {slots} --address=one:20007",
    ]
    assert lines.count("token 600 token") == 2
    assert lines[-2:] == [
        "bkray cluster verify --address one:20007 --nodes 2 --wait 300",
        f"bkray sweep act --preset small --address one:20007 --out {tmp_path}/runs/slurm-7",
    ]
    assert not (tmp_path / ".ray/slurm-7").exists()


def test_a_job_that_is_started_anew_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "runs/slurm-7"
    out.mkdir(parents=True)
    assert start(tmp_path, "act").wait(30) == 0
    assert said(tmp_path)[-1] == f"bkray resume {out} --address one:20007"


def test_a_warning_of_slurm_ends_the_sweep_first_and_nothing_stays(tmp_path: Path) -> None:
    job = start(tmp_path, "act", slow="yes")
    wait_until(lambda: any("bkray sweep" in line for line in said(tmp_path)))
    time.sleep(0.3)  # for the sweep to set its trap
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 143
    assert said(tmp_path)[-1] == "asked to end"
    assert not (tmp_path / ".ray/slurm-7").exists()
