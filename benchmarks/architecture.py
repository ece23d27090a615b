"""The cost of the options of NCSN++, of its resolutions, and of the network of every config.

    # five minutes on one core, less on two
    python benchmarks/architecture.py --json docs/architecture.json
    # measure no times: only count operations and update docs/architecture.md
    python benchmarks/architecture.py --tables

The baseline is `configs/ve/cifar10_ncsnpp_continuous.py` with nf=64. Each row changes only the
option that it names. A time is the minimum over interleaved rounds, divided by the baseline's
minimum in the same rounds. There are --repeats passes over all networks, each with four forward
passes and two steps. The second row compares the baseline with itself and so shows the noise.
'forward' runs without gradients. 'step' computes the loss (with dropout) and its gradients, without
the optimizer. 'kept' is the memory that the forward pass of a step keeps for the backward pass.

Operations are those of convolutions and matrix products for one image. A multiplication and its
addition count as two. They are counted on PyTorch's 'meta' device, without being computed.
Parameters include the frequencies of the Fourier features, which are not trained.
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
# other networks with the same number of channels
WHOLE = ('vp.cifar10_ddpmpp_continuous', 'vp.ddpm.cifar10_continuous')
ROUNDS = {'forward': 4, 'step': 2}  # in each pass over all networks


def load(name: str, changes=(), device: str = 'meta'):
    """Return the config `configs.{name}` with `changes`, {'section.key': value}."""
    config = importlib.import_module(f'configs.{name}').get_config()
    config.device = device
    for key, value in dict(changes).items():
        section, key = key.split('.')
        config[section][key] = value
    return config


def all_configs() -> list[str]:
    """Return the names of all configs that build a network, such as 've.ncsn.cifar10'."""
    files = sorted(ROOT.glob('configs/*/**/*.py'))
    return [
        '.'.join(file.relative_to(ROOT / 'configs').with_suffix('').parts)
        for file in files
        if file.stem != '__init__'
    ]


@torch.no_grad()
def counted(config):
    """Build the network of a config without weights and count a forward pass of one image.

    Returns:
        The network, its number of parameters, and the number of operations by module name.
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
    """Count the parameters and operations of the network of a config."""
    _, parameters, operations = counted(load(name, changes))
    return dict(parameters=parameters, flops=operations['Global'])


def levels(name: str) -> list[dict]:
    """Return a row with layers, parameters and operations for each part of a config's U-Net."""
    config = load(name)
    model, parameters, operations = counted(config)
    deepest = len(model.down_levels) - 1
    add = Parts(config, model, operations)
    add('embedding', [model.fourier, *model.embedding_layers])
    add('stem', [model.stem], level=0)
    for i, level in enumerate(model.down_levels):
        blocks, attentions = zip(*level.blocks)
        positions = [*blocks, *attentions, level.resample, level.pyramid]
        add(f'down {i}', positions, i, len(blocks), present(attentions))
    add('bottom', model.bottom, deepest, 2, 1)
    for i, level in zip(range(deepest, -1, -1), model.up_levels):
        blocks, attentions = zip(*level.blocks)
        positions = [*blocks, *attentions, *level.pyramid, level.resample]
        add(f'up {i}', positions, i, len(blocks), present(attentions))
    add('head', getattr(model, 'head', []), level=0)
    missing = 'some parameters or operations belong to no part'
    assert sum(row['parameters'] for row in add.rows) == parameters, missing
    assert sum(row['flops'] for row in add.rows) == operations['Global'], missing
    return add.rows


def present(positions) -> int:
    return len(positions) - positions.count(None)


class Parts:
    """Collects a row for each part of a U-Net; a part is a list of positions in `all_modules`."""

    def __init__(self, config, model, operations: dict):
        self.config, self.model, self.operations = config, model, operations
        self.rows = []

    def __call__(self, part, positions, level=None, blocks=None, attentions=None):
        config, modules = self.config, self.model.all_modules
        path = f'{type(self.model).__name__}.all_modules'
        positions = [i for i in positions if i is not None]
        somewhere = level is not None
        self.rows.append(
            dict(
                part=part,
                pixels=config.data.image_size // 2**level if somewhere else None,
                channels=config.model.nf * config.model.ch_mult[level] if somewhere else None,
                blocks=blocks,
                attentions=attentions,
                parameters=sum(p.numel() for i in positions for p in modules[i].parameters()),
                flops=sum(self.operations.get(f'{path}.{i}', 0) for i in positions),
            )
        )


def kept(model, loss) -> int:
    """Return the bytes that `loss()` keeps for its gradient, without the parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}  # keeps the storages alive, so that no address is used twice

    def pack(tensor):  # returns no tensor: its history would keep this function alive
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda _: None):
        loss()
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)


def prepare(name: str, changes, args):
    """Build a network and the functions to time.

    Returns:
        A forward pass and a training step (functions without arguments), and the bytes per image
        that the step keeps.
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
    """Format {'model.fir': False} as 'fir=False'; keys of `training` keep their section."""
    return ', '.join(f'{key.removeprefix("model.")}={value}' for key, value in changes.items())


def measure(args) -> list[dict]:
    """Return a row for the baseline, the baseline once more, each option and each other network.

    Each network is measured together with the baseline, so only two are in memory at a time. With
    two dozen in memory, a network that has not run for a while would be slow. Each pass builds the
    networks again, because their memory addresses change times by a few per cent and the load of
    the machine changes within a minute.
    """
    baseline = dict(option='baseline', config=BASELINE, changes=args.baseline)
    variants = [
        baseline | dict(option='baseline, once more'),
        *(
            dict(option=label(changes), config=BASELINE, changes=args.baseline | changes)
            for changes in args.options
        ),
        *(dict(option=f'configs.{name}', config=name, changes=args.baseline) for name in WHOLE),
    ]
    ways, baseline['kept'] = prepare(BASELINE, args.baseline, args)
    times = Times(args.device, ways)
    for _ in range(args.repeats):
        for row in variants:
            ways, row['kept'] = prepare(row['config'], row['changes'], args)
            times.add(row['option'], ways)
    rows = [baseline, *variants]
    for row in rows:
        row |= size(row['config'], row['changes'])
        row |= times.least(row['option'])
        row['forwards'] = row['step'] / row['forward']
        row['relative'] = {
            measure: row[key] / (row[f'baseline {key}'] if key in ROUNDS else baseline[key])
            for measure, key in MEASURES.items()
        }
    return rows


class Times:
    """Seconds of each option, and of the baseline (with functions to time) in the same rounds."""

    def __init__(self, device: str, baseline: dict):
        self.device, self.baseline = device, baseline
        self.found = {}

    def add(self, option: str, ways: dict) -> None:
        """Time the functions `ways` of an option in turn with those of the baseline."""
        for kind, rounds in ROUNDS.items():
            pair = {'baseline': self.baseline[kind], 'this': ways[kind]}
            for which, times in interleaved(pair, self.device, rounds, warmup=0).items():
                self.found.setdefault((option, kind, which), []).extend(times)

    def least(self, option: str) -> dict[str, float]:
        """Return the minimum times of an option; for 'baseline', over the rounds of all options."""
        row = {}
        for kind in ROUNDS:
            if option == 'baseline':
                every = [
                    times for key, times in self.found.items() if key[1:] == (kind, 'baseline')
                ]
                row[kind] = row[f'baseline {kind}'] = min(map(min, every))
            else:
                row[kind] = min(self.found[option, kind, 'this'])
                row[f'baseline {kind}'] = min(self.found[option, kind, 'baseline'])
        return row


def command_line():
    parser = arguments(__doc__, repeats=2)
    parser.add_argument('--batch', type=int, default=2, help='images (default: %(default)s)')
    parser.add_argument(
        '--tables',
        action='store_true',
        help='measure no times: count the resolutions and configs of docs/architecture.json again, '
        'and update the tables of docs/architecture.md',
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
        parser.error('--tables writes docs/architecture.md and cannot be combined with --quick')
    return args


def network_of(name: str) -> dict:
    config = load(name)
    pixels = config.data.image_size
    return dict(config=name, network=config.model.name, pixels=pixels, **size(name))


def update_tables(configs: list[dict]) -> None:
    """Count resolutions and configs again; update docs/architecture.json and architecture.md."""
    numbers, document = (ROOT / 'docs' / f'architecture.{kind}' for kind in ('json', 'md'))
    report = json.loads(numbers.read_text()) | dict(configs=configs, levels=levels(BASELINE))
    numbers.write_text(json.dumps(report, indent=1) + '\n')
    document.write_text(with_tables(document.read_text(), report))


def main():
    args = command_line()
    configs = [network_of(name) for name in args.configs]
    if args.tables:
        update_tables(configs)
        return
    rows = [
        row | {f'relative {name}': value for name, value in row['relative'].items()}
        for row in measure(args)
    ]
    show(
        args,
        f'NCSN++ with {label(args.baseline)}, 32 pixels, batch {args.batch}; all values '
        'relative to the first row',
        rows,
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
