import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsn_ray.objective import classification_loss


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 7))
def test_equals_the_slow_loop(seed, n, classes):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=generator)
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total -= row[label] - math.log(sum(math.exp(x) for x in row))
    assert float(classification_loss(logits, labels)) == pytest.approx(total / n, abs=1e-10)


def test_the_gradient_reaches_every_picture_and_lifts_its_own_class():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 1])
    classification_loss(logits, labels).backward()
    assert (logits.grad.gather(1, labels[:, None]) < 0).all()
    assert ((logits.grad > 0).sum(dim=1) == 2).all()


def test_with_one_class_there_is_nothing_to_learn():
    logits = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    loss = classification_loss(logits, torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_no_picture_gives_zero_and_bfloat16_stays_finite():
    empty = torch.zeros(0, 3, requires_grad=True)
    assert float(classification_loss(empty, torch.zeros(0, dtype=torch.long))) == 0.0
    logits = torch.tensor([[3e38, -3e38]], dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        value = classification_loss(logits / 1e3, torch.tensor([1]))
    assert torch.isfinite(value)


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_a_label_outside_the_classes_is_named(labels):
    with pytest.raises(ValueError, match="labels must lie between 0 and 2"):
        classification_loss(torch.zeros(2, 3), torch.tensor(labels))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"logits must be \[N, C\]"):
        classification_loss(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))
