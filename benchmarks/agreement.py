"""Results that must agree on all devices and in all precisions; used by gpu.py."""

import contextlib

import torch
from timing import ncsnpp

import likelihood
import losses
import sampling
import sde_lib
from models.score import Score
from models.utils import create_model


def small_config(device: str, precision: str = 'float32'):
    """Config of a VP NCSN++ with every kind of layer, small enough for float64 on a CPU."""
    config = ncsnpp(device, precision=precision, sde='vpsde', reduce_mean=True)
    config.data.update(image_size=16, centered=True)
    config.model.update(
        nf=32,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(8,),
        dropout=0.0,
        init_scale=1.0,
        embedding_type='positional',
        scale_by_sigma=False,
    )
    return config


def quantities(
    device: str, precision: str, dtype=torch.float32, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Return the outputs, loss, samples and likelihoods of a small network, by name.

    Weights and random numbers do not depend on the device or the precision.
    """
    config = small_config(device, precision)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = create_model(small_config('cpu')).module
        x, noise, latent = (torch.randn(2, 3, 16, 16).to(device, dtype) for _ in range(3))
        t = torch.rand(2).to(device, dtype)
        probe = torch.randn(2, 3, 16, 16).sign()
    state = {key: value.to(device, dtype) for key, value in model.state_dict().items()}
    model = create_model(config).to(dtype).eval()
    model.module.load_state_dict(state)
    sde, found = sde_lib.get_sde(config), {}
    with torch.no_grad():
        found['network'] = model(x, sde.network_label(t))
    loss_fn = losses.get_loss_fn(sde, True, config.training.reduce_mean, True)
    found['loss'] = loss_fn(model, x, drawn=(t, noise))
    found['loss'].backward()
    found['gradient'] = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    model.eval().requires_grad_(False)
    score, tolerances = Score(model, sde), dict(rtol=1e-3, atol=1e-3)
    for name in ('ddim', 'heun', 'dpmpp_2m', 'unipc'):
        found[name] = sampling.sample(
            score, x.shape, sampling.Options(method=name, steps=9, eps=1e-3), z=latent
        )[0]
    options = sampling.Options(method='ode', noise_removal=False, eps=1e-3, **tolerances)
    found['ode sampler, dopri5'] = sampling.sample(score, x.shape, options, z=latent)[0]
    likelihood.PROBES['fixed'] = lambda data: probe.to(data)
    options = likelihood.Options(hutchinson_type='fixed', method='dopri5', **tolerances)
    found['log-likelihood, dopri5'] = likelihood.log_likelihood(
        score, x, lambda x: (x + 1) / 2, options=options
    ).nats
    return {name: value.detach().double().cpu() for name, value in found.items()}


def gaussian_samples(device: str, steps: int, seed: int = 0) -> torch.Tensor:
    """Draw VE predictor-corrector samples with the exact score of pixels from N(0.3, 0.5^2)."""
    sde = sde_lib.VESDE(0.01, 50, N=steps)
    predictor = sampling.get_predictor('reverse_diffusion')
    corrector = sampling.get_corrector('langevin')
    sampler = sampling.get_pc_sampler(
        sde,
        (64, 3, 8, 8),
        predictor,
        corrector,
        lambda x: x,
        0.16,
        continuous=True,
        eps=1e-5,
        device=device,
    )

    def network(x, sigma):
        return -(x - 0.3) / (0.25 + sigma[:, None, None, None] ** 2)

    torch.manual_seed(seed)
    return sampler(network)[0].double().cpu()


@contextlib.contextmanager
def tensor_cores(tf32: bool):
    """Choose whether float32 convolutions and matrix products round their factors to TF32."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept
