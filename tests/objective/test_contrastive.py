import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsn_ray.objective import cross_modal_contrastive_loss


def slow_contrastive(vectors, labels, temperature):
    unit = [v / v.norm() for v in vectors]
    anchors = []
    for i, anchor in enumerate(unit):
        others = [j for j in range(len(unit)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        if not positives:
            continue
        denominator = sum(math.exp(float(anchor @ unit[j]) / temperature) for j in others)
        logs = [
            math.log(math.exp(float(anchor @ unit[j]) / temperature) / denominator)
            for j in positives
        ]
        anchors.append(-sum(logs) / len(positives))
    return sum(anchors) / len(anchors) if anchors else 0.0


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 24), st.integers(1, 6), st.sampled_from([0.07, 0.2]))
def test_equals_the_slow_loop(seed, n, classes, temperature):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=generator)
    value = cross_modal_contrastive_loss(vectors, labels, temperature)
    assert float(value) == pytest.approx(slow_contrastive(vectors, labels, temperature), abs=1e-9)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_equals_the_slow_loop_at_the_papers_size(temperature):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(192, 128, generator=generator, dtype=torch.float64)
    labels = torch.randint(40, (192,), generator=generator)
    value = cross_modal_contrastive_loss(vectors, labels, temperature)
    assert float(value) == pytest.approx(slow_contrastive(vectors, labels, temperature), abs=1e-9)


def test_the_sum_counts_every_anchor():
    vectors = torch.randn(7, 4, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 3])
    mean = cross_modal_contrastive_loss(vectors, labels, 0.1)
    assert torch.isclose(cross_modal_contrastive_loss(vectors, labels, 0.1, "sum"), 5 * mean)


def test_gradient_reaches_every_vector_and_pulls_positives_together():
    vectors = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    cross_modal_contrastive_loss(vectors, labels, 0.2).backward()
    assert (vectors.grad.abs().sum(dim=1) > 0).all()
    stepped = vectors.detach() - 0.01 * vectors.grad
    before = cross_modal_contrastive_loss(vectors.detach(), labels, 0.2)
    assert cross_modal_contrastive_loss(stepped, labels, 0.2) < before


def test_a_class_of_one_is_no_anchor_but_still_pushes():
    vectors = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1])
    loss = cross_modal_contrastive_loss(vectors, labels, 0.1)
    loss.backward()
    assert float(loss) == pytest.approx(slow_contrastive(vectors.detach(), labels, 0.1))
    assert vectors.grad[2].abs().sum() > 0


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_no_positive_gives_zero_and_zero_gradient(labels):
    vectors = torch.randn(len(labels), 4, requires_grad=True)
    loss = cross_modal_contrastive_loss(vectors, torch.tensor(labels), 0.07)
    loss.backward()
    assert float(loss) == 0.0
    assert torch.equal(vectors.grad, torch.zeros_like(vectors))


def test_length_of_a_vector_does_not_matter():
    vectors = torch.randn(8, 5, dtype=torch.float64)
    labels = torch.arange(8) % 3
    scaled = vectors * torch.rand(8, 1, dtype=torch.float64).add(0.1)
    expected = float(cross_modal_contrastive_loss(vectors, labels, 0.07))
    assert float(cross_modal_contrastive_loss(scaled, labels, 0.07)) == pytest.approx(expected)


def test_finite_in_bfloat16_autocast_and_with_identical_vectors():
    vectors = torch.ones(16, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_modal_contrastive_loss(vectors, torch.arange(16) % 2, 0.01)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(vectors.grad).all()


@pytest.mark.parametrize("temperature", [0, -0.1, float("nan")])
def test_a_bad_temperature_is_named(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        cross_modal_contrastive_loss(torch.ones(2, 2), torch.zeros(2), temperature)


def test_a_reduction_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="reduction must be mean or sum, not total"):
        cross_modal_contrastive_loss(torch.ones(2, 3), torch.zeros(2), 0.07, "total")


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="vectors must be"):
        cross_modal_contrastive_loss(torch.ones(2, 2), torch.zeros(3), 0.1)
