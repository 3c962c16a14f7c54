"""Images without labels: all of a folder, at any depth, or those in shards."""

import os
from dataclasses import replace

import numpy as np

from svertka.data.dataset import Dataset, FileImages
from svertka.data.file_accounting import FileAccount
from svertka.data.file_tree import SOME_SUFFIXES, list_tree
from svertka.data.shard_storage import is_shard_source
from svertka.data.sharded_images import open_shards
from svertka.errors import DataError, UsageError
from svertka.files import parse_path

UNLABELED = "unlabeled"  # the class of all of these images


def open_unlabeled(folder: str | os.PathLike[str]) -> Dataset:
    """Return all images below `folder`, or in its shards, each of the class "unlabeled".

    Raises:
        UsageError: There is no such folder.
        DataError: It cannot be listed or holds no image.
    """
    if is_shard_source(folder):
        shards = open_shards(folder)
        count = len(shards)
        return replace(shards, names=(UNLABELED,), labels=np.zeros(count, np.int64), parts=np.full(count, "", "<U5"))
    path = parse_path(folder)
    if not path.is_dir():
        exists = path.exists()
        raise UsageError(f"{path} is a file; give a folder of images" if exists else f"there is no folder {path}")
    tree = list_tree(path)
    paths, left_out = tree.images(), FileAccount(tuple(tree.left_out))
    if not paths:
        sentence = left_out.sentence()
        raise DataError(f"{path} holds no image ({SOME_SUFFIXES})" + (f"; {sentence}" if sentence else ""))
    return Dataset(
        str(path), (UNLABELED,), FileImages(path, paths), np.zeros(len(paths), np.int64),
        np.full(len(paths), "", "<U5"), left_out,
    )  # fmt: skip
