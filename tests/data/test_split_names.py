import pytest

from svertka.data.split_names import match_split_name, match_split_names


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["Training", "Testing"], {"Training": "train", "Testing": "test"}),
        (["seg_train", "seg_test", "seg_pred"], {"seg_train": "train", "seg_test": "test"}),
        (["TRAIN", "DEV"], {"TRAIN": "train", "DEV": "val"}),
        (["training", "validation", "evaluation"], {"training": "train", "validation": "val", "evaluation": "test"}),
        (["train", "eval"], {"train": "train", "eval": "val"}),
        (["train-images", "testSet"], {"train-images": "train", "testSet": "test"}),
        (["train", "bus"], {"train": "train"}),
        (["asl_alphabet_train"], {}),
        (["steam train", "bus"], {}),
        (["trains", "tests", "values"], {}),
        (["train_test"], {}),
        ([], {}),
    ],
)
def test_what_folders_beside_each_other_mean(names: list[str], parts: dict[str, str]) -> None:
    assert match_split_names(names) == parts


def test_a_word_of_a_table() -> None:
    words = ["Train", "valid", "test set", "holdout", ""]
    assert [match_split_name(word) for word in words] == ["train", "val", "test", None, None]
