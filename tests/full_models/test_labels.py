"""The labels of a run, by number and by ImageNet's names."""

import numpy as np
import pytest

from full_models import DiTConfig
from full_models.generation.labels import choose_labels
from full_models.models.dit.imagenet import imagenet_names
from full_models.models.dit.pipeline import DiTPipeline


def labels(text, num_labels=1000, num=4, seed=0):
    pipeline = DiTPipeline(DiTConfig(num_labels=num_labels))
    return choose_labels(text, num, num_labels, seed, pipeline.labels_of)


def test_names_known_from_elsewhere():
    names = imagenet_names()
    assert len(names) == 1000
    known = {0: "tench", 88: "macaw", 207: "golden retriever", 360: "otter"}
    known |= {387: "lesser panda", 417: "balloon", 974: "geyser", 980: "volcano"}
    known |= {985: "daisy", 999: "toilet tissue"}
    assert {i: names[i][0] for i in known} == known


def test_numbers_names_and_synonyms():
    found = labels("207, otter,Golden Retriever, red panda", num=5)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [207, 360, 207, 387, 207])
    np.testing.assert_array_equal(labels("all", 3), [0, 1, 2, 0])


def test_random_labels_depend_on_the_index_alone():
    many = labels("random", 7, 300)
    np.testing.assert_array_equal(labels("random", 7, 20), many[:20])
    assert set(many) == set(range(7))
    assert (labels("random", 7, 300, seed=1) != many).any()


def test_a_first_name_counts_before_synonyms():
    """ "polecat" is the name of 358 and a synonym of 361."""
    assert labels("polecat", num=1) == [358]


def test_a_word_finds_all_classes_that_have_it():
    names = imagenet_names()
    np.testing.assert_array_equal(labels("corgi"), [263, 264, 263, 264])
    found = labels("Welsh corgi, terrier, 7", num=40)
    assert list(found[:2]) == [263, 264]
    terriers = [i for i in found[2 : list(found).index(7)]]
    assert len(terriers) > 10 and all("terrier" in str(names[i]) for i in terriers)
    with pytest.raises(ValueError, match="no class of ImageNet is called 'corg'"):
        labels("corg")  # a part of a word is none


@pytest.mark.parametrize(
    "text, classes, message",
    [
        ("1000", 1000, r"0..999 for this model, got 1000"),
        ("-1", 10, r"0..9"),
        ("golden retreiver", 1000, "Did you mean 'golden retriever'"),
        ("panda", 1000, "several classes, 387, 388"),
        ("crane", 1000, "several classes, 134, 517"),
        ("otter", 10, "numbers in 0..9, got 'otter'; names are known for ImageNet"),
        ("1,,2", 10, "separated by commas"),
    ],
)
def test_bad_labels(text, classes, message):
    with pytest.raises(ValueError, match=message):
        labels(text, classes)


def test_names_of_labels():
    assert DiTPipeline(DiTConfig()).label_name(207) == "golden retriever"
    assert DiTPipeline(DiTConfig(num_labels=10)).label_name(7) == "7"
