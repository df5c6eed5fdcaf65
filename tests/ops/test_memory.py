"""What is done to the C library's allocator, seen in a process of its own."""

import os
import subprocess
import sys

import pytest

from bkray.ops.memory import available_bytes

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


RESIDENT_AFTER_A_HOLE = """
from pathlib import Path
from bkray.ops.memory import freed_memory_given_back, keep_freed_memory

def resident_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith("VmRSS")).split()[1]) / 2**10

def grown_by_a_hole():
    before = resident_mib()
    large, above = bytearray(64 << 20), bytearray(8 << 20)
    del large
    return resident_mib() - before

keep_freed_memory()
with freed_memory_given_back():
    given = grown_by_a_hole()
print(given, grown_by_a_hole())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_hole_is_given_back_where_that_is_asked_for_and_kept_afterwards() -> None:
    said = subprocess.check_output([sys.executable, "-c", RESIDENT_AFTER_A_HOLE])
    given, kept = (float(word) for word in said.split())
    assert given < 16 < 60 < kept


def test_what_is_available_is_some_of_what_there_is() -> None:
    all_of_it = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_bytes() <= all_of_it
