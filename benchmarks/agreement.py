"""Results of network, loss, samplers and likelihood from the same weights and random numbers, on any device and in any precision."""
import contextlib

import torch
from timing import ncsnpp

import fast_sampling
import likelihood
import losses
import sampling
import sde_lib
from models.utils import create_model


def small_config(device: str, precision: str = 'float32'):
    """NCSN++ with every kind of layer and VP, small enough for float64 on a CPU."""
    config = ncsnpp(device, precision=precision, sde='vpsde', reduce_mean=True)
    config.data.update(image_size=16, centered=True)
    config.model.update(nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,), dropout=0.0, init_scale=1.0,
                        embedding_type='positional', scale_by_sigma=False)
    return config


def quantities(device: str, precision: str, dtype=torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    """What a small network answers and what is made with it, from the same weights and random numbers everywhere."""
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
    for name in ('ddim', 'heun', 'dpmpp_2m', 'unipc'):
        solver = fast_sampling.get_solver(name)
        found[name] = sampling.get_fast_sampler(sde, x.shape, solver, lambda x: x, steps=9)(model, latent)[0]
    ode = sampling.get_ode_sampler(sde, x.shape, lambda x: x, method='dopri5', rtol=1e-3, atol=1e-3, device=device)
    found['ode sampler, dopri5'] = ode(model, latent)[0]
    likelihood.PROBES['fixed'] = lambda data: probe.to(data)
    measure = likelihood.get_log_likelihood_fn(sde, lambda x: (x + 1) / 2, 'fixed', 1e-3, 1e-3, 'dopri5')
    found['log-likelihood, dopri5'] = measure(model, x).nats
    return {name: value.detach().double().cpu() for name, value in found.items()}


def gaussian_samples(device: str, steps: int, seed: int = 0) -> torch.Tensor:
    """Predictor-corrector samples with the exact score of pixels from N(0.3, 0.5^2), VE."""
    sde = sde_lib.VESDE(0.01, 50, N=steps)
    predictor, corrector = sampling.get_predictor('reverse_diffusion'), sampling.get_corrector('langevin')
    sampler = sampling.get_pc_sampler(sde, (64, 3, 8, 8), predictor, corrector, lambda x: x, 0.16, continuous=True,
                                      eps=1e-5, device=device)

    def network(x, sigma):
        return -(x - 0.3) / (0.25 + sigma[:, None, None, None] ** 2)
    torch.manual_seed(seed)
    return sampler(network)[0].double().cpu()


@contextlib.contextmanager
def tensor_cores(tf32: bool):
    """Let convolutions and matrix products in float32 round their factors to TF32, or not."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept
