"""What a search gives: metrics and binary codes.

Pure functions from features and labels to numbers, without Ray and without global state.
`evaluate_features` rates queries against a gallery under the protocol that published numbers use
and the standard one, `average_precision` rates a single ranking, and `fit_itq` turns real-valued
features into binary codes.
"""

from dsn_ray.retrieval.itq import Itq, fit_itq
from dsn_ray.retrieval.metrics import average_precision, evaluate_features

__all__ = ["Itq", "average_precision", "evaluate_features", "fit_itq"]
