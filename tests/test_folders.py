"""Folders and zip files: classes, splits, links, unusual names."""

import logging
import os
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

import datasets
from data.folders import digest, has_test_set
from data.images import shown_classes
from image_files import (
    config_of,
    contents,
    crops,
    cut,
    encoded,
    everything,
    flip_byte,
    folder,
    save,
)
from runtime.errors import UserError


def test_sub_folders_are_labels_and_extensions_have_any_case(tmp_path):
    images = crops(4, 16)
    for image, name in zip(images, ('cats/a.PNG', 'dogs/deep/b.WebP', 'dogs/c.png', 'eels/d.Jpeg')):
        save(
            tmp_path / name,
            image,
            **(dict(quality=100, subsampling=0) if 'd.' in name else dict(lossless=True)),
        )
    save(tmp_path / 'dogs' / '.hidden.png', images[0])
    (tmp_path / 'notes.txt').write_text('no picture')
    found, labels = everything(config_of('Folder', 16, path=str(tmp_path), test_fraction=0.0))
    assert sorted(labels) == [0, 1, 1, 2]
    assert contents(found[labels < 2]) == contents(images[:3]) and np.array_equal(
        found[labels == 0][0], images[0]
    )
    assert np.abs(found[labels == 2][0].astype(int) - images[3]).mean() < 2  # JPEG


@pytest.mark.parametrize('names', [('train', 'test'), ('Training', 'VALID')])
def test_train_and_test_folders_are_the_splits(tmp_path, names):
    images, above = crops(6, 8), tmp_path / 'set'
    for k, place in enumerate(
        (f'{names[0]}/a', f'{names[0]}/b', f'{names[0]}/b', f'{names[1]}/a', f'{names[1]}/b')
    ):
        save(above / place / f'{k}.png', images[k])
    save(above / 'preview.png', images[5])  # belongs to neither split, and to no class
    config = config_of('FOLDER', 8, path=str(tmp_path))
    for split, expected, theirs in (
        ('train', images[:3], [0, 1, 1]),
        ('test', images[3:5], [0, 1]),
    ):
        found, labels = everything(config, split)
        assert contents(found) == contents(expected) and sorted(labels) == theirs


def test_a_fraction_is_held_out(tmp_path):
    images = crops(20, 8)
    config = config_of('FOLDER', 8, path=folder(tmp_path, images), test_fraction=0.25)
    train, test = (everything(config, split)[0] for split in ('train', 'test'))
    assert (len(train), len(test)) == (15, 5) and contents(
        np.concatenate([train, test])
    ) == contents(images)
    config.data.test_fraction = 0.0
    assert all(
        contents(everything(config, split)[0]) == contents(images) for split in ('train', 'test')
    )


def test_zip_file_is_as_good_as_a_folder_and_corruption_is_named(tmp_path):
    path, archive = folder(tmp_path / 'set', crops(9, 8), 'c{0}.png'), tmp_path / 'set.zip'
    with zipfile.ZipFile(archive, 'w') as file:
        for picture in (tmp_path / 'set').iterdir():
            file.write(picture, f'set/{picture.name}')
        start = file.getinfo('set/c7.png').header_offset
    config, expected = (
        config_of('FOLDER', 8, path=str(archive)),
        everything(config_of('FOLDER', 8, path=path)),
    )
    assert all(np.array_equal(a, b) for a, b in zip(everything(config), expected))
    flip_byte(archive, start + 100)
    with pytest.raises(UserError, match=r'set.zip: set/c7.png cannot be read: .*CRC'):
        everything(config), everything(config, 'test')
    cut(archive, 1000)
    with pytest.raises(UserError, match='neither a folder nor a zip file'):
        everything(config)


def test_errors_of_folders(tmp_path):
    (tmp_path / 'empty').mkdir()
    for data, message in (
        (dict(path=''), 'config.data.path is empty'),
        (dict(path='/nowhere'), "'/nowhere': not found"),
        (dict(path=str(tmp_path / 'empty')), 'contains no pictures'),
        (
            dict(path=folder(tmp_path / 'few', crops(7, 8)), test_fraction=0.0),
            'batch_size must be at most 7, .*got 8',
        ),
        (dict(path='x', on_error='ignore'), "on_error must be .*got 'ignore'"),
        (dict(path='x', fit='pad'), "fit must be .*got 'pad'"),
        (dict(path='x', test_fraction=1.0), 'test_fraction must be .*got 1.0'),
    ):
        with pytest.raises(UserError, match=message):
            datasets.get_dataset(config_of('FOLDER', 8, **data))


def test_names_of_choices_may_have_any_case(tmp_path):
    path = folder(tmp_path / 'all', crops(9, 8))
    (tmp_path / 'all' / 'broken.png').write_bytes(b'no picture')
    config = config_of(
        'FOLDER', 8, path=path, test_fraction=0.0, on_error='Skip', fit='Exact', layout='nhwc'
    )
    assert len(everything(config)[0]) == 9
    config.data.image_size = 4
    with pytest.raises(UserError, match='8x8'):
        everything(config)


def test_folders_other_than_train_and_test_are_left_out_and_logged(tmp_path, caplog):
    images = crops(6, 16)
    for name, part in (
        ('train', images[:3]),
        ('test', images[3:4]),
        ('val', images[4:5]),
        ('other', images[5:]),
    ):
        folder(tmp_path / name, part)
    config = config_of('FOLDER', 16, path=str(tmp_path))
    assert contents(everything(config, 'test')[0]) == contents(images[3:4]) and contents(
        everything(config)[0]
    ) == contents(images[:3])
    assert re.search('Left out 2 pictures of .* that lie outside train and test', caplog.text)


def test_the_digest_differs_between_data_sets(tmp_path):
    """The digest of a folder depends on names and sizes of pictures, that of arrays on the content.

    It does not depend on links in the path.
    """
    path = folder(tmp_path / 'a', crops(2, 16))
    first = digest(path)
    (tmp_path / 'a' / 'notes.txt').write_text('no picture')
    (tmp_path / 'linked').mkdir()
    assert digest(path) == first
    (tmp_path / 'b').symlink_to(tmp_path / 'a')
    assert digest(str(tmp_path / 'b')) == first
    folder(tmp_path / 'a', crops(1, 16, seed=1), 'more{}.png')
    assert digest(path) != first
    digests = set()
    for seed in range(2):
        np.savez(tmp_path / 'x.npz', images=crops(2, 16, seed=seed))  # equal file sizes
        digests.add(digest(str(tmp_path / 'x.npz')))
    assert len(digests) == 2


def test_a_set_without_a_readable_picture_is_an_error(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'no picture')
    with pytest.raises(UserError, match='train set of FOLDER has no images that can be read'):
        datasets.get_split(
            config_of('FOLDER', 8, path=str(tmp_path), on_error='skip', test_fraction=0.0), 'train'
        )


def test_a_broken_link_is_a_corrupt_picture(tmp_path):
    path = folder(tmp_path / 'a', crops(2, 16))
    (tmp_path / 'a' / 'gone.png').symlink_to(tmp_path / 'nowhere.png')
    assert (
        len(everything(config_of('FOLDER', 16, path=path, on_error='skip', test_fraction=0.0))[0])
        == 2
    )
    with pytest.raises(UserError, match='gone.png cannot be read: No such file'):
        everything(config_of('FOLDER', 16, path=path, test_fraction=0.0))


def test_all_formats_are_read_and_other_files_are_counted(tmp_path, caplog):
    """Only the first frame is used; files of operating systems are not counted."""
    images = crops(6, 16)
    for image, ending in zip(images, ('bmp', 'tif', 'TIFF', 'png')):
        save(tmp_path / f'a.{ending}', image)
    frames = [Image.fromarray(image).quantize(64) for image in images[4:]]
    frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
    Image.fromarray(images[5]).save(
        tmp_path / 'b.tif', save_all=True, append_images=[Image.fromarray(images[0])]
    )
    (tmp_path / '__MACOSX').mkdir()
    for name in (
        'a.heic',
        'notes.txt',
        'more.TXT',
        'LICENSE',
        '.hidden.png',
        '.DS_Store',
        'Thumbs.db',
        '._a.png',
        '__MACOSX/a.txt',
    ):
        (tmp_path / name).write_text('no picture')
    config = config_of('FOLDER', 16, path=str(tmp_path), test_fraction=0.0)
    found, _ = everything(config)
    everything(config, 'test')
    digest(config.data.path)
    assert contents(found) == contents(
        [*images[:4], np.asarray(frames[0].convert('RGB')), images[5]]
    )
    # logged once, for both splits and the digest
    (line,) = (
        record.getMessage() for record in caplog.records if 'Left out' in record.getMessage()
    )
    assert re.search('Left out 5 files of .* not read as pictures: 2 .txt, ', line)
    assert all(part in line for part in ('1 .heic', '1 without an ending', '1 hidden'))


LAYOUT = (
    'images/train/cats/0.png',
    'images/train/dogs/1.png',
    'images/val/cats/2.png',
    'images/val/dogs/3.png',
)


@pytest.mark.parametrize(
    'names, stray',
    [
        (LAYOUT, False),
        (LAYOUT, True),
        ([name.replace('images/', '') for name in LAYOUT], True),
        ([f'./{name}' for name in LAYOUT], False),
        (
            ('x/cats/train/0.png', 'x/dogs/train/1.png', 'x/cats/val/2.png', 'x/dogs/val/3.png'),
            True,
        ),
    ],
)
@pytest.mark.parametrize('how', ['folder', 'zip', 'zip made on Windows'])
def test_splits_and_classes_are_found_in_every_arrangement(tmp_path, names, stray, how, caplog):
    """Splits may be at any depth, inside or outside the class folders.

    A stray picture next to them is left out.
    """
    images = crops(5, 8)
    names = [*names, 'preview.png'] if stray else names
    if how == 'folder':
        for name, image in zip(names, images):
            save(tmp_path / 'set' / name, image)
        path = str(tmp_path / 'set')
    else:
        path = str(tmp_path / 'set.zip')
        with zipfile.ZipFile(path, 'w') as file:
            for name, image in zip(names, images):
                file.writestr(
                    name if how == 'zip' else name.replace('/', '\\'), encoded(image, 'PNG')
                )
    config = config_of('FOLDER', 8, path=path)
    for split, expected in (('train', images[:2]), ('test', images[2:4])):
        found, labels = everything(config, split)
        assert contents(found) == contents(expected) and sorted(labels) == [0, 1]
        assert all(np.array_equal(found[labels == k][0], expected[k]) for k in (0, 1))
    assert has_test_set(path) and datasets.get_split(config, 'train').classes == (
        'cats',
        'dogs',
    )
    assert ('Left out 1 pictures' in caplog.text) == stray


def test_links_do_not_multiply_pictures(tmp_path):
    """Links to the folder itself, a parent, a class or a picture are ignored.

    Links that lead elsewhere are followed.
    """
    images = crops(24, 8)
    for place, some in (
        ('set/a', images[:10]),
        ('set/b', images[10:20]),
        ('elsewhere', images[20:22]),
    ):
        folder(tmp_path / place, some)
    (tmp_path / 'set' / 'a' / 'up').symlink_to(tmp_path / 'set')
    (tmp_path / 'set' / 'above').symlink_to(tmp_path)
    (tmp_path / 'set' / 'a_again').symlink_to(tmp_path / 'set' / 'b')
    (tmp_path / 'set' / 'a' / 'again.png').symlink_to(tmp_path / 'set' / 'b' / '00.png')
    (tmp_path / 'set' / 'linked').symlink_to(tmp_path / 'elsewhere')
    config = config_of('FOLDER', 8, path=str(tmp_path / 'set'), test_fraction=0.25)
    train, test = (everything(config, split) for split in ('train', 'test'))
    assert contents([*train[0], *test[0]]) == contents(images[:22])
    assert datasets.get_split(config, 'train').classes == ('a', 'b', 'linked')
    assert {
        image.tobytes(): label
        for found, labels in (train, test)
        for image, label in zip(found, labels)
    } == {image.tobytes(): k // 10 for k, image in enumerate(images[:22])}


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    folder(tmp_path / 'a', crops(3, 8))

    def scandir(place):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(os, 'scandir', scandir)
    with pytest.raises(UserError, match='cannot be read: Permission denied'):
        everything(config_of('FOLDER', 8, path=str(tmp_path)))


def test_numbered_class_folders_are_in_order_and_thumbnails_are_ignored(tmp_path, caplog):
    images = crops(13, 8)
    for k in range(12):
        save(tmp_path / str(k) / 'a.png', images[k])
        save(tmp_path / str(k) / '@eaDir' / 'a.png' / 'thumb.png', images[12])
    save(tmp_path / '@eaDir' / 'a.png', images[12])
    config = config_of('FOLDER', 8, path=str(tmp_path), test_fraction=0.0)
    found, labels = everything(config)
    assert len(found) == 12 and all(
        np.array_equal(found[labels == k][0], images[k]) for k in range(12)
    )
    assert datasets.get_split(config, 'train').classes == tuple(map(str, range(12)))
    with caplog.at_level(logging.INFO, 'absl'):
        datasets.get_dataset(config)
    assert 'Found the classes 0: 0, 1: 1, 2: 2, ' in caplog.text
    save(tmp_path / 'other' / 'a.png', images[12])
    assert datasets.get_split(config, 'train').classes == tuple(
        sorted([*map(str, range(12)), 'other'])
    )


def test_pictures_outside_the_class_folders_are_logged(tmp_path, caplog):
    for name, image in zip(('a.png', 'cats/b.png', 'dogs/c.png'), crops(3, 8)):
        save(tmp_path / name, image)
    config = config_of('FOLDER', 8, path=str(tmp_path), test_fraction=0.0)
    assert sorted(everything(config)[1]) == [0, 1, 2] and shown_classes(
        datasets.get_split(config, 'train')
    ) == ('0: (no folder), 1: cats, 2: dogs')
    assert re.search(
        'Found 1 pictures of .* outside its class folders: they have the label 0', caplog.text
    )


def test_folders_without_classes_raise_an_error_if_classes_are_needed(tmp_path):
    config = config_of(
        'FOLDER', 8, path=folder(tmp_path, crops(9, 8)), test_fraction=0.0, memory_gib=0.0
    )
    config.model.num_classes = 3
    with pytest.raises(
        UserError,
        match=r'all images .* the label 0, but '
        r'config.model.num_classes=3: give it labels \(FOLDER: '
        r'sub-folders',
    ):
        datasets.get_dataset(config)
    config.model.num_classes = 0
    datasets.get_dataset(config)
