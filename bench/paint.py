"""When a page of svertka's is first painted, opened from the disk: report.html, comparison.html, or an atlas at a view.

    python bench/paint.py runs/photos/atlas/index.html '#/' '#/layer/conv1' --rounds 5
    python bench/paint.py comparison.html

A browser that was just started opens it, milliseconds from asking to the first content; target: a second. Needs
playwright and chromium.
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
    """Milliseconds, each in a browser of its own."""
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
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="an HTML file")
    parser.add_argument("addresses", nargs="*", default=[""], help="views in it, such as '#/layer/conv1'")
    parser.add_argument("--rounds", type=int, default=5, help="of each (default 5)")
    options = parser.parse_args()
    for address in options.addresses:
        times = first_paints(options.page, address, options.rounds)
        print(f"{options.page.name}{address}: {statistics.median(times):.0f} ms, {min(times):.0f} to {max(times):.0f}")


if __name__ == "__main__":
    main()
