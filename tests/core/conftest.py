"""Settings of property tests: no deadline, because CI's cores are busy with other tests."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("creditgrid", deadline=None, max_examples=60)
settings.load_profile("creditgrid")
