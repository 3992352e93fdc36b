"""ImageNet's classes by number and name."""

import pytest

from full_models.models.dit.labels import imagenet_names, label_name, parse_labels


def test_names_known_from_elsewhere():
    names = imagenet_names()
    assert len(names) == 1000
    known = {0: "tench", 88: "macaw", 207: "golden retriever", 360: "otter"}
    known |= {387: "lesser panda", 417: "balloon", 974: "geyser", 980: "volcano"}
    known |= {985: "daisy", 999: "toilet tissue"}
    assert {i: names[i][0] for i in known} == known


def test_numbers_names_and_synonyms():
    found = parse_labels("207, otter,Golden Retriever, red panda", 1000)
    assert found == (207, 360, 207, 387)


def test_a_first_name_counts_before_synonyms():
    """ "polecat" is the name of 358 and a synonym of 361."""
    assert parse_labels("polecat", 1000) == (358,)


@pytest.mark.parametrize(
    "text, classes, message",
    [
        ("1000", 1000, r"0..999 for this model, got 1000"),
        ("-1", 10, r"0..9"),
        ("golden retreiver", 1000, "Did you mean 'golden retriever'"),
        ("panda", 1000, "several classes, 387, 388"),
        ("crane", 1000, "several classes, 134, 517"),
        ("otter", 10, "numbers in 0..9"),
        ("1,,2", 10, "separated by commas"),
    ],
)
def test_bad_labels(text, classes, message):
    with pytest.raises(ValueError, match=message):
        parse_labels(text, classes)


def test_names_of_labels():
    assert label_name(207, 1000) == "golden retriever"
    assert label_name(7, 10) == "7"
