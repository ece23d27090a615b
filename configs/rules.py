"""Rules for each key of a config on its own: whether it is required, and which values it may have.

    faults(config) -> {
        'model.dropout': 'config.model.dropout must be a number in [0, 1), got 1.5', ...}

`configs/keys.py` explains the keys. Bounds that look arbitrary keep float32 from overflowing, or a
typing error from filling the memory before any check can report it. commands/preflight.py checks
which values go together, and which names are registered.
"""

import difflib
import os
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

import sde_lib
from configs.values import (
    CLIPPING,
    COUNT,
    DEVICE,
    FILTER,
    FLAG,
    LEVELS,
    NOISE,
    OR_DEFAULT,
    PATH,
    SECTION,
    SOURCE,
    TEXT,
    TOLERANCE,
    Rule,
    one_of,
    real,
    several,
    unused,
    whole,
)

RULES = {
    '': dict(
        seed=whole(0),
        device=DEVICE,
        timeout_minutes=real('(0, 1e6]'),
        force_config=FLAG,
    ),
    'data': dict(
        dataset=TEXT,
        image_size=whole(1, 2**14),
        num_channels=whole(1, 2**10),
        random_flip=FLAG,
        centered=FLAG,
        uniform_dequantization=FLAG,
        tfds_dir=PATH,
        category=TEXT,
        tfrecords_path=PATH,
        path=PATH,
        test_fraction=real('[0, 1)'),
        fit=one_of('crop', 'exact'),
        on_error=one_of('raise', 'skip'),
        memory_gib=real('[0, inf)'),
        levels=LEVELS,
        layout=one_of('nhwc', 'nchw'),
        source=SOURCE,
    ),
    'training': dict(
        sde=TEXT,
        continuous=FLAG,
        likelihood_weighting=FLAG,
        reduce_mean=FLAG,
        batch_size=COUNT,
        accumulation=COUNT,
        recompute=FLAG,
        precision=TEXT,
        channels_last=FLAG,
        compile=FLAG,
        n_iters=COUNT,
        snapshot_freq=COUNT,
        snapshot_freq_for_preemption=COUNT,
        keep_checkpoints=whole(0),
        max_bad_steps=whole(0),
        snapshot_sampling=FLAG,
        log_freq=COUNT,
        eval_freq=COUNT,
        loss=unused('vesde'),
        continuouse=unused(False),
    ),
    'optim': dict(
        optimizer=TEXT,
        lr=real('(0, 1]'),
        beta1=real('[0, 1)'),
        eps=real('[1e-20, 1]'),
        weight_decay=real('[0, 1]'),
        amsgrad=FLAG,
        warmup=whole(0),
        grad_clip=CLIPPING,
    ),
    'model': dict(
        name=TEXT,
        ema_rate=real('[0, 1]'),
        sigma_min=NOISE,
        sigma_max=NOISE,
        # larger values leave no trace of x_0 in x_T in float32
        beta_min=real('[1e-4, 300]'),
        beta_max=real('[1e-4, 300]'),
        num_scales=whole(1, 10**6),
        dropout=real('[0, 1)'),
        scale_by_sigma=FLAG,
        conditional=FLAG,
        num_classes=whole(0, 10**6),
        label_dropout=real('[0, 1]'),
        embedding_type=one_of('fourier', 'positional'),
        fourier_scale=real('(0, 1e6]'),
        nf=whole(1, 2**14),
        ch_mult=several(whole(1, 2**10), 1),
        widen=whole(1, 2**10),
        num_res_blocks=whole(1, 1000),
        attn_resolutions=several(COUNT),
        normalization=TEXT,
        nonlinearity=TEXT,
        up_attention=one_of('level', 'block'),
        groups=COUNT,
        attn_groups=whole(0),
        attn_head_dim=whole(0),
        center_input=FLAG,
        resamp_with_conv=FLAG,
        fir=FLAG,
        fir_kernel=FILTER,
        skip_rescale=FLAG,
        resblock_type=one_of('biggan', 'ddpm'),
        progressive=one_of('none', 'output_skip', 'residual'),
        progressive_input=one_of('none', 'input_skip', 'residual'),
        progressive_combine=one_of('sum', 'cat'),
        init_scale=real('[0, 100]'),
        interpolation=one_of('bilinear', 'bicubic', 'nearest', 'area'),
        attention_type=TEXT,
        conv_size=COUNT,
        sigma_begin=unused(90.0),
    ),
    'sampling': dict(
        method=TEXT,
        predictor=TEXT,
        corrector=TEXT,
        n_steps_each=whole(0),
        snr=real('(0, 10]'),
        probability_flow=FLAG,
        noise_removal=FLAG,
        steps=whole(0, 10**6),
        ode_method=TEXT,
        rtol=OR_DEFAULT,
        atol=OR_DEFAULT,
        seed_per_image=FLAG,
        guidance=real('[-1000, 1000]'),
        order=one_of('corrector_predictor', 'predictor_corrector'),
        skip_type=TEXT,
        rho=real('[0.1, 100]'),
        eta=real('[0, 1]'),
        churn=real('[0, inf)'),
        dpm_solver_order=whole(1, 6),
        thresholding=FLAG,
        prior_mean=real('[-1000, 1000]'),
        round=FLAG,
    ),
    'control': dict(
        images=COUNT,
        results=COUNT,
        resample=COUNT,
        jump=COUNT,
        consistency=real('[0, inf)'),
        blur=real('(0, 1000]'),
        steps=whole(2),
        temperatures=several(real('[0, 1000]'), 1),
        rtol=TOLERANCE,
        atol=TOLERANCE,
    ),
    'eval': dict(
        begin_ckpt=whole(0),
        end_ckpt=whole(0),
        batch_size=COUNT,
        num_samples=COUNT,
        enable_loss=FLAG,
        enable_sampling=FLAG,
        enable_bpd=FLAG,
        bpd_dataset=TEXT,
        most_images=whole(0),
        bpd_repeats=COUNT,
        bpd_probes=COUNT,
        bpd_method=TEXT,
        bpd_rtol=TOLERANCE,
        bpd_atol=TOLERANCE,
        metrics_backend=TEXT,
        inception_path=PATH,
        extractor=TEXT,
        features=TEXT,
        stats_dir=PATH,
        stats_split=TEXT,
        stats_samples=COUNT,
        metrics_floor=FLAG,
        is_splits=COUNT,
        wait_minutes=real('[0, inf)'),
    ),
}

# Keys that every config must have. Others have a default (`defaults.base`), or only some networks
# and SDEs need them.
REQUIRED = {
    '': 'seed device',
    'data': 'dataset image_size num_channels random_flip centered uniform_dequantization',
    'training': 'sde continuous likelihood_weighting reduce_mean batch_size n_iters snapshot_freq '
    'snapshot_freq_for_preemption '
    'snapshot_sampling log_freq eval_freq',
    'optim': 'optimizer lr beta1 eps weight_decay warmup grad_clip',
    'model': 'name ema_rate num_scales',
    'sampling': 'method predictor corrector n_steps_each snr probability_flow noise_removal',
    'eval': 'begin_ckpt end_ckpt batch_size num_samples enable_loss enable_sampling enable_bpd '
    'bpd_dataset',
}

# Keys of config.model that a network of this library needs as well. They describe a trained model,
# so a forgotten one is reported even if new configs have a default for it.
_SIGMAS = ' '.join(sde_lib.VESDE.config_keys())
_SIZES = 'nf ch_mult num_res_blocks attn_resolutions'
_UNET = f'{_SIZES} {_SIGMAS} conditional dropout nonlinearity resamp_with_conv scale_by_sigma'
_NCSNPP = (
    f'{_UNET} embedding_type fir fir_kernel init_scale progressive progressive_combine '
    'progressive_input resblock_type skip_rescale'
)
_NCSN = f'nf {_SIGMAS} interpolation nonlinearity normalization'
NEEDED = {
    'ddpm': _UNET,
    'ncsnpp': _NCSNPP,
    'ddpmpp': _NCSNPP,
    'ncsn': _NCSN,
    **dict.fromkeys(('ncsnv2', 'ncsnv2_64', 'ncsnv2_128', 'ncsnv2_256'), f'{_NCSN} scale_by_sigma'),
    'wideresnet': 'nf ch_mult num_res_blocks widen dropout embedding_type nonlinearity num_classes',
}


def of(key: str) -> Rule | None:
    """Return the rule of a key such as 'model.nf'; None for a key unknown to this library."""
    section, _, name = key.rpartition('.')
    return RULES.get(section, {}).get(name)


def expanded(path: Any) -> Any:
    """Expand `~`, `$HOME` and other variables in a path; return other types unchanged."""
    return os.path.expanduser(os.path.expandvars(path)) if isinstance(path, str) else path


def expand_paths(config: ConfigDict) -> None:
    """Expand the user's home and variables in every path of `config`, in place."""
    for section, content in config.items():
        for name in list(content) if section in RULES and hasattr(content, 'items') else ():
            if of(f'{section}.{name}') is PATH:
                with content.unlocked():
                    content[name] = expanded(content[name])


def needed(name: str) -> list[str]:
    """Return the keys of `config.model` that the network or SDE `name` of this library needs."""
    sde = sde_lib.SDES.find(name)
    if sde is not None and sde.__module__ == sde_lib.__name__:
        return sde.config_keys()
    return NEEDED.get(name.lower(), '').split()


def missing(config: ConfigDict, *names: str) -> dict[str, str]:
    """Return {key: sentence} for the keys that `config.model` lacks but one of `names` needs."""
    return {
        f'model.{key}': is_missing(f'model.{key}')
        for name in names
        for key in needed(name)
        if key not in config.model
    }


def is_missing(key: str) -> str:
    """Return the sentence that reports a missing key."""
    return f'the config is missing the key {key}: see configs/keys.py'


def faults(
    config: ConfigDict, own: Collection[str] = (), unused: Collection[str] = ()
) -> dict[str, str]:
    """Return {key: sentence} for each key that is missing or unknown, or breaks its rule.

    Args:
        config: The config, with or without defaults.
        own: Further keys that are accepted with any value: 'model.width', or 'model.' for all keys
            of a section and '' for all keys.
        unused: Sections in which keys may be missing.
    """
    sections = {
        name: value.items()
        for name, value in config.items()
        if name in RULES and hasattr(value, 'items')
    }
    top = [(name, value) for name, value in config.items() if name not in sections]
    rules = RULES[''] | {name: SECTION for name in RULES if name}
    found = _faults('', top, rules, own, REQUIRED[''])
    for section in RULES:
        if section in sections:
            required = REQUIRED.get(section, '') if section not in unused else ''
            found |= _faults(f'{section}.', sections[section], RULES[section], own, required)
    return found


def _faults(prefix, items, rules, own, required):
    """Return {key: sentence} for one section; `prefix` is its name with a dot, or ''."""
    found = {
        prefix + name: is_missing(prefix + name)
        for name in required.split()
        if name not in dict(items)
    }
    accepted_beginnings = tuple(part for part in own if part == '' or part.endswith('.'))
    for name, value in items:
        key = prefix + name
        if name in rules:
            if not rules[name].accepts(value):
                found[key] = f'config.{key} must be {rules[name].text}, got {_shown(value)}'
        elif key not in own and not key.startswith(accepted_beginnings):
            near = difflib.get_close_matches(name, rules, 1)
            advice = f'did you mean config.{prefix}{near[0]}?' if near else 'see configs/keys.py'
            found[key] = f'config.{key} is not a known key: {advice}'
    return found


def _shown(value, most: int = 80) -> str:
    shown = ' '.join(repr(value).split())
    return shown if len(shown) <= most else shown[:most] + '...'
