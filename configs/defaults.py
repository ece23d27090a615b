"""The default of every key of a config; `configs/keys.py` explains the keys."""

import contextlib
import contextvars
from collections.abc import Iterator

import torch
from ml_collections import ConfigDict

from configs import rules

DEFAULTS = dict(
    seed=42,
    device='cpu',
    timeout_minutes=60.0,
    force_config=False,
    data=dict(
        dataset='CIFAR10',
        source='',
        image_size=32,
        num_channels=3,
        random_flip=True,
        centered=False,
        uniform_dequantization=False,
        tfds_dir='',
        category='',
        tfrecords_path='',
        path='',
        test_fraction=0.1,
        fit='crop',
        on_error='raise',
        memory_gib=4.0,
        levels=0,
        layout='NHWC',
    ),
    training=dict(
        sde='vesde',
        continuous=False,
        likelihood_weighting=False,
        reduce_mean=False,
        batch_size=128,
        accumulation=1,
        recompute=False,
        precision='float32',
        channels_last=True,
        compile=False,
        n_iters=1300001,
        snapshot_freq=50000,
        snapshot_freq_for_preemption=10000,
        keep_checkpoints=0,
        max_bad_steps=100,
        snapshot_sampling=True,
        log_freq=50,
        eval_freq=100,
    ),
    optim=dict(
        optimizer='Adam',
        lr=2e-4,
        beta1=0.9,
        eps=1e-8,
        weight_decay=0.0,
        amsgrad=False,
        warmup=5000,
        grad_clip=1.0,
    ),
    model=dict(
        name='',
        ema_rate=0.9999,
        sigma_min=0.01,
        sigma_max=50.0,
        beta_min=0.1,
        beta_max=20.0,
        num_scales=1000,
        nf=128,
        dropout=0.1,
        normalization='GroupNorm',
        groups=32,
        attn_groups=0,
        up_attention='level',
        attn_head_dim=0,
        center_input=True,
        nonlinearity='swish',
        embedding_type='fourier',
        fourier_scale=16.0,
        scale_by_sigma=False,
        num_classes=0,
        label_dropout=0.1,
    ),
    sampling=dict(
        method='pc',
        predictor='none',
        corrector='none',
        order='corrector_predictor',
        n_steps_each=1,
        snr=0.16,
        probability_flow=False,
        noise_removal=True,
        steps=0,
        skip_type='',
        rho=7.0,
        eta=0.0,
        churn=0.0,
        dpm_solver_order=2,
        thresholding=False,
        ode_method='dopri5',
        rtol=0.0,
        atol=0.0,
        prior_mean=0.0,
        seed_per_image=False,
        round=False,
        guidance=1.0,
    ),
    control=dict(
        images=8,
        results=4,
        resample=5,
        jump=1,
        consistency=2.0,
        blur=1.0,
        steps=8,
        temperatures=(0.6, 0.8, 1.0, 1.2),
        rtol=1e-5,
        atol=1e-5,
    ),
    eval=dict(
        begin_ckpt=9,
        end_ckpt=26,
        batch_size=1024,
        num_samples=50000,
        enable_loss=True,
        enable_sampling=False,
        enable_bpd=False,
        bpd_dataset='test',
        most_images=0,
        bpd_repeats=5,
        bpd_probes=1,
        bpd_method='dopri5',
        bpd_rtol=1e-5,
        bpd_atol=1e-5,
        metrics_backend='tfgan',
        inception_path='',
        extractor='inception-v3-compat',
        features='',
        stats_dir='',
        stats_split='train',
        stats_samples=50000,
        metrics_floor=False,
        is_splits=1,
        wait_minutes=0.0,
    ),
)

_untyped: contextvars.ContextVar[contextlib.ExitStack | None] = contextvars.ContextVar(
    'untyped', default=None
)


@contextlib.contextmanager
def any_type() -> Iterator[None]:
    """Let configs that `base` creates in this block accept values of any type until its end.

    ConfigDict otherwise raises TypeError at the first value of a wrong type. A config file is read
    in such a block, so that all wrong values can be reported together.
    """
    with contextlib.ExitStack() as stack:
        token = _untyped.set(stack)
        try:
            yield
        finally:
            _untyped.reset(token)


def base(dataset: str = 'CIFAR10', image_size: int = 32) -> ConfigDict:
    """Return the defaults of all keys, with the schedule of a 32-pixel data set.

    The caller then adds the settings of an SDE and of a network.
    """
    config = ConfigDict(DEFAULTS)
    config.device = 'cuda:0' if torch.cuda.is_available() else 'cpu'
    config.data.update(dataset=dataset, image_size=image_size)
    if stack := _untyped.get():
        stack.enter_context(config.ignore_type())
    return config


def complete(config: ConfigDict) -> ConfigDict:
    """Return an unlocked copy of `config` with the defaults of the optional keys that it lacks.

    Keys without a sensible default (`rules.REQUIRED`) are never added. A `torch.device`, as in
    configs of the 2021 release, becomes a string, which can be stored.
    """
    completed, defaults = config.to_dict(), base().to_dict()
    if isinstance(completed.get('device'), torch.device):
        completed['device'] = str(completed['device'])
    sections = {name: defaults.pop(name) for name in DEFAULTS if isinstance(DEFAULTS[name], dict)}
    _fill(completed, defaults, rules.REQUIRED[''])
    for name, section in sections.items():
        place = completed.setdefault(name, {})
        if isinstance(place, dict):
            _fill(place, section, rules.REQUIRED.get(name, ''))
    return ConfigDict(completed)


def _fill(place: dict, defaults: dict, required: str):
    """Add the `defaults` that are neither in `place` nor among the `required` keys."""
    for name, value in defaults.items():
        if name not in required.split():
            place.setdefault(name, value)
