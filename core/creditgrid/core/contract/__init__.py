"""The contract of units and experiments: what the service relies on, as checks that anyone can run on theirs.

They are the same for what ships (in the tests), for the author of a unit (``creditgrid check``), and, the quick ones,
for code that is sent with a sweep.
"""

from creditgrid.core.contract.suite import check_units as check_units
