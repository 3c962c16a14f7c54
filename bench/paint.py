"""Benchmark of the first paint of a page opened from disk: report.html, comparison.html, or a view of an atlas.

    python bench/paint.py runs/photos/atlas/index.html '#/' '#/layer/conv1' --rounds 5
    python bench/paint.py comparison.html

A newly started browser opens the page; the time is from the request to the first content, in milliseconds. The target
is one second. Needs playwright and chromium.
"""

import argparse
import shutil
import statistics
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PAINTED = """new Promise(done => new PerformanceObserver(list => list.getEntriesByName('first-contentful-paint')
    .forEach(entry => done(entry.startTime))).observe({type: 'paint', buffered: true}))"""


def first_paints(page: Path, address: str, rounds: int) -> list[float]:
    """Return the milliseconds of each opening, each in its own browser."""
    chromium = shutil.which("chromium") or sys.exit("needs chromium")
    times = []
    with sync_playwright() as driver:
        for _ in range(rounds):
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            tab = browser.new_page(viewport={"width": 1200, "height": 800})
            tab.goto(page.resolve().as_uri() + address)
            times.append(float(tab.evaluate(PAINTED)))
            browser.close()
    return times


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="an HTML file")
    parser.add_argument("addresses", nargs="*", default=[""], help="views of the page, such as '#/layer/conv1'")
    parser.add_argument("--rounds", type=int, default=5, help="openings of each view (default: 5)")
    options = parser.parse_args()
    for address in options.addresses:
        times = first_paints(options.page, address, options.rounds)
        print(f"{options.page.name}{address}: {statistics.median(times):.0f} ms, {min(times):.0f} to {max(times):.0f}")


if __name__ == "__main__":
    main()
