"""Manifest of a run's images: the digests of its training, validation and test images.

They are digests of the content, because a path would no longer identify an image once a folder is moved, linked, copied
or mounted elsewhere. Only very many files are told apart by name and size, as in `content_hash.hash_names`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from svertka.data.content_hash import hash_images, hash_single_names, sort_halves
from svertka.data.dataset import PARTS, Images, Ints, Subset
from svertka.data.deduplicated_split import COPIES, find_copied_parts
from svertka.errors import RunError
from svertka.tensor_files import read_tensors_and_header, write_tensors

DIGEST_BYTES = 16
INHERITED = "inherited"
IDENTIFIED, NAME_AND_SIZE = "identified_by", "name and size"  # of the header


@dataclass(frozen=True)
class Manifest:
    """Digests of a run's images.

    Attributes:
        parts: Digests in "train", "val" and "test"; no digest is in two of them.
        inherited: Digests that the initial weights had been trained on.
        by_name: Whether files are identified by name and size, and only those that are alike in both by content.
    """

    parts: dict[str, frozenset[bytes]]
    inherited: frozenset[bytes] = frozenset()
    by_name: bool = False

    @classmethod
    def of(
        cls,
        digests: Sequence[bytes],
        indices: dict[str, Ints],
        inherited: frozenset[bytes] = frozenset(),
        *,
        by_name: bool = False,
    ) -> "Manifest":
        """Return the manifest of images with `digests`, (N,), whose parts are at `indices`."""
        parts = {part: frozenset(map(digests.__getitem__, indices[part].tolist())) for part in PARTS}
        return cls(parts, inherited, by_name)

    def hash_images(self, images: Images, threads: int) -> tuple[list[bytes], dict[int, str]]:
        """Hash images so that those of the run are found in the manifest; arguments and result as of `hash_images`."""
        if not self.by_name:
            return hash_images(images, threads)
        found, bad = hash_single_names(images, threads)
        known = self.contents | self.inherited
        others = np.array([i for i, digest in enumerate(found) if digest and digest not in known], np.int64)
        if len(others):
            contents, unreadable = hash_images(Subset(images, others), threads)
            for index, content in zip(others.tolist(), contents, strict=True):
                found[index] = content
            bad |= {int(others[place]): reason for place, reason in unreadable.items()}
        return found, bad

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
        header: dict[str, object] = {IDENTIFIED: NAME_AND_SIZE} if self.by_name else {}
        write_tensors(path, {name: _as_tensor(digests) for name, digests in everything.items()}, header)

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read the manifest in `path`.

        Raises:
            RunError: The file is missing or damaged.
        """
        tensors, header = read_tensors_and_header(path)
        wanted = {*PARTS, INHERITED}
        if set(tensors) != wanted or any(
            tensor.dtype != torch.uint8 or tensor.dim() != 2 or tensor.shape[1] != DIGEST_BYTES
            for tensor in tensors.values()
        ):
            raise RunError(f"{path} is damaged (it does not hold the digests of images); copy it back or train again")
        found = {name: frozenset(map(bytes, tensor.numpy())) for name, tensor in tensors.items()}
        return cls({part: found[part] for part in PARTS}, found[INHERITED], header.get(IDENTIFIED) == NAME_AND_SIZE)


def _as_tensor(digests: frozenset[bytes]) -> torch.Tensor:
    """Return digests as rows (n, 16) uint8, sorted."""
    rows = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
    halves = rows.view(">u8").astype(np.uint64)
    return torch.from_numpy(rows[sort_halves(halves[:, 0], halves[:, 1])])
