"""How long a report takes to write, and its page to show: sweeps of 16 and of 200 made-up trials.

    python -m benchmarks.report

Writing is timed in a process of its own, imports apart, also in CPU time, which tells a slow
report from a busy machine; the page is opened from its file in
headless Chromium, five times, each in a new context. Bars: 3 s and 10 s to write, 2 s to the first
contentful paint.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "report"))

from made_sweep import write_act_sweep  # type: ignore[import-not-found]

N_OPENED = 5
BARS = {16: 3.0, 200: 10.0}
"""Seconds to write a report, by trials."""

WRITES = """
import sys, time
from pathlib import Path
from bkray.report.render import write_report
start, cpu_start = time.perf_counter(), time.process_time()
write_report(Path(sys.argv[1]))
print(time.perf_counter() - start, time.process_time() - cpu_start)
"""


def main() -> None:
    """Print one line per figure."""
    with tempfile.TemporaryDirectory() as folder:
        for n_trials, bar in BARS.items():
            sweep = write_act_sweep(Path(folder) / str(n_trials), n_trials, n_steps=400)
            print(f"{n_trials} trials")
            seconds, cpu_seconds = written_in(sweep)
            print(f"  written in {seconds:.1f} s (bar {bar:.0f}), CPU time {cpu_seconds:.1f} s")
            page = sweep / "report.html"
            print(f"  page {page.stat().st_size / 2**20:.2f} MiB")
            paint, drawn = shown_in(page)
            print(f"  first contentful paint {paint:.2f} s (bar 2), all figures {drawn:.2f} s")


def written_in(sweep: Path) -> tuple[float, float]:
    """Return the seconds that ``write_report`` takes in a new process, by the clock and of CPU."""
    command = [sys.executable, "-c", WRITES, str(sweep)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, cpu_seconds = map(float, said.split())
    return seconds, cpu_seconds


def shown_in(page: Path) -> tuple[float, float]:
    """Return the median seconds to the first contentful paint and to the last figure."""
    from playwright.sync_api import sync_playwright

    paints, ends = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for _ in range(N_OPENED):
            tab = browser.new_context().new_page()
            tab.goto(page.as_uri())
            tab.wait_for_function(
                "() => [...document.querySelectorAll('.plot')].every((p) => p.dataset.drawn)"
            )
            ends.append(tab.evaluate("performance.now()"))
            paints.append(
                tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
            )
            tab.context.close()
        browser.close()
    return statistics.median(paints) / 1000, statistics.median(ends) / 1000


if __name__ == "__main__":
    main()
