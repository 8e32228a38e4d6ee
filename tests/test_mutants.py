"""The tests notice every seeded mutant of the mathematics; see mutants.py."""

import pytest

import mutants


def test_mutants_fit_the_source(tmp_path):
    source = mutants.copy_source(tmp_path)
    assert mutants.imported_from(source) == source / "opd" / "__init__.py"
    assert len({m.name for m in mutants.MUTANTS}) == len(mutants.MUTANTS) >= 20
    for mutant in mutants.MUTANTS:
        path = source / "opd" / mutant.file
        before = path.read_text(encoding="utf-8")
        mutants.apply(mutant, source)
        assert path.read_text(encoding="utf-8") != before
        path.write_text(before, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_without_a_mutant_the_same_tests_pass(tmp_path):
    source = mutants.copy_source(tmp_path)
    files = sorted({name for m in mutants.MUTANTS for name in m.tests})
    done = mutants.run_tests(source, tuple(files))
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [pytest.param(m, id=m.name) for m in mutants.MUTANTS])
def test_mutant_is_caught(mutant):
    assert mutants.verdict(mutant) == "caught"
