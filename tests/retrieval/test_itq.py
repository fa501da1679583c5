from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from dsn_ray.retrieval import fit_itq


@pytest.fixture
def features() -> np.ndarray:
    random = np.random.default_rng(3)
    mixing = random.standard_normal((12, 12)) * np.linspace(2, 0.2, 12)
    return random.standard_normal((400, 12)) @ mixing + 5


def slow_itq(features, bits, iterations, seed):
    """Section 2.2 step by step, with scipy's Procrustes and the error summed entry by entry."""
    centred = features - features.mean(axis=0)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :bits]
    projected = centred @ directions
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))[0]
    errors = []
    for _ in range(iterations):
        codes = np.sign(projected @ rotation)
        rotation, _ = orthogonal_procrustes(projected, codes)
        errors.append(((codes - projected @ rotation) ** 2).sum())
    return directions @ rotation, errors


def test_textbook_error_never_rises_and_bits_match_the_projection(features):
    itq = fit_itq(features, bits=8)
    assert len(itq.objective) == 50
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(itq.objective))
    assert itq.objective[-1] < itq.objective[0]
    codes = itq.encode(features)
    assert codes.dtype == bool
    assert codes.shape == (400, 8)
    np.testing.assert_array_equal(codes, (features - features.mean(0)) @ itq.projection > 0)


def test_textbook_follows_the_paper_step_by_step(features):
    projection, errors = slow_itq(features, bits=8, iterations=50, seed=4)
    itq = fit_itq(features, bits=8, seed=4)
    assert itq.objective == pytest.approx(errors)
    np.testing.assert_allclose(itq.projection, projection, atol=1e-8)


@pytest.mark.parametrize("variant", ["textbook", "release"])
def test_projection_is_orthonormal_and_objective_is_the_quantisation_error(features, variant):
    itq = fit_itq(features, bits=6, iterations=1, seed=2, variant=variant)
    np.testing.assert_allclose(itq.projection.T @ itq.projection, np.eye(6), atol=1e-10)

    # After one iteration the codes are the signs under the seeded first rotation.
    centred = features - features.mean(axis=0)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :6]
    projected = centred @ directions
    first = np.linalg.qr(np.random.default_rng(2).standard_normal((6, 6)))[0]
    codes = np.where(projected @ first > 0, 1.0, -1.0)
    error = ((codes - centred @ itq.projection) ** 2).sum()
    assert itq.objective == (pytest.approx(error),)
    best, _ = orthogonal_procrustes(projected, codes)
    smallest = ((codes - projected @ best) ** 2).sum()
    if variant == "textbook":
        assert error == pytest.approx(smallest)
    else:
        u, _, vh = np.linalg.svd(codes.T @ projected)
        np.testing.assert_allclose(itq.projection, directions @ (vh @ u.T), atol=1e-8)
        assert error > smallest * 1.01


def test_release_wanders_where_textbook_descends(features):
    release = fit_itq(features, bits=8, variant="release").objective
    assert any(after > before for before, after in pairwise(release))
    assert min(release) > fit_itq(features, bits=8).objective[-1]


@pytest.mark.parametrize("variant", ["textbook", "release"])
def test_seed_decides(features, variant):
    first, again, other = (fit_itq(features, 8, seed=s, variant=variant) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.projection, again.projection)
    assert first.objective == again.objective
    assert not np.array_equal(first.encode(features), other.encode(features))


def test_tensors_of_any_float_type_are_taken(features):
    tensor = torch.tensor(features, dtype=torch.bfloat16, requires_grad=True)
    itq = fit_itq(tensor, bits=4, iterations=3)
    same = fit_itq(tensor.detach().double().numpy(), bits=4, iterations=3)
    np.testing.assert_array_equal(itq.encode(tensor), same.encode(tensor))


@pytest.mark.parametrize("variant", ["textbook", "release"])
def test_constant_features_and_few_samples_stay_finite(variant):
    for features in (np.full((5, 4), 7.0), np.arange(4.0)[None], np.eye(4)[:2]):
        itq = fit_itq(features, bits=4, variant=variant)
        assert np.isfinite(itq.projection).all()
        assert np.isfinite(itq.objective).all()
        assert itq.encode(features).shape == (len(features), 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0}, "bits must be from 1 to 3"),
        ({"bits": 4}, "bits must be from 1 to 3"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"variant": "other"}, "variant must be one of textbook, release"),
        ({"features": np.ones(3)}, "features must have 2 dimensions"),
        ({"features": np.ones((0, 3))}, "features must hold at least one row"),
        ({"features": np.full((2, 3), np.nan)}, "features must be finite"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_itq(**{"features": np.eye(3), "bits": 2, **arguments})


def test_encode_wants_the_columns_it_was_fitted_on():
    with pytest.raises(ValueError, match="features must have 3 columns"):
        fit_itq(np.eye(3), bits=2).encode(np.eye(4))
