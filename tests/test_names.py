"""File names that are not valid UTF-8."""

import logging
import os

import run_lib
from commands import command_line
from conftest import load_config
from data.folders import digest
from image_files import config_of, contents, crops, everything, folder, save
from reports import results


def test_names_need_not_be_utf8(tmp_path, caplog):
    """File names that are not valid UTF-8 work in data sets, in their digests and in the log."""
    images, odd = crops(9, 16), os.fsdecode(b'caf\xe9')
    path = folder(tmp_path / odd, images[:4])
    for k, image in enumerate(images):
        save(tmp_path / 'set' / odd / f'{odd}{k}.png', image)
    (tmp_path / 'set' / odd / 'gone.png').symlink_to(tmp_path / odd)
    (tmp_path / 'set' / odd / f'{odd}.png').write_text('no picture')
    config = config_of('FOLDER', 16, path=str(tmp_path / 'set'), test_fraction=0.0, on_error='skip')
    assert (
        contents(everything(config)[0]) == contents([*images, *images[:4]])
        and len(digest(config.data.path)) == 16
    )
    assert len(results.digest(tmp_path / 'set')) == len(results.digest(path)) == 16
    log = tmp_path / 'log.txt'
    handlers = logging.getLogger().handlers[:]
    try:
        command_line.log_to(log)
        everything(
            config_of(
                'FOLDER',
                16,
                path=str(tmp_path / 'set'),
                test_fraction=0.0,
                on_error='skip',
                memory_gib=4.0,
            )
        )
    finally:
        logging.getLogger().handlers[:] = handlers
    assert 'caf\\udce9.png is not a picture; skipped' in log.read_text()


def test_the_path_of_a_data_set_need_not_be_utf8(tmp_path):
    """Training, evaluation and the report work if the path is not valid UTF-8."""
    odd = os.fsdecode(b'caf\xe9')
    path, workdir = folder(tmp_path / odd / odd, crops(20, 8)[..., 0]), tmp_path / 'run'
    config = load_config('configs.vp.digits_ddpmpp_continuous', dict(dataset='FOLDER', path=path))
    config.device = 'cpu'
    config.model.update(nf=8, num_res_blocks=1, num_scales=25)
    config.training.update(batch_size=8, n_iters=1, snapshot_sampling=False)
    config.optim.warmup = 0
    config.eval.update(
        num_samples=4, enable_bpd=False, metrics_floor=False, stats_dir=str(tmp_path / 'stats')
    )
    run_lib.train(config, workdir)
    run_lib.evaluate(config, workdir)
    assert 'caf\\udce9' in (workdir / 'eval' / 'report.md').read_text()
