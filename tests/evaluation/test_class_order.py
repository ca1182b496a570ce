"""Which output stands for which class."""

import pytest
import torch
from timm.data import ImageNetInfo

from unmask.evaluation.base import Outputs
from unmask.evaluation.class_order import VERIFIED, assume_order, match_classes

WNIDS = ImageNetInfo().label_names()
WORDS = ImageNetInfo().label_descriptions()


def outputs(*names: str) -> Outputs:
    return Outputs(len(names), class_names=names)


def test_equal_names_in_equal_order_need_no_mapping() -> None:
    assert match_classes(outputs("cat", "dog"), ("cat", "dog")) == (None, VERIFIED)
    assert match_classes(outputs("Great_White", "dog"), ("great white", "Dog")) == (None, VERIFIED)


def test_another_order_is_mapped() -> None:
    order = match_classes(outputs("dog", "cat", "owl"), ("owl", "dog", "cat"))
    assert order.positions is not None
    assert order.positions.tolist() == [2, 0, 1]
    assert order.finding == "outputs put in the order of the data's classes by name"


def test_outputs_of_other_classes_stay_behind() -> None:
    order = match_classes(outputs("a", "b", "c", "d"), ("d", "b"))
    assert order.positions is not None
    assert order.positions.tolist() == [3, 1, 0, 2]
    assert order.finding.startswith("2 of the 4 outputs matched")


def test_the_words_of_imagenet_are_known_by_its_numbers() -> None:
    """Two classes are called "crane" and two "maillot"; all 1000 in order are verified nevertheless."""
    assert match_classes(outputs(*WORDS), WNIDS) == (None, VERIFIED)
    short = [words.partition(",")[0] for words in WORDS]
    assert match_classes(outputs(*short), WNIDS) == (None, VERIFIED)
    chosen = [WNIDS[3], WNIDS[0]]
    order = match_classes(outputs(*WORDS), chosen)
    assert order.positions is not None
    assert order.positions[:2].tolist() == [3, 0]
    assert torch.equal(order.positions.sort().values, torch.arange(1000))


def test_two_classes_of_one_name_are_not_guessed() -> None:
    crane = [wnid for wnid, words in zip(WNIDS, WORDS, strict=True) if words == "crane"]
    assert len(crane) == 2
    with pytest.raises(ValueError, match=f"'{crane[1]}' of the data is no single class of the classifier"):
        match_classes(outputs(*WORDS), crane[::-1])


@pytest.mark.parametrize(
    ("there", "here", "missing"), [(("cat", "dog"), ("cat", "owl"), "owl"), (("cat", "Cat"), ("CAT", "dog"), "CAT")]
)
def test_other_names_are_refused(there: tuple[str, ...], here: tuple[str, ...], missing: str) -> None:
    with pytest.raises(ValueError, match=rf"'{missing}' of the data is no single class.*eval.class_order=data"):
        match_classes(outputs(*there), here)


def test_an_order_that_nobody_names_is_said_not_to_be_verified() -> None:
    assert match_classes(Outputs(2), ("cat", "dog")).finding == (
        "class order not verified: the file does not name its classes"
    )
    assert match_classes(outputs("cat", "dog"), ("0", "1")).finding == (
        "class order not verified: the data do not name theirs"
    )
    with pytest.raises(ValueError, match=r"3 outputs and the data have 2 classes, .* \(the file does not name its"):
        match_classes(Outputs(3), ("cat", "dog"))


def test_outputs_of_no_class_need_none() -> None:
    ddmim = Outputs(1001, num_unused=1)
    assert match_classes(ddmim, WNIDS).positions is None
    with pytest.raises(ValueError, match="1001 outputs and the data have 999 classes"):
        match_classes(ddmim, WNIDS[:-1])


def test_a_word_given_for_the_order_needs_the_number_of_classes() -> None:
    assert assume_order(outputs("cat", "dog"), ("x", "y"), because="said").finding == "class order not verified: said"
    with pytest.raises(ValueError, match="2 outputs and the data have 3 classes"):
        assume_order(outputs("cat", "dog"), ("x", "y", "z"), because="said")
