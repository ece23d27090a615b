"""The targets with exact scores for measuring solvers, and the benchmark that uses them."""

import json
import math
import subprocess
import sys

import torch

from conftest import ROOT
from oracles import GaussianMixture, SubspaceMixture


def test_subspace_mixture_is_the_mixture_fitted_to_images():
    """The mixture equals one with the same covariances in all dimensions, up to a rotation."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(30)
    images = (
        torch.rand(90, 12, generator=generator, dtype=torch.float64) * torch.arange(1, 13)
        + labels[:, None]
    )
    target = SubspaceMixture.fit(images, labels, rank=2)
    covariances = torch.stack(
        [
            torch.block_diag(inside, target.rest * torch.eye(12 - target.size, dtype=torch.float64))
            for inside in target.inside.covariances
        ]
    )
    means = torch.cat([target.inside.means, torch.zeros(3, 12 - target.size)], 1)
    full = GaussianMixture(target.inside.weights, means, covariances)
    x = torch.randn(7, 12, dtype=torch.float64)
    m, std = torch.rand(7), torch.rand(7) + 0.1
    assert target.size == 10 and torch.allclose(
        target.log_prob(x, m, std), full.log_prob(x, m, std), atol=1e-10
    )
    assert torch.allclose(target.score(x, m, std), full.score(x, m, std), atol=1e-10)
    assert torch.allclose(
        target.sample(50000).T.cov(), full.covariance, atol=0.02 * full.covariance.max()
    )
    for k in range(3):
        part = images[30 * k : 30 * k + 30]
        moments = part.T.cov(correction=0)
        assert torch.allclose(means[k].norm(), part.mean(0).norm())  # rotated, with the same length
        assert torch.allclose(
            torch.linalg.eigvalsh(covariances[k])[-2:], torch.linalg.eigvalsh(moments)[-2:]
        )
    assert math.isclose(target.constant.norm(), math.sqrt(12))


def test_subspace_mixture_in_3072_dimensions():
    labels = torch.arange(3).repeat_interleave(20)
    images = torch.rand(60, 3, 32, 32, dtype=torch.float64) + labels[:, None, None, None]
    target = SubspaceMixture.fit(images, labels, rank=8)
    x, sigma = target.sample(5), torch.tensor([0.01, 0.1, 1.0, 10.0, 50.0])
    exact = target.score(x, 1.0, sigma)
    assert x.shape == (5, 3, 32, 32) and target.size == 28
    assert (
        (target.score(x.float(), 1.0, sigma) - exact).flatten(1).norm(dim=1)
        / exact.flatten(1).norm(dim=1)
    ).max() < 1e-5


def test_quality_measures_and_draws(tmp_path):
    """A short run of benchmarks/quality.py works, and resumes from its results."""
    command = [
        sys.executable,
        'benchmarks/quality.py',
        '--targets',
        'plane,images',
        '--sdes',
        've',
        '--solvers',
        'exact,heun',
        '--most',
        '18',
        '-n',
        '100',
        '--json',
        f'{tmp_path}/a.json',
        '--plots',
        f'{tmp_path}/plots',
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / 'a.json').read_text())['rows']
    assert len({row['solver'] for row in rows}) == 5 and (tmp_path / 'plots' / 've.png').is_file()
    plane = {
        row['solver']: row['distance']
        for row in rows
        if row['target'] == 'plane' and row['nfe'] in (0, 35)
    }
    assert plane['exact'] < 0.15 and plane['heun'] < 0.15
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0 and ' s\n' not in again.stderr and again.stdout == done.stdout
