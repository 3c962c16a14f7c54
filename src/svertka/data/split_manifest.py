"""Manifest of a run's images: the content digests of its training, validation and test images.

A path would no longer identify an image once a folder is moved, linked, copied or mounted elsewhere.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from svertka.data.dataset import PARTS, Ints
from svertka.data.deduplicated_split import COPIES, find_copied_parts
from svertka.errors import RunError
from svertka.tensor_files import read_tensors_and_header, write_tensors

DIGEST_BYTES = 16
INHERITED = "inherited"


@dataclass(frozen=True)
class Manifest:
    """Digests of a run's images.

    Attributes:
        parts: Digests in "train", "val" and "test"; no digest is in two of them.
        inherited: Digests that the initial weights had been trained on.
    """

    parts: dict[str, frozenset[bytes]]
    inherited: frozenset[bytes] = frozenset()

    @classmethod
    def of(
        cls, digests: Sequence[bytes], indices: dict[str, Ints], inherited: frozenset[bytes] = frozenset()
    ) -> "Manifest":
        """Return the manifest of images with `digests`, (N,), whose parts are at `indices`."""
        return cls({part: frozenset(digests[i] for i in indices[part].tolist()) for part in PARTS}, inherited)

    @property
    def contents(self) -> frozenset[bytes]:
        """Digests of all images of the run."""
        return frozenset().union(*self.parts.values())

    @property
    def trained_on(self) -> frozenset[bytes]:
        """Digests of all images that the weights were trained on, in this run or earlier ones."""
        return self.parts["train"] | self.inherited

    def part_of(self, digest: bytes) -> str:
        """Return the part of the run that holds a content; "" if none does."""
        return next((part for part in PARTS if digest in self.parts[part]), "")

    def parts_of(self, digests: Iterable[bytes]) -> npt.NDArray[np.str_]:
        """Return the part of each of `digests`, (N,), but "train" for all that the weights were trained on."""
        return np.array(["train" if one in self.inherited else self.part_of(one) for one in digests], dtype="<U5")

    def indices(self, digests: Sequence[bytes], parts: npt.NDArray[np.str_], good: Ints) -> dict[str, Ints]:
        """Find the images of each part of the run again.

        Args:
            digests: Content digest of each image.
            parts: Part that the source names for each image, (N,), as in `Dataset`. A copy of a training image in the
                source's test part is in no part of the run.
            good: Indices of the readable images.

        Returns:
            Indices of the images in each part, (n,) int64, ascending.
        """
        contents = [digests[i] for i in good.tolist()]
        held, named = np.array([self.part_of(one) for one in contents], dtype="<U5"), parts[good]
        named = np.where(np.isin(named, list(find_copied_parts(contents, named, self.inherited))), COPIES, named)
        in_pool = (named == "") | (named == "train")
        return {
            part: good[(held == part) & ((named == part) if part != "train" and (named == part).any() else in_pool)]
            for part in PARTS
        }

    def write(self, path: Path) -> None:
        """Write the manifest, 16 bytes per image.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        everything = self.parts | {INHERITED: self.inherited}
        write_tensors(path, {name: _as_tensor(digests) for name, digests in everything.items()})

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read the manifest in `path`.

        Raises:
            RunError: The file is missing or damaged.
        """
        tensors, _ = read_tensors_and_header(path)
        wanted = {*PARTS, INHERITED}
        if set(tensors) != wanted or any(
            tensor.dtype != torch.uint8 or tensor.dim() != 2 or tensor.shape[1] != DIGEST_BYTES
            for tensor in tensors.values()
        ):
            raise RunError(f"{path} is damaged (it does not hold the digests of images); copy it back or train again")
        found = {name: frozenset(map(bytes, tensor.numpy())) for name, tensor in tensors.items()}
        return cls({part: found[part] for part in PARTS}, found[INHERITED])


def _as_tensor(digests: frozenset[bytes]) -> torch.Tensor:
    array = np.frombuffer(b"".join(sorted(digests)), np.uint8).reshape(-1, DIGEST_BYTES)
    return torch.from_numpy(array.copy())
