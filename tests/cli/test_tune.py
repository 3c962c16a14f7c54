import json

import pytest

from svertka.cli.app import main

ONE = ["--shape", "1,4,9,9", "--weight", "4,4,3,3", "--padding", "1"]


def test_every_pass_and_algorithm_is_explained(capsys):
    assert main(["tune", *ONE, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {trial["pass"] for trial in found} == {"forward", "input_gradient", "weight_gradient"}
    for one_pass in ("forward", "input_gradient", "weight_gradient"):
        assert sum(trial["taken"] for trial in found if trial["pass"] == one_pass) == 1
    for trial in found:
        assert trial["why_not"] or (trial["seconds"] > 0 and trial["gflops"] > 0 and trial["error"] < 1e-4)


def test_a_network_is_timed_layer_by_layer(capsys):
    assert main(["tune", "lenet5", "--batch", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[1:-1]} == {"c1", "c3", "c5"}
    assert lines[-1].startswith("Taken is the fastest algorithm if, with 0.05 ms")
    assert sum(line.endswith("taken") for line in lines) == 9  # in each of three passes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a network, or give --shape and --weight"),
        (["lenet5", *ONE], "name a network, or give --shape and --weight"),
        (["--shape", "1,2,x,4", "--weight", "1,2,3,3"], "--shape 1,2,x,4 is not four whole numbers"),
        (["--shape", "1,2,2,2", "--weight", "1,2,3,3"], "the kernel spans 3 pixels, the padded input is 2 high"),
        (["resnet21"], "model=resnet21 is not known"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments, said, capsys):
    assert main(["tune", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
