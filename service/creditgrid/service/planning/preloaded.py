"""What the fork server of ``naming_process`` loads once: every experiment of this installation."""

from creditgrid.core.experiments.registry import registry

registry()
