"""`ScoreModel`: its results, loading it from files, and agreement with the command line."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import convert
import run_lib
import sampling
from checkpoints.trained import load_averaged_model
from commands import drawing
from commands.sample import sample
from configs import stored
from conftest import load_config
from control.measurements import downsampling, named_mask
from models.score import Score
from oracles import ExactConditionalNetwork, ExactNetwork, gaussian, planar_mixture
from runtime.errors import CheckpointError, UserError
from runtime.randomness import own_randomness
from score_model import ScoreModel
from sde_lib import VESDE, VPSDE, subVPSDE

SDES = dict(ve=lambda: VESDE(0.01, 20), vp=VPSDE, subvp=subVPSDE)


def small(module='configs.vp.digits_ddpmpp_continuous'):
    config = load_config(module)
    config.model.update(nf=8, num_res_blocks=1, num_scales=25)
    config.training.update(batch_size=8, n_iters=3, snapshot_freq=2, snapshot_sampling=False)
    config.control.update(resample=2)
    return config


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Return a folder with the work directory runs/quickstart."""
    folder = tmp_path_factory.mktemp('home')
    run_lib.train(small(), folder / 'runs' / 'quickstart')
    return folder


@pytest.fixture
def workdir(runs):
    return runs / 'runs' / 'quickstart'


# The lines of the documentation -------------------------------------------------------------------


def test_a_work_directory_in_a_notebook(runs, monkeypatch):
    monkeypatch.chdir(runs)
    model = ScoreModel.load('runs/quickstart')
    images = model.sample(16)  # with the settings of its config
    assert images.shape == (16, 1, 8, 8) and images.isfinite().all() and not images.requires_grad
    images = model.sample(16, method='heun', steps=18, seed=0)  # or with other settings
    assert torch.equal(images, model.sample(16, method='heun', steps=18, seed=0))
    result = model.log_likelihood(images)
    assert (
        result.bpd.shape == result.nats.shape == result.bpd_stderr.shape == (16,)
        and result.z.shape == images.shape
    )
    filled = model.inpaint(images, mask='right')
    assert (
        torch.equal(filled[..., :4], images[..., :4])
        and (filled[..., 4:] - images[..., 4:]).abs().max() > 0.1
    )
    z = model.encode(images)
    back = model.decode(z)
    # the images of an untrained network have large values
    assert (back - images).abs().max() < 1e-3 * images.abs().max()


def test_points_in_the_plane():
    """A user's network learns a circle, and it can be sampled and has likelihoods."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
            )

        def forward(self, x, label):
            return self.layers(torch.cat([x, label[:, None] / 999], 1))

    model = ScoreModel(Network(), VPSDE(), shape=(2,))
    optimizer = torch.optim.Adam(model.network.parameters(), 3e-3)
    for _ in range(600):
        angle = 2 * torch.pi * torch.rand(256)
        optimizer.zero_grad()
        model.loss(torch.stack([angle.cos(), angle.sin()], 1)).backward()
        optimizer.step()
    radius = model.sample(1000, seed=0).norm(dim=1)
    assert abs(radius.mean() - 1) < 0.1 and radius.std() < 0.4  # the prior has 1.25 and 0.65
    on, off = (
        model.log_likelihood(torch.tensor([point]), hutchinson_type='exact').nats
        for point in ([1.0, 0.0], [0.1, 0.1])
    )
    assert on > off + 0.5


# Its results ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', SDES)
def test_an_exact_model_in_the_plane(name):
    """Score, noise, denoised estimate, samples, likelihoods and codes equal the exact ones."""
    sde, target = SDES[name](), planar_mixture()
    model, x, t = ScoreModel(ExactNetwork(sde, target), sde, shape=(2,)), target.sample(200), 0.3
    m, std = (value.item() for value in sde.mean_and_std(torch.tensor([t], dtype=torch.float64)))
    exact = target.score(m * x, m, std)
    torch.testing.assert_close(model.score(m * x, t), exact)
    torch.testing.assert_close(model.noise(m * x, t), -std * exact)
    torch.testing.assert_close(
        model.denoise(m * x, torch.full((200,), t)), (m * x + std**2 * exact) / m
    )
    torch.testing.assert_close(model.perturb(x, t, noise=x), (m + std) * x)

    drawn = model.sample(4000, seed=0).double()
    assert (drawn.mean(0) - target.mean).abs().max() < 0.1 and (
        drawn.T.cov() - target.covariance
    ).abs().max() < 0.25
    result = model.log_likelihood(x[:20], hutchinson_type='exact')
    prior = sde.prior_logp(result.z) - target.log_prob(
        result.z, *sde.mean_and_std(torch.ones(1, dtype=torch.float64))
    )
    torch.testing.assert_close(result.nats, target.log_prob(x[:20]) + prior, rtol=0, atol=0.01)
    # the solver has a tolerance of 1e-5, and codes are up to 20
    torch.testing.assert_close(model.decode(model.encode(x)), x, rtol=0, atol=3e-3)


def test_scaling_is_undone():
    """The network sees 2 x - 1; samples, likelihoods and codes belong to the pixels x."""
    sde, target = VPSDE(), gaussian([0.0] * 4, [0.04] * 4, (1, 2, 2))
    model = ScoreModel(ExactNetwork(sde, target), sde, shape=(1, 2, 2), centered=True, levels=256)
    x = model.sample(2000, seed=0)
    assert abs(x.mean() - 0.5) < 0.01 and abs(x.std() - 0.1) < 0.005
    pixels = gaussian([0.5] * 4, [0.01] * 4, (1, 2, 2))
    result, exact = model.log_likelihood(x[:5], hutchinson_type='exact'), pixels.log_prob(x[:5])
    torch.testing.assert_close(result.nats.double(), exact, rtol=0, atol=0.02)
    torch.testing.assert_close(result.bpd, 8 - result.nats / (4 * np.log(2)))
    assert torch.equal(model.unscale(model.scale(x)), (x * 2 - 1 + 1) / 2)


def test_whole_numbers_are_dequantized():
    sde, target = VPSDE(), gaussian([0.0] * 4, [0.04] * 4, (1, 2, 2))
    model = ScoreModel(ExactNetwork(sde, target), sde, shape=(1, 2, 2), centered=True, levels=17)
    k = torch.randint(17, (3, 1, 2, 2))
    torch.manual_seed(5)
    found = model.log_likelihood(k, hutchinson_type='exact')
    torch.manual_seed(5)
    assert torch.equal(
        found.bpd, model.log_likelihood((k + torch.rand(k.shape)) / 17, hutchinson_type='exact').bpd
    )
    seeded = [model.log_likelihood(k.byte(), seed=1, hutchinson_type='exact').bpd for _ in range(2)]
    assert torch.equal(*seeded) and not torch.equal(seeded[0], found.bpd)


def test_seeds_and_batches():
    sde = VPSDE()
    model = ScoreModel(ExactNetwork(sde, planar_mixture()), sde, shape=(2,))
    settings = dict(method='dpmpp_2m_sde', steps=6)
    outside = torch.get_rng_state()
    a, b, c = (model.sample(6, seed=seed, **settings) for seed in (1, 1, 2))
    assert (
        torch.equal(a, b) and not torch.equal(a, c) and torch.equal(torch.get_rng_state(), outside)
    )
    drawn, nfe = model.draw(6, seed=1, **settings)
    assert torch.equal(drawn, a) and nfe == 7 and torch.equal(torch.get_rng_state(), outside)
    assert not torch.equal(model.sample(6, **settings), model.sample(6, **settings))
    alone = [
        model.sample(6, seed=3, seed_per_image=True, batch_size=size, **settings)
        for size in (1, 4, 6)
    ]
    torch.testing.assert_close(alone[0], alone[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(alone[0], alone[2], rtol=0, atol=1e-6)
    assert model.sample(5, batch_size=2, **settings).shape == (5, 2)


def test_guidance_returns_another_model():
    sde, target = VPSDE(), planar_mixture()
    model = ScoreModel(ExactConditionalNetwork(sde, target), sde, shape=(2,))
    model.network.num_classes = 3
    classes = torch.arange(3).repeat_interleave(500)
    x = model.sample(1500, seed=0, classes=classes)
    assert torch.equal(x, model.guided(classes, 1.0).sample(1500, seed=0)) and not model.guides
    for k, part in enumerate(x.split(500)):
        assert (part.double().mean(0) - target.component(k).mean).abs().max() < 0.15
    mixed = model.sample(3000, seed=0).double()  # the classes are drawn uniformly
    means = torch.stack([target.component(k).mean for k in range(3)])
    assert (mixed.mean(0) - means.mean(0)).abs().max() < 0.1
    with pytest.raises(UserError, match='^classes must be between 0 and 2, got '):
        model.guided([0, 3])
    with pytest.raises(UserError, match='^the network is not class-conditional: pass a classifier'):
        ScoreModel(ExactNetwork(sde, target), sde, shape=(2,)).guided([0])


def test_measurements():
    """Restored samples match the measured 2x2 means; inpainted samples keep the known pixels."""
    sde, target = VPSDE(), gaussian([0.0] * 16, [0.04] * 16, (1, 4, 4))
    model, x = (
        ScoreModel(ExactNetwork(sde, target), sde, shape=(1, 4, 4), centered=True),
        torch.rand(3, 1, 4, 4),
    )
    measurement = downsampling(4, 4, 2)
    drawn = model.restore(measurement, measurement(x), seed=0, resample=1, consistency=0.0)
    torch.testing.assert_close(measurement(drawn), measurement(x), rtol=0, atol=1e-5)
    mask = named_mask('top', 4, 4)
    for settings in (
        dict(),
        dict(method='adaptive'),
        dict(method='dpmpp_2m', steps=8, resample=3, jump=2, consistency=1.0),
    ):
        filled = model.inpaint(x, mask, seed=0, **settings)
        assert (
            torch.equal(torch.where(mask.bool(), filled, 0), torch.where(mask.bool(), x, 0))
            and filled.isfinite().all()
        )
    with pytest.raises(UserError, match="^method='ode' does not support inpainting"):
        model.inpaint(x, 'left', method='ode')


@pytest.mark.parametrize(
    'settings, sentence',
    [
        (dict(stepz=3), "^setting must be one of atol, churn, .*got 'stepz'$"),
        (dict(method='hein'), "^method must be one of pc, ode, .*got 'hein'"),
        (dict(skip_type='x'), "^skip_type must be one of time_uniform, .*got 'x'"),
        (dict(method='pc'), "^predictor='none' and corrector='none' would"),
    ],
)
def test_invalid_settings_are_named(settings, sentence):
    model = ScoreModel(ExactNetwork(VPSDE(), planar_mixture()), VPSDE(), shape=(2,))
    with pytest.raises(UserError, match=sentence):
        model.sample(2, **settings)


def test_a_shape_is_needed_to_sample():
    with pytest.raises(UserError, match='pass shape= to ScoreModel'):
        ScoreModel(ExactNetwork(VPSDE(), planar_mixture()), VPSDE()).sample(2)


def test_representation_of_a_model():
    network = nn.Linear(2, 2)
    assert repr(ScoreModel(network, VPSDE(), shape=(2,))) == (
        'ScoreModel(VPSDE(beta_min=0.1, beta_max=20, N=1000), shape=(2,), continuous=True, 6 '
        'parameters)'
    )


# Files --------------------------------------------------------------------------------------------


def weights(model):
    return list(model.network.state_dict().values())


def same(a, b):
    return all(map(torch.equal, weights(a), weights(b))) and not [
        *stored.differences(a.config, b.config)
    ]


def test_a_model_is_loaded_from_every_location(workdir, tmp_path, monkeypatch):
    model = ScoreModel.load(workdir)
    averaged = load_averaged_model(small(), workdir / 'checkpoints' / 'checkpoint_1.pth')
    assert all(map(torch.equal, weights(model), averaged.state_dict().values()))
    model.save(tmp_path / 'saved')
    assert sorted(path.name for path in (tmp_path / 'saved').iterdir()) == [
        'config.json',
        'model.safetensors',
    ]
    convert.convert(
        workdir / 'checkpoints' / 'checkpoint_1.pth', tmp_path / 'other.safetensors', small()
    )
    shutil.copy(workdir / 'checkpoints' / 'checkpoint_1.pth', tmp_path / 'alone.pth')
    for place in (
        workdir / 'checkpoints' / 'checkpoint_1.pth',
        tmp_path / 'alone.pth',
        tmp_path / 'saved',
        str(tmp_path / 'saved'),
        tmp_path / 'saved' / 'model.safetensors',
        tmp_path / 'other.safetensors',
    ):
        assert same(ScoreModel.load(place), model)
    pytest.importorskip('huggingface_hub')
    repository = []
    monkeypatch.setattr(
        'huggingface_hub.snapshot_download',
        lambda name, **_: repository.append(name) or str(tmp_path / 'saved'),
    )
    assert same(ScoreModel.load('somebody/digits'), model) and repository == ['somebody/digits']


def test_folders_of_diffusers(tmp_path):
    config = small()
    config.model.update(
        name='ddpm', groups=8, resamp_with_conv=True, nf=16, ch_mult=(1, 2), num_scales=1000
    )
    config.training.continuous = False
    config.sampling.predictor = 'ancestral_sampling'
    config.training.n_iters = 1
    run_lib.train(config, tmp_path / 'run')
    convert.convert(
        tmp_path / 'run' / 'checkpoints' / 'checkpoint_1.pth', tmp_path / 'pipeline', config
    )
    (tmp_path / 'pipeline' / 'score_sde_config.json').unlink()  # as in folders of other libraries
    model = ScoreModel.load(tmp_path / 'pipeline', device='cpu')
    assert (
        isinstance(model.sde, VPSDE)
        and not model.continuous
        and model.sample(2, method='ddim', steps=4).shape == (2, 1, 8, 8)
    )


def test_models_of_the_library_have_names():
    model = ScoreModel.load('mnist-vp', device='cpu')
    assert model.sample(2, seed=0, steps=4).shape == (2, 1, 28, 28)


@pytest.mark.parametrize(
    'name', ['nothing', 'runs/x/checkpoint_1.pth', './a/b', 'some/thing.safetensors']
)
def test_a_model_that_does_not_exist_raises_an_error(name):
    with pytest.raises(
        CheckpointError, match=f"^no file, folder or pretrained model is called '{name}' .*mnist-vp"
    ):
        ScoreModel.load(name)


def test_an_unreachable_hub(monkeypatch):
    pytest.importorskip('huggingface_hub')
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fails(*_, **__):
        raise LocalEntryNotFoundError('no connection\nand more')

    monkeypatch.setattr('huggingface_hub.snapshot_download', fails)
    with pytest.raises(CheckpointError, match='the Hugging Face hub reports: no connection$'):
        ScoreModel.load('somebody/digits')


def test_a_missing_config_and_another_one(workdir, tmp_path):
    state = torch.load(workdir / 'checkpoints' / 'checkpoint_1.pth', weights_only=False)
    del state['config'], state['kind']
    torch.save(state, tmp_path / 'old.pth')
    with pytest.raises(
        UserError, match='old.pth contains no config: pass config=, the config it was trained with$'
    ):
        ScoreModel.load(tmp_path / 'old.pth')
    assert same(ScoreModel.load(tmp_path / 'old.pth', small()), ScoreModel.load(workdir))
    other = small()
    other.model.beta_max = 8.0
    with pytest.raises(UserError, match=r'^config\.model\.beta_max=8\.0 differs from 20\.0'):
        ScoreModel.load(workdir, other)
    with pytest.raises(UserError, match='only a model with a config can be saved'):
        ScoreModel(nn.Linear(2, 2), VPSDE()).save(tmp_path / 'x')


def test_the_command_line_draws_with_the_same_model(workdir, tmp_path):
    """`--mode sample` draws the same images as the model from the same random state."""
    config = small()
    config.eval.batch_size = 4
    sample(config, workdir, num_samples=4, output=str(tmp_path))
    model = ScoreModel.load(workdir, config)
    with own_randomness(config.seed, 'sample', 0):
        images = model.sample(4)
    assert np.array_equal(
        np.load(tmp_path / 'samples.npz')['samples'], drawing.to_images(images, config)
    )
    assert json.loads((workdir / 'config.json').read_text())['seed'] == config.seed


def test_scores_are_counted_and_differentiable():
    sde = VPSDE()
    score = Score(ExactNetwork(sde, planar_mixture()), sde)
    assert (
        sampling.sample(score, (3, 2), sampling.Options(method='heun', steps=5))[1]
        == score.network.calls
        == 9
    )
    x = torch.randn(3, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(score.denoise(x, 0.5).sum(), x)
    assert gradient.shape == x.shape and gradient.abs().min() > 0
