"""The science and the plan: what is computed, and under which names. Imports neither ray nor fastapi."""
