"""A process that is told to leave lets its trial end, and costs it none of its tries."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from bkray.cluster.preemption import PREEMPTED
from bkray.cluster.retries import tries_again
from bkray.config import TrainConfig
from bkray.events import TrialEnded
from bkray.train import attempts

PROGRAM = """
import os, signal, time
from bkray.cluster import preemption
from bkray.cluster.preemption import NOTICE, preempted
asked = []
preemption._POLL_SECONDS = 0.01
NOTICE.listen(lambda: bool(asked))
assert preempted() is None
if {drained}:
    asked.append(1)
    time.sleep(0.5)
else:
    os.kill(os.getpid(), signal.SIGTERM)
print(*preempted())
"""


def test_sigterm_and_a_drained_node_are_notices() -> None:
    before = signal.getsignal(signal.SIGTERM)
    for drained in (False, True):
        said = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(drained=drained)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert said.returncode == 0, said.stderr
        assert said.stdout.strip() == f"interrupted {PREEMPTED}"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_notice_costs_no_try(tmp_path: Path) -> None:
    attempts.begin(tmp_path)
    left = TrialEnded(step=32, outcome="interrupted", reason=PREEMPTED, summary={})
    for _ in range(5):
        assert tries_again(tmp_path, left, TrainConfig()) == "from its checkpoint"
    assert attempts.last(tmp_path).failures == ()
    stopped = TrialEnded(step=32, outcome="interrupted", reason="ctrl-c", summary={})
    assert not tries_again(tmp_path, stopped, TrainConfig())
