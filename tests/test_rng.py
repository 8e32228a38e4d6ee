"""Random streams: one home, no two alike, none without a key."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import opd
import opd_lab
from opd import rng
from opd.rng import Stream
from opd_lab.streams import LabStream

STREAMS = [*Stream, *LabStream]


def test_no_two_purposes_share_a_stream():
    numbers = [int(s) for s in STREAMS]
    assert len(set(numbers)) == len(numbers)
    assert max(Stream) < 100 <= min(LabStream)


def test_streams_of_one_seed_and_index_draw_different_numbers():
    drawn = {
        (s, index): tuple(rng.generator(3, s, *index).random(2))
        for s, index in itertools.product(STREAMS, [(), (1,), (1, 5)])
    }
    assert len(set(drawn.values())) == len(drawn)


def test_a_generator_depends_on_its_arguments_alone():
    first = rng.generator(7, Stream.ROLLOUT, 2).random(4)
    np.random.seed(0)  # somebody else's global state
    assert np.array_equal(first, rng.generator(7, Stream.ROLLOUT, 2).random(4))
    assert rng.torch_seed(7, Stream.DROPOUT, 2) == rng.torch_seed(7, Stream.DROPOUT, 2)
    assert rng.torch_seed(7, Stream.DROPOUT, 2) != rng.torch_seed(7, Stream.SFT_DROPOUT, 2)


MADE = re.compile(
    r"SeedSequence|Philox|default_rng|np\.random\.seed|RandomState|manual_seed\((?!torch_seed)"
)


@pytest.mark.parametrize("package", [opd, opd_lab], ids=["opd", "opd_lab"])
def test_nobody_else_makes_generators(package):
    """Apart from the first weights of the lab's models, which torch's own generator draws.

    The fakes of `opd.testing`, which no run imports, are seeded by whoever tests with them.
    """
    folder = Path(package.__file__).parent
    allowed = {"rng.py"} if package is opd else {"zoo.py", "pairs/architectures.py"}
    makers = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if folder / "testing" not in path.parents and MADE.search(path.read_text("utf-8"))
    }
    assert makers == allowed
