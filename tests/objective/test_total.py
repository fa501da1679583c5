import torch

from dsn_ray.objective import LossTerms, dsn_loss


def test_weights_are_those_of_the_paper():
    terms = LossTerms(*(torch.tensor(float(x)) for x in (2, 3, 5, 7)))
    assert float(dsn_loss(terms, 0.1, 1.0, 1.0)) == torch.tensor(0.2 + 3 + 12)
    assert float(dsn_loss(terms, 0.0, 0.0, 2.0)) == 24
