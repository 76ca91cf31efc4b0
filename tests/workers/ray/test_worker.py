"""What prepares a worker process."""

from __future__ import annotations

import gc
import sys

from creditgrid.workers.ray import worker


def test_collections_of_a_worker_do_not_visit_what_it_has_loaded() -> None:
    """torch alone leaves about 200,000 objects, and each full collection visited them."""
    before = gc.get_freeze_count()
    try:
        worker.load.__wrapped__()
        assert "creditgrid.workers.execute" in sys.modules
        assert gc.get_freeze_count() - before > 50_000
        assert len(gc.get_objects()) < 50_000
    finally:
        gc.unfreeze()
