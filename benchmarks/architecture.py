"""What the options of NCSN++ cost, how its parameters and operations spread over its levels, and
how large the network of every config is.

    # five minutes on one core, fewer on two
    python benchmarks/architecture.py --json docs/architecture.json
    # no times: counts anew, and brings docs/architecture.md up to date
    python benchmarks/architecture.py --tables

The baseline is `configs/ve/cifar10_ncsnpp_continuous.py` with nf=64; each row changes what it names
and nothing else. Times are the least of interleaved rounds, over the baseline's in the same rounds:
--repeats passes over all networks with four forward passes and two steps in each. The second row,
the baseline against itself, shows the noise. 'forward' is without gradients, 'step' is loss and
gradients with dropout, without the optimizer. 'kept' is the memory that the forward pass of a step
leaves for the backward one.

Operations are those of convolutions and products, two for a multiplication with its addition, of
one image; they are counted without being done, on PyTorch's device 'meta'. Parameters include the
frequencies of Fourier features, which are not trained.
"""

import importlib
import json
import pathlib

import torch
from architecture_tables import MEASURES, with_tables
from timing import arguments, inputs, interleaved, parse_args, show
from torch.utils.flop_counter import FlopCounterMode

import losses
import sde_lib
from models.utils import create_model, get_model_fn

ROOT = pathlib.Path(__file__).parents[1]
BASELINE, NF = 've.cifar10_ncsnpp_continuous', 64
OPTIONS = (
    {'model.fir': False},
    {'model.skip_rescale': False},
    {'model.resblock_type': 'ddpm'},
    {'model.num_res_blocks': 1},
    {'model.num_res_blocks': 2},
    {'model.num_res_blocks': 8},
    {'model.progressive': 'output_skip'},
    {'model.progressive': 'residual'},
    {'model.progressive_input': 'none'},
    {'model.progressive_input': 'input_skip'},
    {'model.progressive_input': 'input_skip', 'model.progressive_combine': 'cat'},
    {'model.attn_resolutions': ()},
    {'model.attn_resolutions': (8,)},
    {'model.attn_resolutions': (16, 8)},
    {'model.attn_resolutions': (32, 16)},
    {'model.up_attention': 'block'},
    # Fourier features have no discrete labels
    {'model.embedding_type': 'positional', 'training.continuous': False},
    {'model.scale_by_sigma': False},
    {'model.nf': 32},
    {'model.nf': 128},
)
# other networks of as many channels
WHOLE = ('vp.cifar10_ddpmpp_continuous', 'vp.ddpm.cifar10_continuous')
ROUNDS = {'forward': 4, 'step': 2}  # in each pass over all networks


def load(name: str, changes=(), device: str = 'meta'):
    """The config `configs.{name}` with other values, {'section.key': value}."""
    config = importlib.import_module(f'configs.{name}').get_config()
    config.device = device
    for key, value in dict(changes).items():
        section, key = key.split('.')
        config[section][key] = value
    return config


def all_configs() -> list[str]:
    """The names of all configs that build a network, such as 've.ncsn.cifar10'."""
    files = sorted(ROOT.glob('configs/*/**/*.py'))
    return [
        '.'.join(file.relative_to(ROOT / 'configs').with_suffix('').parts)
        for file in files
        if file.stem != '__init__'
    ]


@torch.no_grad()
def counted(config):
    """The network of a config without its numbers; its parameters; the operations of a forward pass
    of one image, {module name: count}.
    """
    data = config.data
    with torch.device('meta'):
        model = create_model(config).eval().module
        x = torch.zeros(1, data.num_channels, data.image_size, data.image_size)
        labels = torch.ones(1, dtype=torch.float32 if config.training.continuous else torch.long)
        with FlopCounterMode(display=False) as counter:
            model(x, labels)
    operations = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    return model, sum(p.numel() for p in model.parameters()), operations


def size(name: str, changes=()) -> dict:
    """Parameters and operations of the network of a config."""
    _, parameters, operations = counted(load(name, changes))
    return dict(parameters=parameters, flops=operations['Global'])


def levels(name: str) -> list[dict]:
    """What each part of the U-Net of a config consists of, and its parameters and operations."""
    config = load(name)
    model, parameters, operations = counted(config)
    blocks, deepest, rows = model.all_modules, len(model.down_levels) - 1, []

    def add(part, level, positions, n_blocks=None, attentions=None):
        positions = [i for i in positions if i is not None]
        rows.append(
            dict(
                part=part,
                pixels=None if level is None else config.data.image_size // 2**level,
                channels=None if level is None else config.model.nf * config.model.ch_mult[level],
                blocks=n_blocks,
                attentions=attentions,
                parameters=sum(p.numel() for i in positions for p in blocks[i].parameters()),
                flops=sum(
                    operations.get(f'{type(model).__name__}.all_modules.{i}', 0) for i in positions
                ),
            )
        )

    add('embedding', None, [model.fourier, *model.embedding_layers])
    add('stem', 0, [model.stem])
    for i, level in enumerate(model.down_levels):
        inside, behind = zip(*level.blocks)
        add(
            f'down {i}',
            i,
            [*inside, *behind, level.resample, level.pyramid],
            len(inside),
            len(behind) - behind.count(None),
        )
    add('bottom', deepest, model.bottom, 2, 1)
    for i, level in zip(range(deepest, -1, -1), model.up_levels):
        inside, behind = zip(*level.blocks)
        add(
            f'up {i}',
            i,
            [*inside, *behind, *level.pyramid, level.resample],
            len(inside),
            len(behind) - behind.count(None),
        )
    add('head', 0, getattr(model, 'head', []))
    assert sum(row['parameters'] for row in rows) == parameters, 'every parameter belongs to a part'
    assert sum(row['flops'] for row in rows) == operations['Global'], (
        'every operation belongs to a part'
    )
    return rows


def kept(model, loss) -> int:
    """The bytes that `loss()` keeps for its gradient, without the parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}  # they are held, so that no address is used twice

    def pack(tensor):  # keeps no tensor, whose history would hold this function
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda _: None):
        loss()
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)


def prepare(name: str, changes, args):
    """A forward pass and a training step of the network, functions without arguments, and the bytes
    an image that the latter keeps.
    """
    torch.manual_seed(args.seed)
    config = load(name, changes, args.device)
    model, (x, labels) = create_model(config), inputs(config, args.batch)
    loss_fn = losses.get_loss_fn(
        sde_lib.get_sde(config), True, config.training.reduce_mean, config.training.continuous
    )

    @torch.no_grad()
    def forward():
        get_model_fn(model)(x, labels)

    def step():
        loss_fn(model, x).backward()
        model.zero_grad()

    return dict(forward=forward, step=step), kept(model, lambda: loss_fn(model, x)) / args.batch


def label(changes) -> str:
    """{'model.fir': False} as 'fir=False'; what belongs to `training` keeps its section."""
    return ', '.join(f'{key.removeprefix("model.")}={value}' for key, value in changes.items())


def measure(args) -> list[dict]:
    """A row for the baseline, the baseline once more, each option and each other network.

    They are measured beside the baseline, two networks at a time: of two dozen in memory, those
    that did not run for a while are slow. Each pass builds them anew: where a network lies in
    memory makes some per cent, and what else the machine does changes within a minute.
    """
    variants = [
        ('baseline, once more', BASELINE, args.baseline),
        *((label(changes), BASELINE, args.baseline | changes) for changes in args.options),
        *((f'configs.{name}', name, args.baseline) for name in WHOLE),
    ]
    baseline, baseline_kept = prepare(BASELINE, args.baseline, args)
    rows = {
        'baseline': dict(
            option='baseline', config=BASELINE, changes=args.baseline, kept=baseline_kept
        )
    }
    times = {}
    for _ in range(args.repeats):
        for option, name, changes in variants:
            ways, kept_bytes = prepare(name, changes, args)
            rows[option] = dict(option=option, config=name, changes=changes, kept=kept_bytes)
            for kind, rounds in ROUNDS.items():
                pair = interleaved(
                    {'baseline': baseline[kind], 'this': ways[kind]}, args.device, rounds, warmup=0
                )
                for which in pair:
                    times.setdefault((option, kind, which), []).extend(pair[which])
    first = rows['baseline']
    for kind in ROUNDS:
        best = min(
            min(found) for (_, k, which), found in times.items() if (k, which) == (kind, 'baseline')
        )
        times['baseline', kind, 'this'] = times['baseline', kind, 'baseline'] = [best]
    for row in rows.values():
        row |= size(row['config'], row['changes'])
    for option, row in rows.items():
        row |= {kind: min(times[option, kind, 'this']) for kind in ROUNDS}
        row |= {f'baseline {kind}': min(times[option, kind, 'baseline']) for kind in ROUNDS}
        row['forwards'] = row['step'] / row['forward']
        row['relative'] = {
            measure: row[key] / (row[f'baseline {key}'] if key in ROUNDS else first[key])
            for measure, key in MEASURES.items()
        }
    return list(rows.values())


def main():
    parser = arguments(__doc__, repeats=2)
    parser.add_argument('--batch', type=int, default=2, help='images (default: %(default)s)')
    parser.add_argument(
        '--tables',
        action='store_true',
        help='measure no times: count the levels '
        'and configs of '
        'docs/architecture.json '
        'anew, and put its tables into docs/architecture.md',
    )
    parser.set_defaults(baseline={'model.nf': NF}, options=OPTIONS, configs=all_configs())
    args = parse_args(
        parser,
        repeats=1,
        batch=1,
        baseline={'model.nf': 32, 'model.num_res_blocks': 1},
        options=OPTIONS[:1],
        configs=[BASELINE],
    )
    if args.quick and args.tables:
        parser.error('--tables writes docs/architecture.md: run it without --quick')
    configs = [
        dict(
            config=name,
            network=load(name).model.name,
            pixels=load(name).data.image_size,
            **size(name),
        )
        for name in args.configs
    ]
    if args.tables:
        numbers, document = (ROOT / 'docs' / f'architecture.{kind}' for kind in ('json', 'md'))
        report = json.loads(numbers.read_text()) | dict(configs=configs, levels=levels(BASELINE))
        numbers.write_text(json.dumps(report, indent=1) + '\n')
        document.write_text(with_tables(document.read_text(), report))
        return
    rows = measure(args)
    show(
        args,
        f'NCSN++ with {label(args.baseline)}, 32 pixels, batch {args.batch}; all in units '
        'of the first row',
        [
            row | {f'relative {name}': value for name, value in row['relative'].items()}
            for row in rows
        ],
        {
            'changed': ('option', '{}'),
            'parameters': ('relative parameters', '{:.3f}'),
            'operations': ('relative operations', '{:.3f}'),
            'forward': ('relative forward', '{:.3f}'),
            'step': ('relative step', '{:.3f}'),
            'kept': ('relative kept', '{:.3f}'),
            'step, in forwards': ('forwards', '{:.2f}'),
        },
        batch=args.batch,
        baseline=load(BASELINE, args.baseline).model.to_dict(),
        levels=levels(BASELINE),
        configs=configs,
    )


if __name__ == '__main__':
    main()
