import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsn_ray.objective import semantic_distillation_loss


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([1, 7, 1000]))
def test_equals_the_slow_loop(seed, n, classes):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, n, classes, generator=generator, dtype=torch.float64)
    mask = torch.rand(n, classes, generator=generator, dtype=torch.float64)
    total = 0.0
    for s, t, a in zip(student.tolist(), teacher.tolist(), mask.tolist(), strict=True):
        bent = [math.exp(x + 0.3 * y) for x, y in zip(t, a, strict=True)]
        log_sum = math.log(sum(math.exp(x) for x in s))
        total -= sum(b / sum(bent) * (x - log_sum) for b, x in zip(bent, s, strict=True))
    value = semantic_distillation_loss(student, teacher, mask, 0.3)
    assert float(value) == pytest.approx(total / n, abs=1e-10)


def test_gradient_reaches_the_student_alone():
    student = torch.randn(3, 10, requires_grad=True)
    teacher = torch.randn(3, 10, requires_grad=True)
    semantic_distillation_loss(student, teacher, torch.ones(3, 10), 0.3).backward()
    assert (student.grad.abs().sum(dim=1) > 0).all()
    assert teacher.grad is None


def test_the_mask_bends_the_soft_label_towards_its_classes():
    student = torch.zeros(1, 4, requires_grad=True)
    mask = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    semantic_distillation_loss(student, torch.zeros(1, 4), mask, 0.3).backward()
    assert student.grad.argmin() == 2


def test_no_sample_gives_zero_and_bfloat16_stays_finite():
    empty = torch.zeros(0, 10, requires_grad=True)
    assert float(semantic_distillation_loss(empty, empty, empty, 0.3)) == 0.0
    logits = torch.full((2, 10), 200.0, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(semantic_distillation_loss(logits, -logits, logits, 0.3))


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match="must have one shape"):
        semantic_distillation_loss(torch.ones(2, 10), torch.ones(2, 9), torch.ones(2, 10), 0.3)
