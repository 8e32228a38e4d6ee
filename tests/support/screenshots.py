"""Screenshots of HTML reports: `PYTHONPATH=tests python -m support.screenshots OUT FILE.html ...`.

Each at 1440, 768 and 390 pixels, light and dark: the first screen, and the whole report (light).
"""

from __future__ import annotations

import sys
from pathlib import Path

from support.browser import measure, photograph

SCREENS = {1440: 900, 768: 1024, 390: 844}
MAX_HEIGHT = 12_000  # pixels


def main(out: Path, pages: list[Path]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for page in pages:
        name = page.resolve().parent.name if page.name == "report.html" else page.stem
        for width, height in SCREENS.items():
            for dark in (False, True):
                look = "dark" if dark else "light"
                png = out / f"{name}-{width}-{look}.png"
                photograph(page.resolve(), png, width, height, dark=dark)
            whole = min(MAX_HEIGHT, measure(page.resolve(), width, height, [])["page"][1])
            photograph(page.resolve(), out / f"{name}-{width}-whole.png", width, whole)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(p) for p in sys.argv[2:]])
