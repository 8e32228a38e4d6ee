"""What `test_ranks` runs in two processes: rank zero keeps the other waiting.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/waiting.py
"""

from __future__ import annotations

import time
from datetime import timedelta

from opd.cli import end
from opd.training import distributed

distributed.TIMEOUT = timedelta(seconds=2)
ranks = distributed.init_ranks()
if ranks.is_main:
    time.sleep(5)  # a server samples
assert ranks.any_rank(ranks.is_main)
distributed.destroy_ranks()
end(0)
