"""Metrics of features, compared with exact values, or with TF-GAN and torch-fidelity.

No metric is NaN.
"""

import time
import tracemalloc

import numpy as np
import pytest

import metrics
from conftest import parity
from runtime.errors import UserError

REFERENCE = parity('metrics')


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize('case', ['a', 'b', 'few', 'one_block'])
def test_numbers_of_tfgan(case):
    """The metrics agree with TF-GAN, up to 1e-5 for its float32 computations."""
    data, samples, logits = (
        REFERENCE[f'{case}_{key}'] for key in ('pool_data', 'pool_samples', 'logits')
    )
    fid = metrics.frechet_distance(metrics.statistics(data), metrics.statistics(samples))
    assert fid == pytest.approx(REFERENCE[f'{case}_fid'], rel=1e-6)
    assert metrics.kernel_distance(data, samples).mean == pytest.approx(
        REFERENCE[f'{case}_kid'], rel=1e-5
    )
    assert metrics.inception_score(logits)[0] == pytest.approx(REFERENCE[f'{case}_is'], rel=1e-6)


def test_statistics_equal_those_of_numpy(rng):
    features = rng.standard_normal((9000, 5)).astype(np.float32) + 100
    found = metrics.statistics(features)
    assert np.allclose(found.mean, features.astype(float).mean(0), rtol=1e-12)
    assert np.allclose(found.covariance, np.cov(features.astype(float), rowvar=False), rtol=1e-9)


def test_frechet_distance_of_known_gaussians(rng):
    """If the covariances have the same eigenvectors, it is |mu|^2 + sum (sqrt(p) - sqrt(q))^2."""
    basis = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    p, q, shift = rng.random(20), rng.random(20), rng.standard_normal(20)
    a, b = (
        metrics.Statistics(mean, basis * values @ basis.T, 100)
        for mean, values in ((np.zeros(20), p), (shift, q))
    )
    assert metrics.frechet_distance(a, b) == pytest.approx(
        np.square(shift).sum() + np.square(p**0.5 - q**0.5).sum(), rel=1e-12
    )
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def by_covariances(*sets) -> float:
    """Return the Frechet distance computed from covariances, for any number of features."""
    known = [metrics.statistics(x) for x in sets]
    return metrics.frechet_distance(*(metrics.Statistics(x.mean, x.covariance, x.n) for x in known))


def test_frechet_distance_of_fewer_features_than_dimensions_is_exact(rng):
    """The trace of the root is the nuclear norm of A B^T (A, B are centred, scaled features)."""
    mixing = rng.standard_normal((400, 400)) * np.exp(-np.arange(400) / 60)
    a, b = rng.standard_normal((50, 400)) @ mixing, rng.standard_normal((70, 400)) @ mixing + 1
    centred = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
    exact = (
        np.square(a.mean(0) - b.mean(0)).sum()
        + sum(np.square(x).sum() for x in centred)
        - 2 * np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    )
    assert metrics.frechet_distance(metrics.statistics(a), metrics.statistics(b)) == pytest.approx(
        exact, rel=1e-12
    )
    assert by_covariances(a, b) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(
    'n, m', [(40, 50), (50, 40), (63, 63), (63, 900), (900, 20), (2, 3), (64, 64), (700, 900)]
)
def test_both_formulas_of_the_frechet_distance_agree_on_digits(rng, monkeypatch, n, m):
    """The distance is the same from features and from covariances, for 8x8 digits (64 values).

    Some of the values are always 0. The larger set is read in several blocks.
    """
    from sklearn.datasets import load_digits

    monkeypatch.setattr(metrics.distances, 'BLOCK_VALUES', 64 * 100)
    digits = rng.permutation(load_digits().data / 16).astype(np.float32)
    a, b = digits[:n], digits[-m:]
    found = metrics.frechet_distance(metrics.statistics(a), metrics.statistics(b))
    assert found == pytest.approx(by_covariances(a, b), abs=1e-9)
    if min(n, m) >= 64:
        assert found == by_covariances(a, b)


def test_frechet_distance_of_few_large_images_needs_little_time_and_memory(rng):
    """For 270 and 64 images of 64x64x3 values; a single covariance would need 1.1 GiB."""
    x, y = (rng.random((n, 64 * 64 * 3), np.float32) for n in (270, 64))
    a, b = metrics.statistics(x), metrics.statistics(y)
    started = time.process_time()
    tracemalloc.start()
    found = metrics.frechet_distance(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - started < 15 and peak < 100 * 2**20
    assert found == pytest.approx(metrics.frechet_distance(b, a), rel=1e-12) and found > 0
    assert metrics.frechet_distance(b, b) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_equals_its_definition(rng):
    x, y = rng.standard_normal((12, 3)), rng.standard_normal((15, 3)) + 0.5

    def mean(p, q, same):
        values = [
            (u @ v / 3 + 1) ** 3
            for i, u in enumerate(p)
            for j, v in enumerate(q)
            if not (same and i == j)
        ]
        return np.mean(values)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert metrics.kernel_distance(x, y).mean == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_is_unbiased_and_has_a_standard_error(rng):
    found = [
        metrics.kernel_distance(*rng.standard_normal((2, 200, 4)), block_size=20)
        for _ in range(200)
    ]
    means = np.array([value.mean for value in found])
    assert abs(means.mean()) < 4 * means.std() / 200**0.5  # the expected distance is 0
    # 10 blocks x 200 repeats give a standard error of 2 %; the distribution is skewed
    assert np.mean([value.error for value in found]) == pytest.approx(means.std(), rel=0.15)


@pytest.mark.parametrize('n, m', [(4, 4), (4, 5000), (7, 3000), (50, 50), (1024, 1025), (3000, 17)])
def test_kernel_distance_is_never_nan(rng, n, m):
    found = metrics.kernel_distance(rng.standard_normal((n, 3)), rng.standard_normal((m, 3)))
    assert np.isfinite(found.mean) and np.isfinite(found.error) and found.error_blocks >= 2
    assert min(n, m) // found.blocks >= min(16, n, m) and found.error_blocks >= min(
        10, min(n, m) // 2
    )


def test_inception_score_of_certain_and_of_uniform_predictions():
    sure = 1000.0 * np.eye(10)[np.arange(50) % 10]
    assert metrics.inception_score(sure) == (pytest.approx(10), 0)
    assert metrics.inception_score(np.zeros((50, 10))) == (pytest.approx(1), 0)
    assert metrics.inception_score(1000.0 * np.eye(10)[np.arange(50) // 5], splits=10) == (
        pytest.approx(1),
        pytest.approx(0),
    )


def test_precision_and_recall_of_disjoint_nested_and_equal_sets(rng):
    wide, narrow = rng.uniform(-1, 1, (500, 2)), rng.uniform(-0.1, 0.1, (500, 2))
    assert metrics.precision_recall(wide, wide) == (1, 1)
    assert metrics.precision_recall(wide, wide + 10) == (0, 0)
    precision, recall = metrics.precision_recall(wide, narrow)
    # the narrow square covers 1/100 of the wide one
    assert precision > 0.95 and recall < 0.05


def test_precision_and_recall_of_torch_fidelity(rng):
    import torch
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    real, samples = rng.standard_normal((900, 64)), 0.9 * rng.standard_normal((1100, 64)) + 0.1
    theirs = calculate_precision_recall_full(
        torch.tensor(samples).float(), torch.tensor(real).float()
    )
    assert metrics.precision_recall(real, samples) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(
    'call',
    [
        lambda x: metrics.statistics(x[:1]),
        lambda x: metrics.kernel_distance(x[:3], x),
        lambda x: metrics.precision_recall(x, x[:3]),
        lambda x: metrics.inception_score(x, splits=11),
    ],
)
def test_too_few_samples_raise_an_error(rng, call):
    with pytest.raises(UserError, match=r'\d'):
        call(rng.standard_normal((10, 2)))
