"""CIFAR-10 from the original Python pickles."""

import hashlib
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from unmask.data.datamodule import ImageDataModule
from unmask.data.dataset import ImageDataset, InMemoryDataset
from unmask.data.files.splits import Split
from unmask.data.splits import hold_out


class CIFARFiles(NamedTuple):
    """What an official archive holds."""

    title: str
    folder: str
    archive: str
    md5: Mapping[str, str]  # of each file, https://www.cs.toronto.edu/~kriz/cifar.html
    train: tuple[str, ...]
    test: str
    names: tuple[str, str]  # the file of the classes' names, and their key in it
    label_key: str


CIFAR10_FILES = CIFARFiles(
    title="CIFAR-10",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    md5={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    names=("batches.meta", "label_names"),
    label_key="labels",
)


class CIFAR10(ImageDataModule):
    """CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 32 px in 10 classes.

    The official test set is the test split; the validation split is held out from the training images, class by
    class, so nothing is ever chosen on the test set.

    Args:
        root: The folder `cifar-10-batches-py`, or the one it lies in.
        verify: Compare each file's MD5 with the official one.
        num_val: Training images held out as validation split, drawn evenly from the classes.
        split_seed: Key of that draw; not the run's seed, so that runs of any seed and their evaluation agree.
        shared: See `ImageDataModule`.

    Raises:
        ValueError: A file is missing, differs from the official one, or holds anything but plain arrays.
    """

    holds_images_in_memory = True
    files: ClassVar[CIFARFiles] = CIFAR10_FILES

    def __init__(
        self, *, root: str, verify: bool = True, num_val: int = 5000, split_seed: int = 0, **shared: Any
    ) -> None:
        super().__init__(**shared)
        self.folder = _find_folder(Path(root).expanduser(), self.files)
        self.verify = verify
        self.num_val = num_val
        self.split_seed = split_seed

    def load_split(self, split: Split) -> ImageDataset:
        if split == "test":
            return self._read([self.files.test])
        training = self._read(self.files.train)
        kept, held_out = hold_out(training.labels, self.num_val, seed=self.split_seed)
        return training.subset(kept if split == "train" else held_out)

    def _read(self, names: Sequence[str]) -> InMemoryDataset:
        names_file, names_key = self.files.names
        class_names = self._unpickle(names_file)[names_key]
        batches = [self._unpickle(name) for name in names]
        pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = torch.tensor([label for batch in batches for label in batch[self.files.label_key]])
        return InMemoryDataset(torch.from_numpy(pixels), labels, class_names)

    def _unpickle(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        content = path.read_bytes()
        if self.verify and hashlib.md5(content, usedforsecurity=False).hexdigest() != self.files.md5[name]:
            raise ValueError(
                f"{path} is not the official file (MD5 differs); download {self.files.archive} again, "
                "or set data.verify=false if you changed it on purpose"
            )
        try:
            loaded = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
        except (pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError, ImportError) as error:
            raise ValueError(f"{path} cannot be read as a {self.files.title} file: {error}") from error
        if not isinstance(loaded, dict):
            raise ValueError(f"{path} holds a {type(loaded).__name__}, expected {self.files.title}'s dictionary")
        return loaded


class _PlainUnpickler(pickle.Unpickler):
    """Reads arrays and plain containers; a pickle that names anything else is refused, so no code runs."""

    _ALLOWED = frozenset(
        {
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise ValueError(f"it asks to load {module}.{name}; refused, only arrays are read")
        return super().find_class(module, name)


def _find_folder(root: Path, files: CIFARFiles) -> Path:
    for folder in (root, root / files.folder):
        missing = [name for name in files.md5 if not (folder / name).is_file()]
        if not missing:
            return folder
        if len(missing) < len(files.md5):
            raise ValueError(f"{folder} lacks {files.title}'s {', '.join(missing)}; extract {files.archive} again")
    raise ValueError(
        f"no {files.title} at data.root={root}: expected the folder {files.folder} of {files.archive} "
        "(https://www.cs.toronto.edu/~kriz/cifar.html) there"
    )
