"""`python -m opd.config` writes docs/config.md anew."""

from pathlib import Path

from opd.config.reference import reference

Path("docs/config.md").write_text(reference(), encoding="utf-8")
