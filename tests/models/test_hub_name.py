"""Names of models: a revision behind the last @, folders as they stand."""

import pytest

from opd.models.hub_name import split_revision


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/model", ("owner/model", None)),
        ("owner/model@main", ("owner/model", "main")),
        ("owner/model@refs/pr/1", ("owner/model", "refs/pr/1")),
        ("model@0f3a", ("model", "0f3a")),
        ("runs/first/final", ("runs/first/final", None)),
    ],
)
def test_a_revision_stands_behind_the_name(name, expected):
    assert split_revision(name) == expected


def test_a_folder_may_have_an_at_sign(tmp_path):
    folder = tmp_path / "me@home"
    folder.mkdir()
    assert split_revision(str(folder)) == (str(folder), None)
