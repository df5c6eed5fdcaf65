"""Every kernel compiles for an H200, which the interpreter does not show; no GPU is needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

scan = pytest.importorskip("bkray.ops.tridiagonal_triton", reason="needs triton, of the dev extra")
states = pytest.importorskip("bkray.ops.selective_scan_triton")
SCRIPT = """
import importlib, re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

kernels = importlib.import_module(sys.argv[1])
for name, *given in map(str.split, sys.argv[2:]):
    kernel = getattr(kernels, name)
    *constants, n_warps, wide = [each for each in given if "=" not in each]
    special = dict(each.split("=") for each in given if "=" in each)
    constants = dict(zip([p.name for p in kernel.params if p.is_constexpr], map(int, constants)))
    types = {}
    for argument in kernel.arg_names:
        is_number = argument[0].isupper() or argument.startswith("n_")
        types[argument] = "i32" if is_number else "*fp64" if argument == wide else "*fp32"
    types |= dict.fromkeys(filter(None, special.pop("bf16", "").split(",")), "*bf16")
    constants |= {each: int(value) for each, value in special.items()}
    types |= dict.fromkeys(constants, "constexpr")
    places = {(kernel.arg_names.index(each),): value for each, value in constants.items()}
    source = ASTSource(fn=kernel, signature=types, constexprs=places)
    target = GPUTarget("cuda", 90, 32)
    made = triton.compile(source, target=target, options={"num_warps": int(n_warps)})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        said = subprocess.check_output([tool, "-res-usage", file.name], text=True)
    print(name, *re.findall(r"(?:STACK|LOCAL):(\\d+)", said))
"""

CHANNELS, AHEAD, BACK = states.BLOCK_CHANNELS, states.AHEAD_SITES, states.BACK_AHEAD_SITES
BLOCK, N_WARPS = scan.BLOCK_LANES, scan.BLOCK_LANES // scan.WARP
LOW = "K=1 bf16=h,x"
"""An argument of 1 is a constant to Triton; inputs may be bf16."""
LAUNCHES = {
    "tridiagonal_triton_kernels": [
        f"maps_kernel {BLOCK} {scan.AHEAD_SITES} {N_WARPS} maps",
        f"starts_kernel {BLOCK} {scan.AHEAD_CHUNKS} {N_WARPS} maps",
        f"forward_kernel {BLOCK} {scan.AHEAD_SITES} {N_WARPS} -",
        f"maps_kernel {BLOCK} {scan.AHEAD_SITES} {N_WARPS} maps {LOW}",
        f"forward_kernel {BLOCK} {scan.AHEAD_SITES} {N_WARPS} - {LOW}",
    ],
    "tridiagonal_triton_back_kernels": [
        f"back_maps_kernel {BLOCK} {scan.BACK_AHEAD_SITES} {N_WARPS} -",
        f"ends_kernel {BLOCK} {scan.AHEAD_CHUNKS} {N_WARPS} -",
        f"backward_kernel {BLOCK} {scan.BACK_AHEAD_SITES} {N_WARPS} -",
    ],
    "selective_scan_triton_kernels": [
        f"ends_kernel {CHANNELS} {AHEAD} 16 1 -",
        f"borders_kernel {CHANNELS} 16 1 -",
        f"forward_kernel {CHANNELS} {AHEAD} 16 1 -",
        f"pulls_kernel {CHANNELS} {BACK} 16 1 -",
        f"backward_kernel {CHANNELS} {BACK} 16 1 -",
    ],
}
"""Kernel, its constants, warps, which argument is float64 and what is special, as the modules
launch them."""


@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
@pytest.mark.parametrize("module", LAUNCHES)
def test_kernels_compile_for_an_h200_and_fit_its_registers(module: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT, f"bkray.ops.{module}", *LAUNCHES[module]],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    lines = [line.split() for line in said.stdout.splitlines()]
    assert len(lines) == len(LAUNCHES[module])
    for name, *outside in lines:
        assert outside == ["0", "0"], f"{name} keeps {outside} bytes outside its registers"
