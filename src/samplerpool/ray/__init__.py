"""Ray: a pool's workers on the machines of a cluster, and a sampler for Ray Data.

Importing this imports neither Ray nor torch; using it does.
"""

from samplerpool.ray.numbering import ROW_NUMBER, with_row_numbers
from samplerpool.ray.sampler import Sampler

__all__ = ["ROW_NUMBER", "Sampler", "with_row_numbers"]
