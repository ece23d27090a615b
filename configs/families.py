"""Building blocks of the configs of this package.

A config starts from a data set, adds an SDE (with its published sampler) and a network, and then
changes individual keys:

    config = cifar10()                            # data, length of training, evaluation
    ve(config, continuous=True)                   # SDE, objective, sampler
    ncsnpp(config, num_res_blocks=8)              # network
    config.training.n_iters = 950001              # the exception

Each function changes `config` in place and returns it. `configs/keys.py` explains every key, and
`configs/defaults.py` has its default. To add your own SDEs, networks, predictors, correctors,
solvers and data sets, see docs/extending.md.

References: Song et al. 2021 (arXiv 2011.13456); Ho et al. 2020 (2006.11239); Song & Ermon 2019
(1907.05600) and 2020 (2006.09011).
"""

from ml_collections import ConfigDict

from configs.defaults import base

# Data sets ----------------------------------------------------------------------------------------


def cifar10() -> ConfigDict:
    """CIFAR-10 at 32 pixels."""
    return base('CIFAR10', 32)


def digits() -> ConfigDict:
    """Scikit-learn's handwritten digits: 8 pixels, one channel; minutes on two processor cores."""
    config = base('DIGITS', 8)
    config.data.update(num_channels=1, random_flip=False, uniform_dequantization=True)
    config.training.update(
        batch_size=64,
        n_iters=3001,
        snapshot_freq=3000,
        snapshot_freq_for_preemption=500,
        log_freq=100,
        eval_freq=500,
    )
    config.optim.update(lr=2e-3, warmup=100)
    config.eval.update(
        begin_ckpt=1,
        end_ckpt=1,
        batch_size=500,
        num_samples=500,
        enable_sampling=True,
        enable_bpd=True,
        bpd_repeats=1,
        bpd_rtol=1e-3,
        bpd_atol=1e-3,
        metrics_backend='pixels',
        metrics_floor=True,
    )
    return config


def mnist(dataset: str = 'MNIST') -> ConfigDict:
    """MNIST or FashionMNIST at 28 pixels, through torchvision.

    The network for it is `mnist_sized`, with 1.75 million parameters. For your own file with the
    arrays x_train, y_train, x_test and y_test:
    `--config.data.dataset=NPZ --config.data.path=mnist.npz`.
    """
    config = base(dataset, 28)
    config.data.update(num_channels=1, random_flip=False, uniform_dequantization=True)
    config.training.update(
        batch_size=256,
        n_iters=20001,
        snapshot_freq=10000,
        snapshot_freq_for_preemption=1000,
        eval_freq=500,
    )
    config.optim.update(lr=1e-3, warmup=500)
    config.eval.update(
        begin_ckpt=1,
        end_ckpt=2,
        batch_size=250,
        num_samples=1000,
        enable_sampling=True,
        metrics_backend='pixels',
        metrics_floor=True,
        stats_samples=10000,
    )
    return config


def folder(image_size: int) -> ConfigDict:
    """A folder or zip file of your own pictures, with a schedule for thousands of them.

    `data.path` has no default.
    """
    config = base('FOLDER', image_size)
    config.data.uniform_dequantization = True
    config.training.update(
        batch_size=64,
        n_iters=100001,
        snapshot_freq=10000,
        snapshot_freq_for_preemption=1000,
        eval_freq=500,
    )
    config.optim.warmup = 1000
    config.eval.update(
        begin_ckpt=1,
        end_ckpt=10,
        batch_size=100,
        num_samples=1000,
        enable_sampling=True,
        metrics_backend='pixels',
        metrics_floor=True,
        stats_samples=5000,
    )
    return config


def celeba() -> ConfigDict:
    """CelebA, cropped and reduced to 64 pixels."""
    config = base('CELEBA', 64)
    config.model.sigma_max = 90.0
    config.eval.update(begin_ckpt=1, enable_sampling=True)
    return config


def lsun(category: str, size: int = 256) -> ConfigDict:
    """One LSUN category ('bedroom', 'church_outdoor'), cropped and reduced to `size` pixels."""
    config = _long_schedule(base('LSUN', size))
    config.data.category = category
    return config


def celebahq(size: int, path: str) -> ConfigDict:
    """CelebA-HQ at 256 or 1024 pixels, from the TFRecord file at `path`."""
    return _tfrecords('CelebAHQ', size, path)


def ffhq(size: int, path: str) -> ConfigDict:
    """FFHQ at 256 or 1024 pixels, from the TFRecord file at `path`."""
    return _tfrecords('FFHQ', size, path)


def _tfrecords(dataset: str, size: int, path: str) -> ConfigDict:
    config = _long_schedule(base(dataset, size))
    config.data.tfrecords_path = path
    if size == 1024:
        config.training.batch_size = 8
        config.eval.update(begin_ckpt=1, batch_size=1024, enable_sampling=False)
        config.sampling.snr = 0.15
    return config


def _long_schedule(config: ConfigDict) -> ConfigDict:
    """Schedule and noise range of large images: 2.4 million steps, half the batch, no dropout."""
    config.training.update(batch_size=64, n_iters=2400001, snapshot_freq_for_preemption=5000)
    config.model.update(sigma_max=378.0, dropout=0.0)
    config.sampling.snr = 0.075
    config.eval.update(begin_ckpt=50, end_ckpt=96, batch_size=512, enable_sampling=True)
    return config


# SDEs ---------------------------------------------------------------------------------------------


def ve(config: ConfigDict, continuous: bool) -> ConfigDict:
    """The VE SDE of Song et al. 2021, Eq. 9; reverse diffusion with a Langevin corrector."""
    config.data.centered = False
    config.training.update(sde='vesde', continuous=continuous, reduce_mean=False)
    config.model.update(scale_by_sigma=True, ema_rate=0.999)
    config.sampling.update(predictor='reverse_diffusion', corrector='langevin')
    return config


def vp(config: ConfigDict, continuous: bool) -> ConfigDict:
    """The VP SDE of Song et al. 2021, Eq. 11; Euler-Maruyama without a corrector.

    Discrete training comes with ancestral sampling instead.
    """
    config.data.centered = True
    config.training.update(sde='vpsde', continuous=continuous, reduce_mean=True)
    config.model.update(scale_by_sigma=False, ema_rate=0.9999)
    config.sampling.update(
        predictor='euler_maruyama' if continuous else 'ancestral_sampling', corrector='none'
    )
    return config


def subvp(config: ConfigDict) -> ConfigDict:
    """The sub-VP SDE of Song et al. 2021, Eq. 12: `vp` with another diffusion, continuous only."""
    vp(config, continuous=True)
    config.training.sde = 'subvpsde'
    return config


# Networks -----------------------------------------------------------------------------------------


def ddpm(config: ConfigDict) -> ConfigDict:
    """The U-Net of Ho et al. 2020, as they use it on CIFAR-10."""
    config.model.update(
        name='ddpm',
        ch_mult=(1, 2, 2, 2),
        num_res_blocks=2,
        attn_resolutions=(16,),
        resamp_with_conv=True,
        conditional=True,
    )
    return config


def ncsnpp(
    config: ConfigDict, embedding_type: str = 'fourier', num_res_blocks: int = 4
) -> ConfigDict:
    """NCSN++ of Song et al. 2021, Section 4.4.

    The embedding 'fourier' is for the labels of the continuous VE SDE, 'positional' for all others.
    """
    ddpm(config)
    config.model.update(
        name='ncsnpp',
        num_res_blocks=num_res_blocks,
        embedding_type=embedding_type,
        fir=True,
        fir_kernel=[1, 3, 3, 1],
        skip_rescale=True,
        resblock_type='biggan',
        progressive='none',
        progressive_input='residual',
        progressive_combine='sum',
        attention_type='ddpm',
        init_scale=0.0,
        conv_size=3,
    )
    return config


def ncsnpp_256(config: ConfigDict) -> ConfigDict:
    """NCSN++ for 256 pixels: seven resolutions, input and output skips, 2000 noise levels."""
    ncsnpp(config, num_res_blocks=2)
    config.model.update(
        ch_mult=(1, 1, 2, 2, 2, 2, 2),
        progressive='output_skip',
        progressive_input='input_skip',
        num_scales=2000,
    )
    return config


def ncsnpp_1024(config: ConfigDict) -> ConfigDict:
    """NCSN++ for 1024 pixels: eight resolutions, narrow at the top, a longer weight average."""
    ncsnpp_256(config)
    config.model.update(
        nf=16, ch_mult=(1, 2, 4, 8, 16, 32, 32, 32), num_res_blocks=1, ema_rate=0.9999
    )
    return config


def ddpmpp(config: ConfigDict, num_res_blocks: int = 4) -> ConfigDict:
    """DDPM++ of Song et al. 2021, Section 4.4: NCSN++ without FIR filter and progressive input."""
    ncsnpp(config, 'positional', num_res_blocks)
    config.model.update(fir=False, progressive_input='none')
    return config


def small(config: ConfigDict) -> ConfigDict:
    """The network of `config` for 8-pixel images: two resolutions, attention at the lower one."""
    config.model.update(
        nf=16,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(4,),
        dropout=0.0,
        ema_rate=0.999,
        num_scales=100,
    )
    return config


def mnist_sized(config: ConfigDict) -> ConfigDict:
    """The network of `config` for 28-pixel images: three resolutions, attention at 14 pixels.

    Samples take 25 network evaluations.
    """
    config.model.update(
        nf=32,
        ch_mult=(1, 2, 2),
        num_res_blocks=2,
        attn_resolutions=(14,),
        dropout=0.05,
        ema_rate=0.9995,
    )
    config.sampling.update(method='dpmpp_2m_sde', steps=24)
    return config


def wideresnet(config: ConfigDict, num_classes: int) -> ConfigDict:
    """The classifier of Song et al. 2021, Section 5 and Appendix I.1.

    It is a wide residual network 28-10, conditioned on the noise level.
    """
    config.training.update(snapshot_sampling=False, likelihood_weighting=False)
    config.model.update(
        name='wideresnet',
        num_classes=num_classes,
        nf=16,
        widen=10,
        ch_mult=(1, 2, 4),
        num_res_blocks=4,
        embedding_type='fourier' if config.training.sde == 'vesde' else 'positional',
        scale_by_sigma=False,
    )
    return config


# NCSN and NCSNv2: papers that define network, noise levels, optimizer and sampler together --------


def ncsn(config: ConfigDict) -> ConfigDict:
    """NCSN of Song & Ermon 2019: ten noise levels from 1 to 0.01.

    Samples come from annealed Langevin dynamics, with 100 steps at each noise level.
    """
    ve(config, continuous=False)
    config.model.update(
        name='ncsn',
        sigma_max=1.0,
        num_scales=10,
        ema_rate=0.0,
        scale_by_sigma=False,
        normalization='InstanceNorm++',
        nonlinearity='elu',
        interpolation='bilinear',
    )
    config.optim.update(lr=1e-3, warmup=0, grad_clip=-1.0)
    config.sampling.update(predictor='none', corrector='ald', n_steps_each=100, snr=0.316)
    return config


def ncsnv2(config: ConfigDict, name: str = 'ncsnv2_64') -> ConfigDict:
    """NCSNv2 of Song & Ermon 2020.

    The noise levels and the Langevin steps (Techniques 1, 2, 4) depend on the data: set them after
    calling this.
    """
    ncsn(config)
    config.model.update(name=name, scale_by_sigma=True, ema_rate=0.999)
    config.optim.lr = 1e-4
    return config
