r"""Score-based generative modelling through SDEs: train, evaluate, sample, control.

    python main.py --config configs/vp/digits_ddpmpp_continuous.py --workdir runs/digits \
        --mode train

Later calls find the config in the work directory. Any key of it can be overridden, for example
with --config.training.batch_size=64 (configs/keys.py explains the keys):

    python main.py --workdir runs/digits --mode eval
    python main.py --workdir runs/digits --mode sample --num_samples 100
    python main.py --workdir runs/digits --mode control --task inpaint --mask right

These modes train a classifier for guidance towards classes, compute the statistics of the data set
for FID and KID, describe the data set and suggest sigma_max, and measure the samples of any model:

    python main.py --config configs/vp/digits_wideresnet.py --workdir runs/classifier \
        --mode classifier
    python main.py --config configs/vp/cifar10_ddpmpp_continuous.py --mode stats
    python main.py --config configs/ve/cifar10_ncsnpp_continuous.py --mode data
    python main.py --config configs/vp/digits_ddpmpp_continuous.py --workdir runs/adm \
        --mode metrics --input samples.npz

With several GPUs: torchrun --nproc_per_node=4 main.py ... (not for --mode control and data).
"""

import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import app, flags

from commands.command_line import exit_with, log_to, parse_flags

# Modes --------------------------------------------------------------------------------------------


def _train(config, workdir):
    import run_lib

    run_lib.train(config, workdir)


def _evaluate(config, workdir):
    import run_lib

    run_lib.evaluate(config, workdir, FLAGS.eval_folder)


def _sample(config, workdir):
    from commands.sample import sample

    sample(config, workdir, FLAGS.checkpoint, FLAGS.num_samples, FLAGS.output)


def _control(config, workdir):
    from commands import control

    request = {name: FLAGS[name].value for name in control.Request._fields}
    control.control(config, workdir, FLAGS.task, **request)


def _train_classifier(config, workdir):
    import run_lib

    run_lib.train_classifier(config, workdir)


def _compute_statistics(config, workdir):
    from commands.stats import statistics

    statistics(config, workdir)


def _measure_samples(config, workdir):
    from commands import sample_metrics

    sample_metrics.measure(config, workdir, FLAGS.input, FLAGS.reference, FLAGS.output)


def _describe_data(config, workdir):
    from commands.data import describe_data

    describe_data(config, workdir)


class Mode(NamedTuple):
    """The function `run(config, workdir)` of a mode, and its requirements.

    workdir: whether --workdir is required.
    shared: whether several processes can share the work.
    computes: whether it computes batches of images, so that freed memory should be kept for reuse.
    """

    run: Callable
    workdir: bool = True
    shared: bool = True
    computes: bool = True


MODES = {
    'train': Mode(_train),
    'eval': Mode(_evaluate),
    'sample': Mode(_sample),
    'control': Mode(_control, shared=False),
    'classifier': Mode(_train_classifier),
    'stats': Mode(_compute_statistics, workdir=False),
    'metrics': Mode(_measure_samples),
    'data': Mode(_describe_data, workdir=False, shared=False, computes=False),
}

# Flags --------------------------------------------------------------------------------------------

FLAGS = flags.FLAGS
flags.DEFINE_string(
    'config',
    None,
    'Config file, or FILE:ARGUMENT. Default: the config stored in workdir. '
    '--config.section.key=value overrides a value.',
)
flags.DEFINE_string(
    'workdir', None, 'Folder for checkpoints, samples and logs. Created if it does not exist.'
)
flags.DEFINE_enum('mode', None, list(MODES), 'The task of this call.')
flags.DEFINE_string('eval_folder', 'eval', 'Folder within workdir for the results of --mode eval.')
flags.DEFINE_integer('num_samples', 64, 'Number of images for --mode sample.', lower_bound=1)
flags.DEFINE_string(
    'checkpoint',
    '',
    'Checkpoint file for --mode sample and control. Default: the latest of workdir.',
)
flags.DEFINE_string(
    'output',
    '',
    'Folder for the results of --mode sample, control and metrics. '
    'Default: workdir/generated, workdir/control_{task} or workdir/metrics_{input}.',
)
flags.DEFINE_string(
    'task',
    '',
    'Task of --mode control. For pictures: inpaint, colorize, upscale2, upscale4 or deblur. For '
    'labels: classes. For latent codes: reconstruct, interpolate, temper or mix. The name of your '
    'own registered measurement is accepted too.',
)
flags.DEFINE_string(
    'input',
    '',
    'For --mode control: a picture, or a folder or zip file of pictures. Default: test images of '
    'the data set. For --mode metrics: a folder, zip file or npz file of samples.',
)
flags.DEFINE_string(
    'reference',
    '',
    'Real images for --mode metrics: a folder, zip file or npz file. Default: the data set.',
)
flags.DEFINE_string(
    'mask',
    '',
    'For --task inpaint: the missing region (left, right, top, bottom, center, border; half or '
    'most: random pixels), or a mask image that is white where the image is known.',
)
flags.DEFINE_string(
    'labels',
    '',
    'Class labels, such as 3,5,8: the classes to draw (--task classes), one label for each image, '
    'or one label for all images.',
)
flags.DEFINE_string(
    'classifier',
    '',
    'Classifier for guidance to --labels: a work directory of --mode classifier, or a checkpoint '
    'in it.',
)
flags.DEFINE_bool(
    'measured',
    False,
    'For upscale2, upscale4 and deblur: the images at --input are already downsampled or blurred.',
)
flags.DEFINE_bool(
    'force_config',
    False,
    'Accept a config that does not match the trained model, with a warning for each key that '
    'differs.',
)
flags.mark_flags_as_required(['config', 'mode'])


@flags.multi_flags_validator(
    ['mode', 'workdir'], '--workdir is required: the folder for checkpoints, samples and logs'
)
def _has_workdir(given):
    mode = MODES.get(given['mode'])
    return given['workdir'] is not None or mode is None or not mode.workdir


# The program --------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> None:
    """Run the mode that the flags name; report mistakes of the user in one line."""
    if len(argv) > 1:
        sys.exit(f'error: unexpected arguments: {" ".join(argv[1:])}')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    from configs.defaults import complete
    from runtime import distributed
    from runtime.errors import UserError
    from runtime.interruption import Interrupted

    timeout = complete(FLAGS.config).timeout_minutes
    try:
        _run(MODES[FLAGS.mode], timeout)
    except UserError as error:
        exit_with(error)
    except Interrupted as error:
        # thread pools would first finish their queues: kernels to compile, images to decode
        _exit_at_once(error.code)
    except RuntimeError as error:
        if not distributed.is_loss(error):
            raise
        print(
            f'error: process {distributed.rank()} of {distributed.size()}: another process of '
            'this job has died, or did not respond within '
            f'config.timeout_minutes={timeout:g}: {str(error).splitlines()[0]}',
            file=sys.stderr,
        )
        _exit_at_once(1)  # tidying up would wait for the other processes


def _run(mode: Mode, timeout: float):
    """Join the other processes of the job, if any, start the log and do the work."""
    from runtime import distributed
    from runtime.errors import UserError
    from runtime.memory import keep_memory

    config, workdir = FLAGS.config, FLAGS.workdir
    if not mode.shared and int(os.environ.get('WORLD_SIZE', 1)) > 1:
        raise UserError(f'--mode {FLAGS.mode} runs in a single process: start it without torchrun')
    if 'device' in config:
        config.device = distributed.start(config.device, timeout)
        if mode.computes:
            keep_memory(config.device)
    is_main = distributed.is_main()
    log_to(pathlib.Path(workdir, 'stdout.txt') if workdir and is_main else None, is_main)
    mode.run(config, workdir)
    several = distributed.size() > 1
    distributed.stop()
    if several:
        # threads that PyTorch keeps for the job can crash the process during the usual shutdown
        _exit_at_once(0)


def _exit_at_once(code: int):
    """End the process without the usual shutdown of the interpreter."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)
