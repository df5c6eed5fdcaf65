"""What is done to the C library's allocator, seen in a process of its own."""

import subprocess
import sys

import pytest

WARM_UP = 24
"""Tensors until one fits a hole: in 7 of 40 processes the sixth still took new pages."""
PAGES_OF_A_NEW_TENSOR = """
import resource, torch
from bkray.ops.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
for _ in range({warm_up}):
    torch.ones(16 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_tensor_takes_the_pages_of_the_one_before_it() -> None:
    def pages(keep: bool) -> int:
        code = PAGES_OF_A_NEW_TENSOR.format(keep=keep, warm_up=WARM_UP)
        return int(subprocess.check_output([sys.executable, "-c", code]))

    assert pages(keep=True) < 100 < pages(keep=False)
