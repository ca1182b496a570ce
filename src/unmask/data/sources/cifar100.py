"""CIFAR-100 from the original Python pickles."""

from typing import ClassVar

from unmask.data.sources.cifar10 import CIFAR10, CIFARFiles

CIFAR100_FILES = CIFARFiles(
    title="CIFAR-100",
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    md5={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    train=("train",),
    test="test",
    names=("meta", "fine_label_names"),
    label_key="fine_labels",
)


class CIFAR100(CIFAR10):
    """CIFAR-100 (Krizhevsky, 2009): as CIFAR-10, with 100 fine classes of 500 training images each."""

    files: ClassVar[CIFARFiles] = CIFAR100_FILES
