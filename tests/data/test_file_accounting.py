import json

from svertka.data.file_accounting import OWN, FileAccount, UnusedFile, count_by_suffix, get_suffix


def test_left_out_files_are_counted_by_suffix_and_reason() -> None:
    left_out = [UnusedFile(f"{number}.HEIC", "unsupported format") for number in range(5)]
    left_out += [UnusedFile("runs/a.png", OWN), UnusedFile("x\n", "not in a class folder")]
    account = FileAccount(tuple(left_out), count_by_suffix(["a.txt", "b.txt", "LICENSE"]), ("read so",), ("odd\x1b",))
    assert account.sentences() == [
        "read so",
        "warning: odd\\x1b",
        "left out: 5 .heic, unsupported format (0.HEIC, 1.HEIC, 2.HEIC and 2 more); 1 .png, made by svertka; "
        "1 no suffix, not in a class folder (x\\n)",
        "not images: 2 .txt, 1 no suffix",
    ]
    value = json.loads(json.dumps(account.to_dict()))
    assert value["left_out"][0] == {
        "suffix": ".heic",
        "reason": "unsupported format",
        "count": 5,
        "examples": ["0.HEIC", "1.HEIC", "2.HEIC"],
    }
    assert value["not_images"] == {".txt": 2, "no suffix": 1}


def test_an_empty_account_has_no_sentences() -> None:
    assert FileAccount().sentences() == []
    assert get_suffix("a.b/c") == "no suffix"
