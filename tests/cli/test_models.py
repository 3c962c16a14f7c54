"""`svertka models`: the list of all networks, and the layers of one."""

import json
import resource
import subprocess
import sys

import pytest
import torch

from svertka.cli.app import main
from svertka.models.registry import MODELS, describe_model, trace_model


@pytest.mark.sample(15)
@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet1202"])  # which takes 6 seconds
def test_sizes_that_are_listed_are_those_of_the_networks(name: str) -> None:
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in MODELS[name].build().parameters())
    trace, listed = trace_model(MODELS[name]), describe_model(MODELS[name])
    assert (listed["parameters"], listed["multiply_adds"]) == (trace.parameters, trace.multiply_adds)
    assert listed["training_parameters"] == parameters


def test_listing_all_is_quick() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-m", "svertka", "models", "--json"], capture_output=True, check=True)
    assert [one["name"] for one in json.loads(done.stdout)] == list(MODELS)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 15  # seconds of a core; 2 usually


def test_the_balance_of_vgg_is_seen_at_a_glance(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "vgg16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("vgg16 on 3×224×224 pixels: Simonyan")
    head = next(number for number, line in enumerate(lines) if line.startswith("layer "))
    cells = {tuple(line.split()[:2]): line.split() for line in lines}
    assert cells["features.30", "MaxPool2d"][2:] == ["512×7×7", "212"]
    assert cells["classifier.0", "Linear"][2:] == ["4096", "102,764,544", "74.3", "102,760,448", "0.7", "all"]
    assert [line.split() for line in lines[-3:]] == [
        ["all", "13", "Conv2d", "14,714,688", "10.6", "15,346,630,656", "99.2"],
        ["all", "3", "Linear", "123,642,856", "89.4", "123,633,664", "0.8"],
        ["all", str(len(lines) - head - 4), "138,357,544", "100.0", "15,470,264,320", "100.0"],
    ]


def test_what_the_papers_report_stands_beside_each_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert lines["alexnet"].split()[4:11] == ["40.7", "18.2", "10", "crops", "at", "256", "px"]
    assert lines["plain20"].split()[3:5] == ["3×32×32", "He"]  # nothing is reported in numbers
    assert main(["models", "vgg16"]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    shown = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    said = ["ImageNet val", "Simonyan & Zisserman 2014, table 6", "with vgg19"]
    assert ["25.6", "8.1", "dense at 384 px", "ImageNet val", "Simonyan & Zisserman 2014, table 3"] in shown
    assert ["24.0", "7.1", "dense at 256, 384, 512 px, 2 networks", *said] in shown
    assert ["28.408", "9.618", "1 crop at 256 px"] in [row[:3] for row in shown]


def test_layers_in_json_are_a_graph(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "googlenet", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    layers = {layer["name"]: layer for layer in told["layers"]}
    assert len(layers) == len(told["layers"])
    assert sum(layer["parameters"] for layer in layers.values()) == told["parameters"] == 6_998_552
    assert sum(layer["multiply_adds"] for layer in layers.values()) == told["multiply_adds"]
    known = {"input"}
    for name, layer in layers.items():
        assert known.issuperset(layer["inputs"]), name
        known.add(name)
    joins = [layer for layer in layers.values() if layer["kind"] == "cat"]
    assert [len(layer["inputs"]) for layer in joins] == [4] * 9
    assert joins[0]["receptive_field"] == [59, 59]
    assert joins[0]["grid"] == [{"start": -23, "jump": 8, "extent": 59}] * 2
