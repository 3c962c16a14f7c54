import copy
import json
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from svertka.classifier import Classifier
from svertka.conv.accelerate import accelerate
from svertka.errors import ExportMismatchError

pytest.importorskip("onnx")
import onnxruntime
from onnx import numpy_helper

from svertka.exporters.onnx import check_onnx, convert_to_onnx

PICTURES = [
    np.asarray(Image.fromarray(load_sample_image(name)).resize(size))
    for name, size in (("china.jpg", (96, 64)), ("flower.jpg", (64, 64)), ("china.jpg", (50, 80)))
]


@pytest.mark.sample(2)
@pytest.mark.parametrize("preprocessing", [False, True])
@pytest.mark.parametrize(("model", "size", "resize", "channels"), [("lenet5", 32, 28, 1), ("resnet20", 32, 40, 3)])
def test_it_computes_the_same_and_says_what_it_needs(
    made: Callable[..., Classifier], model: str, size: int, resize: int, channels: int, preprocessing: bool
) -> None:
    names = ("cat", 'a "quoted"\nname', "имя", "\0")
    classifier = made(model, size, resize, channels, names)
    file = convert_to_onnx(classifier, preprocessing=preprocessing)
    assert check_onnx(file, classifier, PICTURES * 4) <= 1e-5
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(said["names"])) == names
    assert json.loads(said["preprocess"]) == classifier.preprocess.model_dump(mode="json")
    assert said["model"] == model
    (given,), (gives,) = session.get_inputs(), session.get_outputs()
    assert gives.shape == ["N", len(names)]
    if preprocessing:
        assert (given.name, given.type, given.shape) == ("pictures", "tensor(uint8)", ["N", "H", "W", 3])
    else:
        assert (given.name, given.type, given.shape) == ("images", "tensor(float)", ["N", channels, size, size])
    # Where in whose source a node came from is in no file.
    del file.graph.initializer[:]
    assert b".py" not in file.SerializeToString()


def test_the_plain_network_is_exported_and_the_given_one_left_alone(made: Callable[..., Classifier]) -> None:
    classifier = made("lenet5", 32, 28, 1)
    fast = Classifier(accelerate(copy.deepcopy(classifier.network)), classifier.config)
    fast.network.train()
    plain, exported = convert_to_onnx(classifier), convert_to_onnx(fast)
    assert exported.SerializeToString() == plain.SerializeToString()
    assert fast.network.training
    assert any("_conv_forward" in vars(module) for module in fast.network.modules())


@pytest.mark.parametrize("preprocessing", [False, True])
def test_a_file_that_computes_something_else_is_refused(made: Callable[..., Classifier], preprocessing: bool) -> None:
    classifier = made("mlp", 16, 16, 1)
    file = convert_to_onnx(classifier, preprocessing=preprocessing)
    (bias,) = [one for one in file.graph.initializer if one.name == "output.bias"]
    changed = numpy_helper.to_array(bias).copy()
    changed[1] += 0.1
    bias.CopyFrom(numpy_helper.from_array(changed, bias.name))
    with pytest.raises(ExportMismatchError, match=r"differs by 0\.\d+, more than .*; no file was written"):
        check_onnx(file, classifier, PICTURES)
    changed[1] = np.nan
    bias.CopyFrom(numpy_helper.from_array(changed, bias.name))
    with pytest.raises(ExportMismatchError):
        check_onnx(file, classifier, PICTURES)
