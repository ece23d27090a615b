"""Training states of small networks, and comparisons of their weights and outputs."""

import torch

import run_lib
from conftest import load_config

SMALL = dict(nf=8, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(8,), dropout=0.0)
VE = 'configs.ve.cifar10_ncsnpp_continuous'
OFFICIAL = ('official_ve_checkpoint.pth', 'official_ve_checkpoint_outputs')
JAX = ('jax_ve_checkpoint_12', 'jax_ve_checkpoint_12_outputs')


def small_ve(**model):
    return load_config(VE, dict(image_size=16), **SMALL | model)


def randomized(config, scale=0.1):
    """Return a training state whose weights, EMA weights and Adam moments are all random."""
    torch.manual_seed(1)
    state = run_lib.create_state(config)
    for parameter in state['model'].parameters():
        parameter.data += scale * torch.randn_like(parameter)
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    state['optimizer'].step()
    for average in state['ema'].shadow_params:
        average += scale * torch.randn_like(average)
    return state | dict(step=11)


def weights(state, averaged: bool) -> dict:
    network = state['model'].module
    with state['ema'].applied_to(network.parameters()) if averaged else torch.no_grad():
        return {name: value.clone() for name, value in network.state_dict().items()}


def outputs(model, x, labels):
    with torch.no_grad():
        return model.eval()(x, labels)


def same(a: dict, b: dict):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
