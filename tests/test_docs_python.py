"""The example of docs/python.md, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    scope: dict[str, object] = {}
    exec(code, scope)
    assert scope["summary"]["steps"] == 8
    assert (tmp_path / "runs/python/report.html").is_file()
    assert "sum" in capsys.readouterr().out
