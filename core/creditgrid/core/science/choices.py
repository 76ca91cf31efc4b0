"""The named choices of the protocols, for their functions and for the parameters of experiments. Imports no torch."""

from typing import Literal

TrainRule = Literal["bp", "dfa"]
Method = Literal["oracle_bp", "vec", "scalar_cb", "dfa", "state_bridge"]
Reduction = Literal["mean", "sum"]
Signal = Literal["e_T", "delta_L"]
UpdateRange = Literal["last1", "last2", "all"]
NormMode = Literal["raw", "norm"]
Rule = Literal["inner_product", "target_shift", "cosine"]
