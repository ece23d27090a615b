"""Score-based generative modelling through SDEs: train, evaluate, sample, control; describe data
and compute their statistics.

  python main.py --config configs/vp/digits_ddpmpp_continuous.py --workdir runs/digits --mode train
  python main.py --workdir runs/digits --mode eval                         # with the config stored
  in the work directory python main.py --workdir runs/digits --mode sample --num_samples 100
  python main.py --workdir runs/digits --mode control --task inpaint --mask right
  python main.py --config configs/vp/digits_wideresnet.py --workdir runs/classifier --mode
  classifier    # for guidance towards classes python main.py --config
  configs/vp/cifar10_ddpmpp_continuous.py --mode stats     # statistics of the data, for FID and KID
  python main.py --config configs/vp/digits_ddpmpp_continuous.py --workdir runs/adm --mode metrics
  --input samples.npz  # of any model python main.py --config
  configs/ve/cifar10_ncsnpp_continuous.py --mode data      # describes the data, suggests sigma_max

Several GPUs: torchrun --nproc_per_node=4 main.py ... (for train, classifier, eval, sample and
stats). Any key of the config can be overridden: --config.training.batch_size=64
(configs/defaults.py explains the keys).
"""

import os
import pathlib
import sys

from absl import app, flags

from commands.command_line import exit_with, log_to, parse_flags

FLAGS = flags.FLAGS
flags.DEFINE_string(
    'config',
    None,
    'Config file, or FILE:ARGUMENT. Default: the config stored in '
    'workdir. --config.section.key=value '
    'overrides a value.',
)
flags.DEFINE_string(
    'workdir', None, 'Folder for checkpoints, samples and logs. Created if it does not exist.'
)
flags.DEFINE_enum(
    'mode',
    None,
    ['train', 'eval', 'sample', 'control', 'classifier', 'stats', 'metrics', 'data'],
    'What to do.',
)
flags.DEFINE_string('eval_folder', 'eval', 'Folder within workdir for the results of --mode eval.')
flags.DEFINE_integer('num_samples', 64, 'Number of images for --mode sample.', lower_bound=1)
flags.DEFINE_string(
    'checkpoint',
    '',
    'Checkpoint file for --mode sample and control; the latest of workdir by default.',
)
flags.DEFINE_string(
    'output',
    '',
    'Folder for the results of --mode sample, control and metrics. '
    'Default: workdir/generated, '
    'workdir/control_{task} or workdir/metrics_{input}.',
)
flags.DEFINE_string(
    'task',
    '',
    'For --mode control: inpaint, colorize, upscale2, upscale4 or '
    'deblur a picture; draw classes; reconstruct, '
    'interpolate, temper or mix latent codes; or a task of your own.',
)
flags.DEFINE_string(
    'input',
    '',
    'For --mode control: a picture, or a folder or zip file of '
    'pictures. Default: test images of the data '
    'set. For --mode metrics: a folder, zip file or npz file of samples.',
)
flags.DEFINE_string(
    'reference',
    '',
    'Real images for --mode metrics: a folder, a zip file or an npz file; the data set by default.',
)
flags.DEFINE_string(
    'mask',
    '',
    'For --task inpaint: the missing region (left, right, top, bottom, '
    'center, border, or half or most of the '
    'pixels at random), or a mask image, white where the image is known.',
)
flags.DEFINE_string(
    'labels',
    '',
    'Class labels, such as 3,5,8: the classes to draw (--task '
    'classes), or one label per image, or for all.',
)
flags.DEFINE_string(
    'classifier',
    '',
    'Classifier for guidance to --labels: a work directory of '
    '--mode classifier, or a checkpoint in it.',
)
flags.DEFINE_bool(
    'measured',
    False,
    'For upscale2, upscale4 and deblur: the images at --input are already downsampled or blurred.',
)
flags.DEFINE_bool(
    'force_config',
    False,
    'Accept a config that does not match the trained model, '
    'with a warning for each key that '
    'differs.',
)
flags.mark_flags_as_required(['config', 'mode'])


@flags.multi_flags_validator(
    ['mode', 'workdir'], '--workdir is needed: the folder for checkpoints, samples and logs'
)
def _has_workdir(given):
    return given['workdir'] is not None or given['mode'] in ('stats', 'data', None)


def main(argv):
    if len(argv) > 1:
        sys.exit(f'error: unexpected arguments: {" ".join(argv[1:])}')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    import run_lib
    from commands import control, sample_metrics
    from commands.data import describe_data
    from commands.sample import sample
    from commands.stats import statistics
    from configs.defaults import complete
    from runtime import distributed
    from runtime.errors import UserError
    from runtime.interruption import Interrupted

    config, workdir, timeout = FLAGS.config, FLAGS.workdir, complete(FLAGS.config).timeout_minutes
    try:
        if FLAGS.mode in ('control', 'data') and int(os.environ.get('WORLD_SIZE', 1)) > 1:
            raise UserError(
                f'--mode {FLAGS.mode} runs in a single process: start it without torchrun'
            )
        if 'device' in config:
            config.device = distributed.start(config.device, timeout)
        log_to(
            workdir and distributed.is_main() and pathlib.Path(workdir, 'stdout.txt'),
            distributed.is_main(),
        )
        if FLAGS.mode == 'train':
            run_lib.train(config, workdir)
        elif FLAGS.mode == 'classifier':
            run_lib.train_classifier(config, workdir)
        elif FLAGS.mode == 'eval':
            run_lib.evaluate(config, workdir, FLAGS.eval_folder)
        elif FLAGS.mode == 'sample':
            sample(config, workdir, FLAGS.checkpoint, FLAGS.num_samples, FLAGS.output)
        elif FLAGS.mode == 'stats':
            statistics(config, workdir)
        elif FLAGS.mode == 'metrics':
            sample_metrics.measure(config, workdir, FLAGS.input, FLAGS.reference, FLAGS.output)
        elif FLAGS.mode == 'control':
            control.control(
                config,
                workdir,
                FLAGS.task,
                **{name: FLAGS[name].value for name in control.Request._fields},
            )
        else:
            describe_data(config, workdir)
        several = distributed.size() > 1
        distributed.stop()
        # threads that PyTorch kept for the job can abort a process while the interpreter shuts down
        if several:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    except UserError as error:
        exit_with(error)
    except Interrupted as error:
        sys.stderr.flush()
        # an orderly end would first do all that waits in pools of threads: kernels to compile,
        # images to decode
        os._exit(error.code)
    except RuntimeError as error:
        if not distributed.is_loss(error):
            raise
        print(
            f'error: process {distributed.rank()} of {distributed.size()}: another process of '
            'this job has died, or did not answer '
            f'within config.timeout_minutes={timeout:g}: {str(error).splitlines()[0]}',
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # what would be tidied up waits for the others


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)
