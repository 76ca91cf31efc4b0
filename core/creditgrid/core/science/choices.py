"""The named choices of the protocols, for their functions and for the parameters of experiments. Imports no torch."""

from typing import Literal

TrainRule = Literal["bp", "dfa"]
UpdateRange = Literal["last1", "last2", "all"]
NormMode = Literal["raw", "norm"]
