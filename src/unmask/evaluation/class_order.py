"""Which output of a classifier stands for which class of the data."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Int
from timm.data import ImageNetInfo
from torch import Tensor

from unmask.evaluation.base import Outputs

VERIFIED = "class order verified by name"
_NUM_SHOWN = 3

Spelling = Callable[[str], str | None]


class ClassOrder(NamedTuple):
    """How outputs and classes belong together."""

    positions: Int[Tensor, " outputs"] | None  # the output of each class, then those of no class; None: as they are
    finding: str  # what is known of it, for the report


def match_classes(outputs: Outputs, class_names: Sequence[str]) -> ClassOrder:
    """Finds the output that stands for each class of the data, by the names of both.

    Names are compared as they are, then in small letters, and where the data call their classes by the numbers of
    ImageNet's synsets by the words of these. Where the names of both are equal one by one, the order is verified; where
    each class of the data has one output of its name, outputs are taken in the order of the data. Outputs of classes
    that the data lack stay and can be wrong answers.

    Args:
        outputs: Of the classifier.
        class_names: Of the data, in the order of their labels; numbers are no names.

    Raises:
        ValueError: Class names differ; or one side has no names, and not as many classes as the other.
    """
    named = list(outputs.class_names)
    if named and named == list(class_names):
        return ClassOrder(None, VERIFIED)
    for names, what in ((named, "the file does not name its classes"), (class_names, "the data do not name theirs")):
        if all(name.isdecimal() for name in names):
            return assume_order(outputs, class_names, because=what)
    lacking: list[str] = []
    for spelling in _SPELLINGS:
        there, here = ([spelling(name) for name in names] for names in (named, class_names))
        if there == here and None not in here:
            return ClassOrder(None, VERIFIED)
        counts = Counter(there)
        lacking = [
            name for name, spelled in zip(class_names, here, strict=True) if spelled is None or not counts[spelled]
        ]
        if not lacking and all(counts[spelled] == 1 for spelled in here) and len(set(here)) == len(here):
            return ClassOrder(_positions(there, here), _mapped(len(here), len(there)))
    missing = [name for name in class_names if name not in named] or list(class_names)
    raise ValueError(
        f"the classifier names its {len(named)} classes {_some(named)}, and the data theirs {_some(class_names)}: "
        f"{missing[0]!r} of the data is no single class of the classifier, so that its outputs cannot be compared with "
        "labels; name data of its classes, or say eval.class_order=data if the data have them in the same order under "
        "other names"
    )


def assume_order(outputs: Outputs, class_names: Sequence[str], *, because: str) -> ClassOrder:
    """Takes the outputs in the order of the data, where their numbers allow it.

    Args:
        outputs, class_names: As of `match_classes`.
        because: Why the order is not known.

    Raises:
        ValueError: There are more or fewer outputs than classes.
    """
    if len(class_names) not in (outputs.num, outputs.num - outputs.num_unused):
        raise ValueError(
            f"the classifier has {outputs.num} outputs and the data have {len(class_names)} classes, which cannot be "
            f"matched ({because}); name data of the classes it was trained on"
        )
    return ClassOrder(None, f"class order not verified: {because}")


def _positions(there: Sequence[str | None], here: Sequence[str | None]) -> Int[Tensor, " outputs"]:
    number_of = {name: number for number, name in enumerate(there)}
    first = [number_of[name] for name in here]
    others = [number for number in range(len(there)) if number not in set(first)]
    return torch.tensor([*first, *others])


def _mapped(num_here: int, num_there: int) -> str:
    if num_here == num_there:
        return "outputs put in the order of the data's classes by name"
    return f"{num_here} of the {num_there} outputs matched with the data's classes by name, all can be answers"


def _as_it_is(name: str) -> str:
    return name


def _in_small_letters(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def _words_of_synset(name: str) -> str | None:
    """The words that ImageNet gives a class, which published files use as names, such as "tench, Tinca tinca"."""
    if not name.startswith("n") or not name[1:].isdecimal():
        return _in_small_letters(name)
    try:
        return _in_small_letters(_imagenet().label_name_to_description(name))
    except (KeyError, ValueError):
        return None


def _first_words_of_synset(name: str) -> str | None:
    words = _words_of_synset(name)
    return None if words is None else words.partition(",")[0]


_SPELLINGS: tuple[Spelling, ...] = (_as_it_is, _in_small_letters, _words_of_synset, _first_words_of_synset)


@lru_cache(maxsize=1)
def _imagenet() -> ImageNetInfo:
    return ImageNetInfo()


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_NUM_SHOWN]))
    return shown if len(names) <= _NUM_SHOWN else f"{shown}, ..."
