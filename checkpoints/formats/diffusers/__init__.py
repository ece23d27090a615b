"""Pipeline folders of diffusers, read and written without that library.

    model_index.json
    unet/{config.json, diffusion_pytorch_model.safetensors}
    scheduler/scheduler_config.json

Two families of its `UNet2DModel` are networks of ours: the blocks named Skip are NCSN++ with input
and output skips, as published for 256 and 1024 pixels (`google/ncsnpp-*`, with
`ScoreSdeVeScheduler`); the plain ones are DDPM (`google/ddpm-*`, with `DDPMScheduler`). There the
attention of plain blocks follows every block on the way up. Where ours follows the last one only,
the others are written as attention whose last projection is zero, which changes nothing, and left
out when they are read again.
"""

import json
import math
import pathlib

import torch
from ml_collections import ConfigDict

from configs import defaults, stored
from configs.defaults import complete
from models.ncsnpp import NCSNpp
from models.unet import UNet
from models.utils import get_model
from runtime.errors import CheckpointError, UserError

from . import safetensors, torch_zip
from .layouts import PIXEL, SAME, TRANSPOSED, Entry, to_ours, to_theirs

# beside model_index.json: the whole config and what the weights are
OUR_CONFIG = 'score_sde_config.json'
WEIGHTS = (
    'diffusion_pytorch_model.safetensors',
    'diffusion_pytorch_model.bin',
    'diffusion_pytorch_model.fp16.safetensors',
)
# of attention, before 2023
OLD_NAMES = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}

# What a UNet2DModel must be for either family: what it is where its config is silent, and what is
# accepted.
COMMON = dict(
    act_fn=('silu', ('silu', 'swish')),
    norm_eps=(1e-5, (1e-6,)),
    resnet_time_scale_shift=('default', ('default',)),
    add_attention=(True, (True,)),
    attn_norm_num_groups=(None, (None,)),
    class_embed_type=(None, (None,)),
    num_class_embeds=(None, (None,)),
    mid_block_type=('UNetMidBlock2D', ('UNetMidBlock2D',)),
    time_embedding_dim=(None, (None,)),
)
SKIP = COMMON | dict(
    time_embedding_type=('positional', ('fourier',)),
    mid_block_scale_factor=(1, (math.sqrt(2),)),
    in_channels=(3, (3,)),
    out_channels=(3, (3,)),
)
PLAIN = COMMON | dict(
    time_embedding_type=('positional', ('positional',)),
    mid_block_scale_factor=(1, (1,)),
    flip_sin_to_cos=(True, (False,)),
    freq_shift=(0, (1,)),
    downsample_padding=(1, (0,)),
    center_input_sample=(False, (False,)),
    downsample_type=('conv', ('conv',)),
    upsample_type=('conv', ('conv',)),
)

# Schedulers of DDPM's chain of noise levels, with the same defaults: 1000 steps, beta from 1e-4 to
# 0.02.
CHAINS = (
    'DDPMScheduler',
    'DDIMScheduler',
    'PNDMScheduler',
    'DDPMParallelScheduler',
    'DDIMParallelScheduler',
    'DEISMultistepScheduler',
    'DPMSolverMultistepScheduler',
    'DPMSolverSinglestepScheduler',
    'UniPCMultistepScheduler',
)
# blocks on the way down
FAMILIES = {'SkipDownBlock2D', 'AttnSkipDownBlock2D'}, {'DownBlock2D', 'AttnDownBlock2D'}

# What a config of ours must be to be written as one or the other.
SKIP_CONFIG = {
    'model.resblock_type': 'biggan',
    'model.fir': True,
    'model.fir_kernel': [1, 3, 3, 1],
    'model.skip_rescale': True,
    'model.progressive': 'output_skip',
    'model.progressive_input': 'input_skip',
    'model.progressive_combine': 'sum',
    'model.embedding_type': 'fourier',
    'model.scale_by_sigma': True,
    'training.sde': 'vesde',
    'training.continuous': True,
    'data.num_channels': 3,
    'data.centered': False,
    'model.up_attention': 'level',
    'sampling.predictor': 'reverse_diffusion',
}
PLAIN_CONFIG = {
    'model.resamp_with_conv': True,
    'model.scale_by_sigma': False,
    'training.sde': 'vpsde',
    'training.continuous': False,
    'data.centered': True,
}
BOTH_CONFIG = {'model.conditional': True, 'model.nonlinearity': 'swish', 'model.num_classes': 0}


# Names --------------------------------------------------------------------------------------------


def _both(own: str, there: str, layout=SAME) -> dict[str, Entry]:
    """Weight and bias of a layer."""
    return {
        f'{own}.weight': Entry(f'{there}.weight', layout),
        f'{own}.bias': Entry(f'{there}.bias'),
    }


def _matrix(own: str, there: str, layout) -> dict[str, Entry]:
    """W and b of a matrix."""
    return {f'{own}.W': Entry(f'{there}.weight', layout), f'{own}.b': Entry(f'{there}.bias')}


def _block(block, own: str, there: str) -> dict[str, Entry]:
    names = dict(
        GroupNorm_0='norm1',
        Conv_0='conv1',
        Dense_0='time_emb_proj',
        GroupNorm_1='norm2',
        Conv_1='conv2',
    )
    found = {}
    for ours, theirs in names.items():
        found |= _both(f'{own}.{ours}', f'{there}.{theirs}')
    if block.projection:
        shortcut = f'{own}.{block.projection}', f'{there}.conv_shortcut'
        found |= (
            _matrix(*shortcut, PIXEL) if block.projection.startswith('NIN') else _both(*shortcut)
        )
    return found


def _attention(own: str, there: str) -> dict[str, Entry]:
    found = _both(f'{own}.GroupNorm_0', f'{there}.group_norm')
    for i, name in enumerate(('to_q', 'to_k', 'to_v', 'to_out.0')):
        found |= _matrix(f'{own}.NIN_{i}', f'{there}.{name}', TRANSPOSED)
    return found


def table(network: UNet) -> tuple[dict[str, Entry], dict[str, int]]:
    """The names of the network's parameters there; and the attentions there that the network does
    not have, with their channels.
    """
    modules, found, spare = network.all_modules, {}, {}
    skip = isinstance(network, NCSNpp)

    def place(position):
        return f'all_modules.{position}'

    def blocks(level, there):
        for j, (block, attention) in enumerate(level.blocks):
            found.update(_block(modules[block], place(block), f'{there}.resnets.{j}'))
            if attention is not None:
                found.update(
                    _attention(
                        place(attention),
                        f'{there}.attentions.{0 if skip and "up_" in there else j}',
                    )
                )
            elif not skip and level.blocks[-1][1] is not None:
                spare[f'{there}.attentions.{j}'] = modules[block].Conv_1.out_channels

    if network.fourier is not None:
        found[f'{place(network.fourier)}.W'] = Entry('time_proj.weight')
    for position, there in zip(network.embedding_layers, ('linear_1', 'linear_2')):
        found |= _both(place(position), f'time_embedding.{there}')
    found |= _both(place(network.stem), 'conv_in')
    for way, levels in (('down', network.down_levels), ('up', network.up_levels)):
        for i, level in enumerate(levels):
            there = f'{way}_blocks.{i}'
            blocks(level, there)
            if level.resample is not None:
                own = place(level.resample)
                found |= (
                    _block(modules[level.resample], own, f'{there}.resnet_{way}')
                    if skip
                    else _both(f'{own}.Conv_0', f'{there}.{way}samplers.0.conv')
                )
            if way == 'down' and level.pyramid is not None:
                found |= _both(f'{place(level.pyramid)}.Conv_0', f'{there}.skip_conv')
    first, attention, second = network.bottom
    found |= _block(modules[first], place(first), 'mid_block.resnets.0') | _attention(
        place(attention), 'mid_block.attentions.0'
    )
    found |= _block(modules[second], place(second), 'mid_block.resnets.1')
    outputs = [level.pyramid for level in network.up_levels] if skip else [network.head]
    for i, (norm, conv) in enumerate(outputs):
        last = i == len(outputs) - 1
        found |= _both(place(norm), 'conv_norm_out' if last else f'up_blocks.{i}.skip_norm')
        found |= _both(place(conv), 'conv_out' if last else f'up_blocks.{i}.skip_conv')
    return found, spare


# Reading ------------------------------------------------------------------------------------------


def matches(path: pathlib.Path) -> bool:
    """A folder with a pipeline or a network in it."""
    return path.is_dir() and any(
        (path / name).is_file() for name in ('model_index.json', 'config.json', 'unet/config.json')
    )


def _json(path: pathlib.Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f'{path} cannot be read: {error}') from error
    if not isinstance(found, dict):
        raise CheckpointError(f'{path} cannot be read: expected settings by name')
    return found


def _folder(path) -> pathlib.Path:
    """Where the network lies: in `unet`, or in the folder itself."""
    path = pathlib.Path(path)
    return path / 'unet' if (path / 'unet').is_dir() else path


def load(path) -> dict:
    """The tensors of the network in a folder, with the names of today."""
    folder = _folder(path)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f'{folder} has no weights: none of {", ".join(WEIGHTS)}')
    weights = torch_zip.load(file) if file.suffix == '.bin' else safetensors.load(file)[0]
    if not isinstance(weights, dict):
        raise CheckpointError(f'{file} holds no weights by name')
    renamed = {}
    for name, value in weights.items():
        parts = name.split('.')
        if 'attentions' in parts and len(parts) > 1:
            parts[-2] = OLD_NAMES.get(parts[-2], parts[-2])
        renamed['.'.join(parts)] = value
    # older files have the frequencies under two names
    both = [renamed.get(f'time_proj.{name}') for name in ('W', 'weight')]
    if both[0] is not None and (both[1] is None or torch.equal(*both)):
        renamed['time_proj.weight'] = renamed.pop('time_proj.W')
    return renamed


def _is_identity(weights: dict, attention: str) -> bool:
    """Whether an attention adds nothing to its input."""
    return not any(
        weights.get(f'{attention}.to_out.0.{name}', torch.ones(1)).any()
        for name in ('weight', 'bias')
    )


def _faults(unet: dict, accepted: dict) -> list[str]:
    faults = []
    for key, (default, values) in accepted.items():
        got = unet.get(key, default)
        same = [
            math.isclose(got, value, rel_tol=1e-6)
            if isinstance(got, float) and isinstance(value, (int, float))
            else got == value
            for value in values
        ]
        if not any(same):
            faults.append(f'{key}={got!r}, where {" or ".join(map(repr, values))} is read here')
    return faults


def config_of(path, with_scheduler: bool = True) -> ConfigDict:
    """The config of the network and the SDE in a folder: the one beside it if we wrote it, else
    what follows from its own.

    CheckpointError, which names the keys, for a network that is none of ours. Without the scheduler
    only the network is described.
    """
    try:
        return _config_of(pathlib.Path(path), with_scheduler)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        if isinstance(error, UserError):
            raise
        raise CheckpointError(
            f'{path} is no network of ours: its settings cannot be understood: {error}'
        ) from error


def _config_of(path: pathlib.Path, with_scheduler: bool) -> ConfigDict:
    if (path / OUR_CONFIG).is_file():
        return stored.get_config(path / OUR_CONFIG)
    unet = _json(_folder(path) / 'config.json')
    down, up = list(unet.get('down_block_types', ())), list(unet.get('up_block_types', ()))
    mirrored = up == [name.replace('Down', 'Up') for name in reversed(down)]
    family = next((names for names in FAMILIES if set(down) <= names), None)
    if (
        unet.get('_class_name', 'UNet2DModel') != 'UNet2DModel'
        or not down
        or family is None
        or not mirrored
    ):
        raise CheckpointError(
            f'{path} is no network of ours: {unet.get("_class_name")} with the '
            f'blocks {", ".join(map(str, down + up))}; '
            'read are UNet2DModels of plain blocks, or of Skip blocks, with the '
            'same attention on both ways'
        )
    skip = 'SkipDownBlock2D' in family
    if faults := _faults(unet, SKIP if skip else PLAIN):
        raise CheckpointError(f'{path} is no network of ours: it has ' + '; '.join(faults))

    size, widths = unet.get('sample_size'), list(unet.get('block_out_channels', ()))
    groups = unet.get('norm_num_groups', 32)
    if (
        skip
        and groups is not None
        and any(groups != min(width // 4, 32) for width in (widths[0], widths[-1]))
    ):
        raise CheckpointError(
            f'{path} is no network of ours: it has norm_num_groups={groups}, '
            'where the first and the last width, '
            f'{widths[0]} and {widths[-1]}, have channels / 4 here, at most 32'
        )
    size = size[0] if isinstance(size, (list, tuple)) else size
    attends = [name.startswith('Attn') for name in down]
    if not size or any(width % widths[0] for width in widths):
        raise CheckpointError(
            f'{path} is no network of ours: sample_size={size}, '
            f'block_out_channels={widths}, which must be known, and '
            'multiples of the first'
        )
    config = defaults.base('FOLDER', size)
    if skip:
        defaults.ncsnpp_256(defaults.ve(config, continuous=True))
    else:
        defaults.ddpm(defaults.vp(config, continuous=False))
    config.data.num_channels = unet.get('in_channels', 3)
    config.model.update(
        nf=widths[0],
        ch_mult=tuple(width // widths[0] for width in widths),
        num_res_blocks=unet.get('layers_per_block', 2),
        attn_resolutions=tuple(size // 2**i for i, here in enumerate(attends) if here),
        dropout=unet.get('dropout', 0.0),
        attn_head_dim=unet.get('attention_head_dim', 8) or 0,
    )
    if skip:
        around = [width for i, width in enumerate(widths) if attends[i]]
        config.model.update(
            center_input=unet.get('center_input_sample', False),
            attn_groups=32 * any(width < 128 for width in around),
        )
    else:
        config.model.update(groups=unet.get('norm_num_groups', 32), up_attention='block')
        if unet.get('out_channels', 3) != config.data.num_channels:
            raise CheckpointError(
                f'{path} is no network of ours: it makes {unet["out_channels"]} '
                f'channels of {config.data.num_channels}'
            )
        weights = load(path)
        inner = [
            f'up_blocks.{i}.attentions.{j}'
            for i, here in enumerate(reversed(attends))
            if here
            for j in range(config.model.num_res_blocks)
        ]
        if inner and all(_is_identity(weights, attention) for attention in inner):
            config.model.up_attention = 'level'
    return _with_scheduler(path, config) if with_scheduler else config


def _with_scheduler(path: pathlib.Path, config):
    """The config with the SDE that the scheduler's settings describe."""
    file = next(
        (
            file
            for file in (
                path / 'scheduler' / 'scheduler_config.json',
                path / 'scheduler_config.json',
            )
            if file.is_file()
        ),
        None,
    )
    if file is None:
        raise CheckpointError(
            f'{path} has no scheduler, which would tell the noise levels of its '
            'training: give --config'
        )
    scheduler = _json(file)
    kind = scheduler.get('_class_name', '')
    if config.training.sde == 'vesde' and kind == 'ScoreSdeVeScheduler':
        steps = scheduler.get('num_train_timesteps', 2000)
        config.model.update(
            sigma_min=float(scheduler.get('sigma_min', 0.01)),
            sigma_max=float(scheduler.get('sigma_max', 1348.0)),
            num_scales=steps,
        )
        config.sampling.update(
            snr=float(scheduler.get('snr', 0.15)), n_steps_each=scheduler.get('correct_steps', 1)
        )
        return config
    if config.training.sde == 'vpsde' and kind in CHAINS:
        faults = _faults(
            scheduler,
            dict(
                beta_schedule=('linear', ('linear',)),
                prediction_type=('epsilon', ('epsilon',)),
                trained_betas=(None, (None,)),
                rescale_betas_zero_snr=(False, (False,)),
            ),
        )
        if faults:
            raise CheckpointError(f'{file} is no chain of DDPM: it has ' + '; '.join(faults))
        steps = scheduler.get('num_train_timesteps', 1000)
        config.model.update(
            beta_min=scheduler.get('beta_start', 1e-4) * steps,
            beta_max=scheduler.get('beta_end', 0.02) * steps,
            num_scales=steps,
        )
        return config
    raise CheckpointError(
        f'{file} is a {kind or "scheduler without a name"}, which does not go '
        'with the network beside it here'
    )


def _beside_parameters(network, with_layers: bool) -> list[str]:
    """What a network computes with besides its parameters: its own settings, and those of its
    layers.
    """
    own = (
        'embedding',
        'centers',
        'scale_by_sigma',
        'skip_rescale',
        'progressive',
        'progressive_input',
    )
    found = [
        f'network: {type(network).__name__}',
        *(f'{name}: {getattr(network, name)}' for name in own),
    ]
    if with_layers:
        found += [
            f'{name}: {layer}'
            for name, layer in network.named_modules()
            if not next(layer.children(), None)
        ]
        found += [
            f'{name}: {layer.heads} heads'
            for name, layer in network.named_modules()
            if hasattr(layer, 'heads')
        ]
    return found


def read(path, network, device='cpu') -> dict:
    """The weights of a folder, which stand for their average too; CheckpointError where its network
    is not that of the config.
    """
    path = pathlib.Path(path)
    if not isinstance(network, UNet):
        raise CheckpointError(
            f'{path} is a network of diffusers, of which ddpm and ncsnpp networks are read here'
        )
    weights = load(path)
    reference = _network(config_of(path, with_scheduler=False))
    alike = network.state_dict().keys() == reference.state_dict().keys()
    details = [
        f'{there} in the folder, {here.partition(": ")[2]} by the config'
        for here, there in zip(
            _beside_parameters(network, alike), _beside_parameters(reference, alike)
        )
        if here != there
    ]
    if details:
        raise CheckpointError(
            f'{path} does not fit the network of the config: {details[0]}'
            + (f', and {len(details) - 1} more' if len(details) > 1 else ''),
            details,
        )
    names, spare = table(network)
    for attention in spare:
        if not _is_identity(weights, attention):
            raise CheckpointError(
                f'{path} does not fit the network of the config: {attention} is '
                'there, which a network has with '
                "config.model.up_attention='block'"
            )
    dropped = tuple(f'{attention}.' for attention in spare)
    found = to_ours(
        names,
        {name: value for name, value in weights.items() if not name.startswith(dropped or '\0')},
        network,
    )
    notes = _json(path / OUR_CONFIG) if (path / OUR_CONFIG).is_file() else {}
    return dict(model=found, ema=dict(named=found), step=notes.get('step', 0))


def _network(config) -> UNet:
    """The network of a config, without its numbers."""
    with torch.device('meta'):
        return get_model(config.model.name)(config)


# Writing ------------------------------------------------------------------------------------------


def unfit(config) -> list[str]:
    """What keeps the network of a config from being a pipeline of diffusers; empty where nothing
    does.
    """
    if config.model.name not in ('ddpm', 'ncsnpp', 'ddpmpp'):
        return [f'config.model.name={config.model.name!r}: diffusers has U-Nets']
    config, skip = complete(config), config.model.name != 'ddpm'
    faults = []
    for key, value in ((SKIP_CONFIG if skip else PLAIN_CONFIG) | BOTH_CONFIG).items():
        section, name = key.split('.')
        got = config[section][name]
        if (list(got) if isinstance(value, list) else got) != value:
            faults.append(
                f'config.{key}={got!r}: its blocks {"of NCSN++" if skip else "of DDPM"} '
                f'and its pipeline have {value!r}'
            )
    if faults or not skip:
        return faults
    groups = {layer.GroupNorm_0.num_groups for layer in _network(config).around_attention()}
    return (
        [
            f'config.model.attn_groups={config.model.attn_groups}: around attention its blocks '
            'have 32 groups, this network has ' + ', '.join(map(str, sorted(groups)))
        ]
        if groups - {32}
        else []
    )


def unet_config(config) -> dict:
    """The config of the UNet2DModel that is the network of ours."""
    model, data, skip = complete(config).model, config.data, config.model.name != 'ddpm'
    kind = 'Skip' if skip else ''
    attends = [data.image_size // 2**i in model.attn_resolutions for i in range(len(model.ch_mult))]
    down = [f'{"Attn" * here}{kind}DownBlock2D' for here in attends]
    return dict(
        _class_name='UNet2DModel',
        sample_size=data.image_size,
        in_channels=data.num_channels,
        out_channels=data.num_channels,
        block_out_channels=[model.nf * mult for mult in model.ch_mult],
        layers_per_block=model.num_res_blocks,
        down_block_types=down,
        up_block_types=[name.replace('Down', 'Up') for name in reversed(down)],
        act_fn='silu',
        norm_eps=1e-6,
        norm_num_groups=None if skip else model.groups,
        attention_head_dim=model.attn_head_dim or None,
        center_input_sample=skip and model.center_input,
        dropout=float(model.dropout),
        time_embedding_type='fourier' if skip else 'positional',
        flip_sin_to_cos=False,
        freq_shift=0 if skip else 1,
        mid_block_scale_factor=math.sqrt(2) if skip else 1,
        downsample_padding=1 if skip else 0,
    )


def scheduler_config(config) -> dict:
    """The config of the scheduler that samples as ours does, as far as it can."""
    model, sampling = config.model, config.sampling
    if config.training.sde == 'vesde':
        return dict(
            _class_name='ScoreSdeVeScheduler',
            num_train_timesteps=model.num_scales,
            snr=sampling.snr,
            sigma_min=model.sigma_min,
            sigma_max=model.sigma_max,
            sampling_eps=1e-5,
            correct_steps=sampling.n_steps_each * (sampling.corrector != 'none'),
        )
    return dict(
        _class_name='DDPMScheduler',
        num_train_timesteps=model.num_scales,
        beta_start=model.beta_min / model.num_scales,
        beta_end=model.beta_max / model.num_scales,
        beta_schedule='linear',
        variance_type='fixed_large',
        clip_sample=False,
        prediction_type='epsilon',
    )


def write(path, network, weights: dict, config, notes: dict):
    """A pipeline folder; UserError, which says why, for a network that is none of theirs."""
    if faults := unfit(config):
        raise UserError('diffusers cannot express this network: ' + '; '.join(faults))
    path, (names, spare) = pathlib.Path(path), table(network)
    theirs = to_theirs(names, weights)
    for attention, channels in spare.items():
        theirs |= {
            f'{attention}.group_norm.weight': torch.ones(channels),
            f'{attention}.group_norm.bias': torch.zeros(channels),
        }
        for name in ('to_q', 'to_k', 'to_v', 'to_out.0'):
            theirs |= {
                f'{attention}.{name}.weight': torch.zeros(channels, channels),
                f'{attention}.{name}.bias': torch.zeros(channels),
            }
    pipeline, scheduler = (
        ('ScoreSdeVePipeline' if config.training.sde == 'vesde' else 'DDPMPipeline'),
        scheduler_config(config),
    )
    files = {
        'unet/config.json': unet_config(config),
        'scheduler/scheduler_config.json': scheduler,
        OUR_CONFIG: dict(notes, config=json.loads(config.to_json_best_effort())),
        'model_index.json': dict(
            _class_name=pipeline,
            scheduler=['diffusers', scheduler['_class_name']],
            unet=['diffusers', 'UNet2DModel'],
        ),
    }
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(content, indent=2) + '\n')
    safetensors.save(path / 'unet' / WEIGHTS[0], theirs)
