"""A picture of a run's page, or of one figure of it, for the README.

    .venv/bin/python tools/screenshot.py runs/demo docs/figure-5.png --figure figure-5

Needs a chromium (Debian: `apt-get install chromium`) and the playwright package (in `.[dev]`; no browser of its own).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from jumpahead.errors import JumpaheadError
from jumpahead.report import write_report

FIGURES = ("figure-2", "fvu", "figure-5", "frequencies")
RUN_FIGURES = ("efficiency",)
"""Figures outside the panels."""
MARGIN = 16  # CSS pixels around a figure
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")


def browser_path() -> str | None:
    """Return the path of the first chromium on this machine; None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for path in map(shutil.which, names) if path), None)


def take(
    page_file: Path, picture: Path, *, figure: str | None, panel: int, width: int, scale: float, dark: bool
) -> None:
    """Write the PNG: the whole page, or the element (of `panel`, from 1) whose data-figure is `figure`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=list(FLAGS))
        page = browser.new_page(
            viewport={"width": width, "height": 900},
            device_scale_factor=scale,
            color_scheme="dark" if dark else "light",
        )
        page.goto(page_file.resolve().as_uri())
        page.wait_for_selector("html[data-drawn]", timeout=60_000)
        if figure is None:
            page.screenshot(path=picture, full_page=True)
        else:
            where = "" if figure in RUN_FIGURES else f"#panel-{panel} "
            element = page.locator(f"{where}[data-figure='{figure}']")
            if element.count() == 0:
                sys.exit(f"{page_file} has no {figure}{where and f' in panel {panel}'}: see the page.")
            element.scroll_into_view_if_needed()
            element.locator(".main-svg").first.wait_for()
            box = element.bounding_box()
            assert box is not None  # it is there and shown
            x, y = box["x"] - MARGIN, box["y"] + page.evaluate("scrollY") - MARGIN
            w, h = box["width"] + 2 * MARGIN, box["height"] + MARGIN  # what follows the figure stays out
            page.screenshot(path=picture, full_page=True, clip={"x": x, "y": y, "width": w, "height": h})
        browser.close()


def main() -> None:
    """Parse the command line and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder; its report.html is written again")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--figure", choices=(*FIGURES, *RUN_FIGURES), help="one figure instead of the whole page")
    parser.add_argument("--panel", type=int, default=1, help="which site and width, from 1 (default %(default)s)")
    parser.add_argument("--width", type=int, default=1200, help="of the window, CSS pixels (default %(default)s)")
    parser.add_argument("--scale", type=float, default=2.0, help="PNG pixels per CSS pixel (default %(default)s)")
    parser.add_argument("--dark", action="store_true", help="in the dark scheme")
    given = parser.parse_args()
    if browser_path() is None:
        sys.exit("No chromium was found: install one (Debian: apt-get install chromium).")
    try:
        page_file = write_report(given.run)
    except JumpaheadError as error:
        sys.exit(str(error))
    given.picture.parent.mkdir(parents=True, exist_ok=True)
    options = {name: getattr(given, name) for name in ("figure", "panel", "width", "scale", "dark")}
    take(page_file, given.picture, **options)
    print(given.picture)


if __name__ == "__main__":
    main()
