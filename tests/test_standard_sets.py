"""CIFAR-10, SVHN, MNIST, Fashion-MNIST and CelebA of torchvision, and any set of TFDS by name.

The files are small, in the formats of torchvision.
"""

import functools
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torchvision.datasets as vision
from PIL import Image
from scipy.io import savemat

import datasets
from conftest import ROOT, load_config
from data import torchvision_sets
from data.tensorflow_sets import celeba_crop
from runtime.errors import UserError
from runtime.tensorflow import tensorflow

UNCHECKED = """
import torchvision.datasets as vision
# without MD5 sums, which small files do not have
vision.CIFAR10.train_list = [[name, None] for name, _ in vision.CIFAR10.train_list]
vision.CIFAR10.test_list = [[name, None] for name, _ in vision.CIFAR10.test_list]
vision.CIFAR10.meta = vision.CIFAR10.meta | dict(md5=None)
"""
CLASSES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']


def config_of(dataset, size, channels, **data):
    return load_config(
        'configs.vp.digits_ddpmpp_continuous',
        dict(dataset=dataset, image_size=size, num_channels=channels, **data),
    )


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write_cifar10(root):
    folder = root / 'cifar-10-batches-py'
    folder.mkdir(parents=True)
    for k, name in enumerate([f'data_batch_{k}' for k in range(1, 6)] + ['test_batch']):
        (folder / name).write_bytes(
            pickle.dumps({'data': noise(4, 3072, seed=k), 'labels': [k, 1, 2, 3]})
        )
    (folder / 'batches.meta').write_bytes(pickle.dumps({'label_names': CLASSES}))


def write_idx(root, name='MNIST', seed=0):
    folder = root / name / 'raw'
    folder.mkdir(parents=True)
    for part, n in (('train', 20), ('t10k', 6)):
        (folder / f'{part}-images-idx3-ubyte').write_bytes(
            struct.pack('>4i', 2051, n, 28, 28) + noise(n, 28, 28, seed=seed + n).tobytes()
        )
        (folder / f'{part}-labels-idx1-ubyte').write_bytes(
            struct.pack('>2i', 2049, n) + bytes(k % 10 for k in range(n))
        )


def test_cifar10_has_its_images_in_the_order_of_the_files(tmp_path, monkeypatch):
    for name in ('train_list', 'test_list', 'meta'):
        monkeypatch.setattr(vision.CIFAR10, name, getattr(vision.CIFAR10, name))
    exec(UNCHECKED, {})
    write_cifar10(tmp_path)
    config = config_of('CIFAR10', 32, 3, source='torchvision', path=str(tmp_path))
    train, test = (datasets.get_split(config, split) for split in ('train', 'test'))
    rows = np.concatenate([noise(4, 3072, seed=k) for k in range(5)])
    assert (
        np.array_equal(train.images, rows.reshape(20, 3, 32, 32).transpose(0, 2, 3, 1))
        and train.levels == 256
    )
    assert (
        list(train.labels[::4]) == [0, 1, 2, 3, 4]
        and train.labels.dtype == np.int64
        and train.classes == tuple(CLASSES)
    )
    assert np.array_equal(
        test.images, noise(4, 3072, seed=5).reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)
    )
    assert list(test.labels) == [5, 1, 2, 3]
    assert datasets.get_dataset(config, evaluation=True)[2] is None  # there is no builder of TFDS


def test_svhn_label_of_the_digit_0_is_0(tmp_path, monkeypatch):
    monkeypatch.setattr(
        vision.SVHN,
        'split_list',
        {split: [*entry[:2], None] for split, entry in vision.SVHN.split_list.items()},
    )
    images = noise(6, 32, 32, 3)
    for split in ('train', 'test'):
        savemat(
            tmp_path / f'{split}_32x32.mat',
            {'X': images.transpose(1, 2, 3, 0), 'y': np.array([[10], [1], [2], [3], [9], [10]])},
        )
    found = datasets.get_split(
        config_of('SVHN', 32, 3, source='torchvision', path=str(tmp_path)), 'test'
    )
    assert np.array_equal(found.images, images) and list(found.labels) == [0, 1, 2, 3, 9, 0]


@pytest.mark.parametrize('dataset, folder', [('MNIST', 'MNIST'), ('fashionmnist', 'FashionMNIST')])
def test_mnist_and_fashion_mnist_use_torchvision_by_default(tmp_path, monkeypatch, dataset, folder):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    write_idx(tmp_path / 'datasets', folder)
    config = config_of(dataset, 28, 1)
    train, test = (datasets.get_split(config, split) for split in ('train', 'test'))
    assert np.array_equal(train.images[..., 0], noise(20, 28, 28, seed=20)) and list(
        train.labels
    ) == [k % 10 for k in range(20)]
    assert np.array_equal(test.images[..., 0], noise(6, 28, 28, seed=6)) and train.images.shape == (
        20,
        28,
        28,
        1,
    )
    assert datasets.has_held_out(config) and datasets.get_levels(config) == 256


def smooth(n, seed=0):
    """Return n smooth pictures of 218 x 178 pixels, the size of CelebA."""
    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize((178, 218), Image.BICUBIC))
            for image in noise(n, 14, 11, 3, seed=seed)
        ]
    )


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """Four training pictures, two validation pictures and one test picture, stored losslessly."""
    monkeypatch.setattr(
        vision.CelebA, 'file_list', [(key, None, name) for key, _, name in vision.CelebA.file_list]
    )
    folder, images = tmp_path / 'celeba', smooth(7)
    (folder / 'img_align_celeba').mkdir(parents=True)
    names = [f'{k:06d}.jpg' for k in range(1, 8)]
    for name, image in zip(names, images):
        Image.fromarray(image).save(folder / 'img_align_celeba' / name, format='png')
    (folder / 'list_eval_partition.txt').write_text(
        ''.join(f'{name} {part}\n' for name, part in zip(names, (0, 0, 0, 0, 1, 1, 2)))
    )
    (folder / 'identity_CelebA.txt').write_text(''.join(f'{name} 1\n' for name in names))
    for name in ('list_bbox_celeba.txt', 'list_landmarks_align_celeba.txt', 'list_attr_celeba.txt'):
        (folder / name).write_text('7\nvalue\n' + ''.join(f'{name} 1\n' for name in names))
    return functools.partial(
        config_of, 'CELEBA', channels=3, source='torchvision', path=str(tmp_path)
    ), images


def test_celeba_is_the_middle_140_pixels_and_tests_on_the_validation_set(celeba):
    config, images = celeba
    train, test = (datasets.get_split(config(size=140), split) for split in ('train', 'test'))
    assert np.array_equal(train.images, images[:4, 39:179, 19:159]) and np.array_equal(
        test.images, images[4:6, 39:179, 19:159]
    )


def test_celeba_is_reduced_as_by_tensorflow(celeba):
    config, images = celeba
    tf = tensorflow()
    ours = datasets.get_split(config(size=64), 'train').images
    theirs = np.stack([celeba_crop(tf.constant(image), 64).numpy() for image in images[:4]])
    # half a grey level of rounding, and the error of float32 sums
    assert np.abs(ours - theirs).max() < 0.501


def test_a_corrupt_picture_of_celeba_is_named_or_skipped(celeba, tmp_path):
    config, images = celeba
    (tmp_path / 'celeba' / 'img_align_celeba' / '000002.jpg').write_bytes(b'nothing')
    with pytest.raises(
        UserError,
        match=r'000002\.jpg cannot be read: '
        r'.*--config\.data\.on_error=skip',
    ):
        datasets.get_split(config(size=64), 'train')
    assert len(datasets.get_split(config(size=64, on_error='skip'), 'train')) == 3


def test_neither_loading_nor_training_imports_tensorflow(tmp_path):
    """Loading and training work in a new process in which TensorFlow cannot be imported."""
    write_cifar10(tmp_path)
    write_idx(tmp_path)
    code = f"""
import sys
sys.modules.update(tensorflow=None, tensorflow_datasets=None)
{UNCHECKED}
import datasets, run_lib
from commands.sample import sample
from configs.vp import cifar10_ddpmpp_continuous, mnist_ddpmpp_continuous
config = cifar10_ddpmpp_continuous.get_config()
config.data.update(source='torchvision', path={str(tmp_path)!r})
print(datasets.get_split(config, 'train').images.shape)
config = mnist_ddpmpp_continuous.get_config()
config.device, config.data.path = 'cpu', {str(tmp_path)!r}
config.model.update(nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
config.training.update(batch_size=4, n_iters=2, snapshot_sampling=False)
config.sampling.steps = 2
run_lib.train(config, {str(tmp_path / 'w')!r})
print(len([*sample(config, {str(tmp_path / 'w')!r}, num_samples=2).glob('*.png')]))
"""
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ['(20, 32, 32, 3)', '3']  # two samples and their grid


def no_network(host):
    raise OSError(f'no way to {host}')


@pytest.mark.parametrize(
    'dataset, size, channels, host, files',
    [
        ('CIFAR10', 32, 3, 'www.cs.toronto.edu', 'cifar-10-batches-py'),
        ('SVHN', 32, 3, 'ufldl.stanford.edu', 'train_32x32.mat'),
        ('MNIST', 28, 1, 'ossci-datasets', 'MNIST/raw'),
        ('CelebA', 64, 3, 'drive.google.com', 'celeba'),
    ],
)
def test_a_failed_download_raises_an_error_with_a_remedy(
    tmp_path, monkeypatch, dataset, size, channels, host, files
):
    monkeypatch.setattr(torchvision_sets, 'require_network', no_network)
    with pytest.raises(UserError) as caught:
        datasets.get_split(
            config_of(dataset, size, channels, source='torchvision', path=str(tmp_path)), 'train'
        )
    message = str(caught.value)
    assert all(
        word in message
        for word in (
            f"config.data.dataset='{dataset}'",
            host,
            files,
            str(tmp_path),
            'config.data.path',
            'NPZ',
        )
    )
    assert '\n' not in message and not [*tmp_path.iterdir()]


def test_missing_files_are_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision_sets, 'require_network', lambda host: None)
    monkeypatch.setattr(vision.MNIST, 'download', lambda self: write_idx(tmp_path))
    assert len(datasets.get_split(config_of('MNIST', 28, 1, path=str(tmp_path)), 'test')) == 6


@pytest.mark.parametrize(
    'data, words',
    [
        (
            dict(
                dataset='LSUN',
                image_size=64,
                num_channels=3,
                category='bedroom',
                source='torchvision',
            ),
            "config.data.source='torchvision' has no LSUN, only CIFAR10, SVHN, MNIST, "
            'FASHIONMNIST, '
            "CELEBA: set config.data.source=''",
        ),
        (dict(dataset='DIGITS', source='tfds'), "config.data.source='tfds' has no DIGITS"),
        (
            dict(dataset='tfds:mnist', source='torchvision'),
            "config.data.source is 'torchvision': expected '' or 'tfds'",
        ),
        (
            dict(dataset='tfds:'),
            "config.data.dataset must be one of CIFAR10, .* or 'tfds:NAME' .*, got 'tfds:'",
        ),
        (
            dict(dataset='MNIST', image_size=32, num_channels=1),
            'MNIST: its images have 28x28 pixels',
        ),
    ],
)
def test_unsupported_sources_of_a_data_set_raise_an_error(data, words):
    with pytest.raises(UserError, match=words):
        datasets.get_source(load_config('configs.vp.digits_ddpmpp_continuous', data))


def test_a_file_instead_of_the_folder_raises_an_error(tmp_path):
    (tmp_path / 'mnist.npz').write_bytes(b'')
    with pytest.raises(
        UserError,
        match=r'mnist\.npz. is a file, but MNIST needs the folder that '
        r'contains MNIST/raw\. .*dataset=NPZ$',
    ):
        datasets.get_split(config_of('MNIST', 28, 1, path=str(tmp_path / 'mnist.npz')), 'train')
    assert torchvision_sets.root(config_of('MNIST', 28, 1, path='~/x').data).is_absolute()


# Any data set of TFDS -----------------------------------------------------------------------------


def prepare(path, name, splits=('train', 'test'), labelled=True, key='image', version='1.0.0'):
    """Write a TFDS data set with 12 grey images per split, and return the images by split."""
    tf, tfds = tensorflow(), pytest.importorskip('tensorflow_datasets')
    features = {key: tfds.features.Image(shape=(28, 28, 1))} | (
        {'label': tfds.features.ClassLabel(num_classes=10)} if labelled else {}
    )
    images = {split: noise(12, 28, 28, 1, seed=k) for k, split in enumerate(splits)}
    labels = {'label': np.arange(12) % 10} if labelled else {}
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=version,
        data_dir=str(path),
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices({key: x} | labels)
            for split, x in images.items()
        },
    )
    return images


def contents(images, labels):
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels))


@pytest.mark.parametrize('labelled', [True, False])
def test_any_data_set_of_tfds_by_name(tmp_path, labelled):
    images = prepare(tmp_path, 'of_mine', labelled=labelled)
    config = config_of('tfds:of_mine', 28, 1, tfds_dir=str(tmp_path))
    for split in images:
        found = datasets.get_split(config, split)
        assert contents(found.images, found.labels) == contents(
            images[split], np.arange(12) % 10 * labelled
        )
    assert (
        datasets.get_name(config) == 'tfds_of_mine_28'
        and datasets.describe(config, 'test')['dataset'] == 'TFDS:OF_MINE'
    )
    config.data.image_size = 14  # the middle square, here the whole image, is reduced
    assert datasets.get_split(config, 'test').images.shape == (12, 14, 14, 1)


def test_data_sets_of_tfds_without_splits_or_images_raise_an_error(tmp_path):
    prepare(tmp_path, 'one_split', splits=('train',))
    with pytest.raises(
        UserError,
        match="'tfds:one_split' needs a split 'test': its splits are train. .*NPZ or FOLDER$",
    ):
        datasets.get_dataset(config_of('tfds:one_split', 28, 1, tfds_dir=str(tmp_path)))
    prepare(tmp_path, 'no_image', key='picture')
    with pytest.raises(
        UserError,
        match="needs a feature 'image' of shape .*: its features are .*picture",
    ):
        datasets.get_dataset(config_of('tfds:no_image', 28, 1, tfds_dir=str(tmp_path)))


def test_mnist_through_tfds_has_the_same_images_as_through_torchvision(tmp_path):
    images = prepare(tmp_path, 'mnist', version='3.0.1')
    found = datasets.get_split(
        config_of('MNIST', 28, 1, tfds_dir=str(tmp_path), source='tfds'), 'test'
    )
    assert contents(found.images, found.labels) == contents(images['test'], np.arange(12) % 10)
