"""Training, evaluation and sampling: the wiring of data, SDE, network, loss, sampler and files. The mathematics is elsewhere."""
import contextlib
import math
import pathlib
import sys
import time
import types

import numpy as np
import torch
from absl import logging
from tqdm import tqdm

import checkpoints
import datasets
import evaluation
import likelihood
import losses
import preflight
import reports
import sampling
import sde_lib
from models import utils as mutils
from models.ema import ExponentialMovingAverage


def create_state(config) -> dict:
    """A fresh training state: model, optimizer, ema, step."""
    model = mutils.create_model(config)
    return dict(model=model, optimizer=losses.get_optimizer(config, model.parameters()),
                ema=ExponentialMovingAverage(model.parameters(), decay=config.model.ema_rate), step=0)


def load_averaged_model(config, path):
    """The network of a checkpoint, with its averaged weights, ready to sample from."""
    model = mutils.create_model(config)
    state = dict(model=model, ema=ExponentialMovingAverage(model.parameters(), decay=config.model.ema_rate), step=0)
    checkpoints.restore(path, state, config.device)
    state['ema'].copy_to(model.parameters())
    logging.info('Loaded %s, of training step %d.', path, state['step'])
    return model.eval()


def to_tensor(batch: dict, config, scaler) -> torch.Tensor:
    """The images of a batch as networks see them: (B, C, H, W) on the config's device."""
    return scaler(torch.from_numpy(batch['image']).permute(0, 3, 1, 2).contiguous().to(config.device))


def to_images(samples: torch.Tensor, config) -> np.ndarray:
    """Samples (B, C, H, W) in [0, 1] as 8-bit images (B, H, W, C)."""
    images = samples.permute(0, 2, 3, 1).cpu().numpy()
    return datasets.to_uint8(images, datasets.get_levels(config), config.data.uniform_dequantization)


def progress(iterable, **settings):
    """`iterable` behind a progress bar on a terminal; elsewhere the log has to do."""
    return tqdm(iterable, disable=not sys.stderr.isatty(), dynamic_ncols=True, **settings)


@contextlib.contextmanager
def shown_evaluations(model, what: str):
    """Counts the evaluations of `model` on a terminal while the block lasts."""
    with progress(None, desc=what, unit=' network evaluations', leave=False) as bar:
        def count(*_):
            bar.update()
        hook = model.register_forward_hook(count)
        try:
            yield
        finally:
            hook.remove()


@contextlib.contextmanager
def own_randomness(seed: int):
    """Random numbers from `seed`, leaving the stream outside the block as it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _random_state() -> dict:
    return dict(cpu=torch.get_rng_state(), cuda=torch.cuda.get_rng_state_all())


def _set_random_state(state: dict | None):
    if state is None:  # the checkpoint of a release that saved none
        return
    torch.set_rng_state(state['cpu'].cpu())
    if len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state['cuda']])


def _draw(config, model, count: int) -> np.ndarray:
    """`count` samples as 8-bit images (count, H, W, C), by the config's sampler."""
    sde = sde_lib.get_sde(config)
    sde.N = config.sampling.get('steps') or sde.N
    shape = (count, config.data.num_channels, config.data.image_size, config.data.image_size)
    sampler = sampling.get_sampling_fn(config, sde, shape, datasets.get_data_inverse_scaler(config), sde.sampling_eps)
    with shown_evaluations(model, f'drawing {count} samples'):
        samples, nfe = sampler(model)
    logging.info('Drew %d samples with %d network evaluations.', count, nfe)
    return to_images(samples, config)


def _batch_sizes(total: int, largest: int) -> list[int]:
    return [min(largest, total - start) for start in range(0, total, largest)]


def train(config, workdir):
    """Trains the network of `config`, or goes on with the training in `workdir`, up to `training.n_iters` steps."""
    preflight.check(config, workdir, 'train')
    workdir, settings, scaler = pathlib.Path(workdir), config.training, datasets.get_data_scaler(config)
    torch.manual_seed(config.seed)
    state = create_state(config)
    resume = checkpoints.resume_path(workdir)
    if resume.is_file():
        state['rng'] = None
        checkpoints.restore(resume, state, config.device)
        _set_random_state(state.pop('rng'))
        logging.info('Going on from step %d of %s.', state['step'], resume)
    first, last = state['step'], settings.n_iters - 1
    if first > last:
        logging.info('Training has reached step %d of config.training.n_iters=%d: nothing to do.', first, settings.n_iters)
        return

    train_ds, eval_ds, _ = datasets.get_dataset(config, config.data.uniform_dequantization, start=first)
    eval_batches = iter(eval_ds)
    sde = sde_lib.get_sde(config)
    loss_settings = dict(reduce_mean=settings.reduce_mean, continuous=settings.continuous,
                         likelihood_weighting=settings.likelihood_weighting)
    train_step = losses.get_step_fn(sde, train=True, optimize_fn=losses.optimization_manager(config), **loss_settings)
    eval_step = losses.get_step_fn(sde, train=False, **loss_settings)

    with tensorboard(workdir, first) as writer:
        started, metrics = time.monotonic(), {}
        bar = progress(zip(range(first, settings.n_iters), train_ds), initial=first, total=settings.n_iters, desc='training', unit='step')
        for step, batch in bar:
            loss = train_step(state, to_tensor(batch, config, scaler), metrics)
            if step % settings.log_freq == 0 or step == last:
                rate = (step - first + 1) * settings.batch_size / (time.monotonic() - started)
                logging.info('step: %d, training_loss: %.5e, images/s: %.0f', step, loss.item(), rate)
                write(writer, step, training_loss=loss, learning_rate=state['optimizer'].param_groups[0]['lr'],
                      gradient_norm=metrics['grad_norm'], images_per_second=rate)
                if not torch.isfinite(metrics['grad_norm']):
                    logging.warning('step: %d, the gradient is not finite: the step was skipped', step)
            if step % settings.eval_freq == 0:
                with own_randomness(config.seed + step):
                    eval_loss = eval_step(state, to_tensor(next(eval_batches), config, scaler))
                logging.info('step: %d, eval_loss: %.5e', step, eval_loss.item())
                write(writer, step, eval_loss=eval_loss)
            if step == last or step > 0 and step % settings.snapshot_freq == 0:
                number = max(1, math.ceil(step / settings.snapshot_freq))
                checkpoints.save(checkpoints.snapshot_path(workdir, number), state)
                if settings.snapshot_sampling:
                    _save_training_samples(config, state, step, workdir, writer)
            if step == last or step > 0 and step % settings.snapshot_freq_for_preemption == 0:
                checkpoints.save(resume, state | dict(rng=_random_state()))  # last: what comes before it would be missing after a resume


def _save_training_samples(config, state, step, workdir, writer):
    """A batch of samples of the averaged weights, as `samples/iter_{step}/sample.np` and `.png`, and on TensorBoard."""
    model = state['model']
    with own_randomness(config.seed + step), state['ema'].applied_to(model.parameters()):
        images = _draw(config, model, config.training.batch_size)
    folder = workdir / 'samples' / f'iter_{step}'
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'sample.np', 'wb') as file:
        np.save(file, images)
    writer.add_image('samples', reports.save_grid(folder / 'sample.png', images), step)


@contextlib.contextmanager
def tensorboard(workdir, first_step: int):
    """A writer of TensorBoard files, in which steps from `first_step` on, of an interrupted run, give way to new ones."""
    sys.modules.setdefault('tensorboard.compat.notf', types.ModuleType('notf'))  # its own file writer: importing TensorFlow takes seconds
    from torch.utils.tensorboard import SummaryWriter
    with SummaryWriter(workdir / 'tensorboard', purge_step=first_step) as writer:
        sys.modules.pop('tensorboard.compat.notf')
        yield writer


def write(writer, step: int, **scalars):
    for name, value in scalars.items():
        writer.add_scalar(name, value, step)


def evaluate(config, workdir, eval_folder='eval'):
    """Loss, bits/dim and samples with their metrics, as `eval.enable_*` say, of the snapshots `eval.begin_ckpt` to `eval.end_ckpt`.

    Writes their files into `workdir/eval_folder` and logs a table for each snapshot.
    """
    numbers = range(config.eval.begin_ckpt, config.eval.end_ckpt + 1)
    preflight.check(config, workdir, 'eval', numbers)
    eval_dir = pathlib.Path(workdir, eval_folder)
    eval_dir.mkdir(parents=True, exist_ok=True)
    sde = sde_lib.get_sde(config)
    parts = [part for part, wanted in ((_evaluate_loss, config.eval.enable_loss), (_evaluate_bpd, config.eval.enable_bpd),
                                       (_evaluate_samples, config.eval.enable_sampling)) if wanted]
    for number in numbers:
        model = load_averaged_model(config, checkpoints.snapshot_path(workdir, number))
        for part in parts:
            with own_randomness(config.seed):
                part(config, sde, model, number, eval_dir)
        rows = reports.evaluation_rows(eval_dir, number)
        if rows:
            logging.info('Checkpoint %d, seed %d:\n%s', number, config.seed, reports.table(rows))


def _evaluate_loss(config, sde, model, number, eval_dir):
    settings = config.training
    _, eval_ds, _ = datasets.get_dataset(config, config.data.uniform_dequantization, evaluation=True)
    loss_fn = losses.get_loss_fn(sde, False, settings.reduce_mean, settings.continuous, settings.likelihood_weighting)
    scaler, values, sizes = datasets.get_data_scaler(config), [], []
    with torch.no_grad():
        for batch in progress(eval_ds, desc='loss', unit='batch'):
            values.append(loss_fn(model, to_tensor(batch, config, scaler)).item())
            sizes.append(len(batch['image']))
    mean = np.average(values, weights=sizes)
    logging.info('ckpt-%d loss: %.5e', number, mean)
    np.savez_compressed(eval_dir / f'ckpt_{number}_loss.npz', all_losses=np.array(values), mean_loss=mean, batch_sizes=np.array(sizes))


def _evaluate_bpd(config, sde, model, number, eval_dir):
    """Bits/dim of every image of the training or the test set, dequantised anew in each of `bpd_repeats` passes."""
    split = config.eval.bpd_dataset.lower()
    train_ds, test_ds, _ = datasets.get_dataset(config, uniform_dequantization=True, evaluation=True)
    images = train_ds if split == 'train' else test_ds
    scaler = datasets.get_data_scaler(config)
    likelihood_fn = likelihood.get_log_likelihood_fn(sde, datasets.get_data_inverse_scaler(config), continuous=config.training.continuous,
                                                     rtol=config.eval.get('bpd_rtol', 1e-5), atol=config.eval.get('bpd_atol', 1e-5),
                                                     probes=config.eval.get('bpd_probes', 1), levels=datasets.get_levels(config))
    for stale in eval_dir.glob(f'{split}_ckpt_{number}_bpd_*.npz'):
        stale.unlink()
    values, files = [], 0
    for repeat in range(config.eval.get('bpd_repeats', 5)):
        for batch in progress(images, desc='bits/dim', unit='batch'):
            with shown_evaluations(model, f'likelihood of {len(batch["image"])} images'):
                result = likelihood_fn(model, to_tensor(batch, config, scaler))
            bpd = result.bpd.cpu().numpy()
            np.savez_compressed(eval_dir / f'{split}_ckpt_{number}_bpd_{files}.npz', bpd=bpd, nats=result.nats.cpu().numpy(),
                                repeat=repeat, nfe=result.nfe)
            files += 1
            values.extend(bpd)
            logging.info('ckpt-%d bits/dim: %.4f, mean of %d likelihoods (nfe %d)', number, np.mean(values), len(values), result.nfe)


def _evaluate_samples(config, sde, model, number, eval_dir):
    """Exactly `num_samples` samples, and their metrics."""
    folder = eval_dir / f'ckpt_{number}'
    folder.mkdir(exist_ok=True)
    for stale in (*folder.glob('samples_*.npz'), *eval_dir.glob(f'report_{number}.npz')):
        stale.unlink()
    for i, size in enumerate(progress(_batch_sizes(config.eval.num_samples, config.eval.batch_size), desc='sampling', unit='batch')):
        images = _draw(config, model, size)
        np.savez_compressed(folder / f'samples_{i}.npz', samples=images)
        if i == 0:
            reports.save_grid(folder / 'samples.png', images[:100])
    if config.eval.get('metrics_backend', 'none') == 'pixels':
        samples = [reports.values(path, 'samples') for path in folder.glob('samples_*.npz')]
        source = datasets.get_source(config)
        train, test, _ = source.load(config)
        real, held_out = (datasets.to_uint8(images / (source.levels - 1), source.levels)
                          for images in (np.concatenate([train.images, test.images]), test.images))
        metrics = evaluation.pixel_metrics(np.concatenate(samples), held_out, real, config.seed)
        np.savez_compressed(eval_dir / f'report_{number}.npz', **metrics)


def sample(config, workdir, checkpoint='', num_samples=64, output=''):
    """Draws `num_samples` images from a checkpoint file (the latest of `workdir`) into the folder `output` (`workdir/generated`).

    Each becomes a PNG; `samples.npz` (key 'samples', 8 bits, NHWC) holds all, `grid.png` shows up to 100. Returns the folder.
    """
    preflight.check(config, workdir, 'sample')
    model = load_averaged_model(config, checkpoint or checkpoints.latest(workdir))
    folder = pathlib.Path(output or pathlib.Path(workdir, 'generated'))
    folder.mkdir(parents=True, exist_ok=True)
    with own_randomness(config.seed):
        images = np.concatenate([_draw(config, model, size) for size in progress(_batch_sizes(num_samples, config.eval.batch_size),
                                                                                 desc='sampling', unit='batch')])
    for i, image in enumerate(images):
        reports.save_image(folder / f'{i:05d}.png', image)
    np.savez_compressed(folder / 'samples.npz', samples=images)
    reports.save_grid(folder / 'grid.png', images[:100])
    logging.info('Wrote %d images, samples.npz and grid.png to %s.', len(images), folder)
    return folder
