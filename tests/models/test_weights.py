"""Weights are found, downloaded and loaded into networks; results are compared with plain PyTorch."""

import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from svertka.data import imagenet
from svertka.errors import FetchError, UsageError
from svertka.models.published_weights import CIFAR10, PRETRAINED, PretrainedWeights
from svertka.models.registry import MODELS
from svertka.models.weights import LoadedWeights, head_tensor_names, read_pretrained_weights

RESNET20 = MODELS["resnet20"]


def state_of(model: str, classes: int | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(MODELS[model].build(classes).state_dict())


def weights_of(classes: tuple[str, ...] | None, count: int = 3) -> LoadedWeights:
    state = state_of("resnet20", len(classes) if classes else count)
    preprocess = PRETRAINED["resnet18"]["imagenet"].preprocess
    return LoadedWeights(RESNET20, state, preprocess, classes, "old")


@pytest.fixture
def cifar_file(tmp_path: Path) -> Path:
    save_file(state_of("resnet20"), tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


# ---- finding weights


def test_a_file_gets_the_preprocessing_and_names_of_published_weights(cifar_file: Path, tmp_path: Path) -> None:
    found = read_pretrained_weights(RESNET20, str(cifar_file))
    assert (found.preprocess.size, found.preprocess.resize) == (32, 32)
    assert found.preprocess.mean == (0.485, 0.456, 0.406)
    assert found.preprocess.std == (0.229, 0.224, 0.225)
    assert found.names == CIFAR10

    torch.save(state_of("resnet18"), tmp_path / "x.pth")
    found = read_pretrained_weights(MODELS["resnet18"], str(tmp_path / "x.pth"))
    assert found.preprocess == PRETRAINED["resnet18"]["imagenet"].preprocess
    assert found.names == imagenet.NAMES

    torch.save(state_of("resnet18", 7), tmp_path / "x.pth")
    found = read_pretrained_weights(MODELS["resnet18"], str(tmp_path / "x.pth"))
    assert found.names is None
    assert found.names_or_numbers == ("0", "1", "2", "3", "4", "5", "6")


def test_unknown_normalization_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(state_of("plain20"), tmp_path / "x.pth")
    assert read_pretrained_weights(MODELS["plain20"], str(tmp_path / "x.pth")).preprocess.mean == (0.485, 0.456, 0.406)
    assert "does not say how images are normalized; using mean" in capsys.readouterr().err
    torch.save(state_of("lenet5"), tmp_path / "x.pth")
    assert read_pretrained_weights(MODELS["lenet5"], str(tmp_path / "x.pth")).preprocess.std == (1 / 1.275,)
    assert capsys.readouterr().err == ""


def test_the_background_class_is_removed(tmp_path: Path) -> None:
    state = state_of("squeezenet1_1", 1001)
    torch.save(state, tmp_path / "x.pth")
    found = read_pretrained_weights(MODELS["squeezenet1_1"], str(tmp_path / "x.pth"))
    assert found.names == imagenet.NAMES
    assert found.tensors["classifier.1.weight"].equal(state["classifier.1.weight"][1:])


def test_caffe_weights_are_converted_and_get_their_preprocessing(shared_data: Path) -> None:
    path = shared_data / "weights" / "squeezenet1_1-imagenet.safetensors"
    found = read_pretrained_weights(MODELS["squeezenet1_1"], str(path))
    network = MODELS["squeezenet1_1"].build()
    assert found.load_into(network, imagenet.NAMES) == ""
    assert (found.preprocess.size, found.preprocess.resize) == (227, 256)
    assert found.preprocess.mean == pytest.approx((123 / 255, 117 / 255, 104 / 255))
    published = load_file(path)
    # The network with RGB in 0 to 1 is the published one with BGR in 0 to 255, minus Caffe's mean.
    pixels = torch.randint(0, 256, (1, 3, 227, 227), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    bgr = pixels.flip(1).float() - torch.tensor([104.0, 117.0, 123.0])[:, None, None]
    first = F.conv2d(bgr, published["conv1.weight"], published["conv1.bias"], stride=2)
    ours = network.get_submodule("features.0")(found.preprocess.normalize(pixels))
    assert torch.allclose(ours, first, rtol=1e-4, atol=1e-3)  # values up to several hundred


def test_timm_weights_are_converted(tmp_path: Path) -> None:
    from svertka.models.inception_v4_and_resnet import TIMM_NAMES

    theirs = {ours: timm for timm, ours in TIMM_NAMES.items() if timm.startswith("features") or timm == "last_linear"}
    with torch.device("meta"):
        ours_of = MODELS["inception_v4"].build(1001).state_dict()
    state = {}
    for name, tensor in ours_of.items():
        stage = max((ours for ours in theirs if name.startswith(f"{ours}.")), key=len)
        state[theirs[stage] + name.removeprefix(stage)] = torch.zeros_like(tensor, device="cpu")
    assert {"features.0.conv.weight", "last_linear.weight"} <= state.keys()
    torch.save(state, tmp_path / "x.pth")
    found = read_pretrained_weights(MODELS["inception_v4"], str(tmp_path / "x.pth"))
    assert found.names == imagenet.NAMES
    with torch.device("meta"):
        found.check(MODELS["inception_v4"].build(5))


@pytest.mark.parametrize(
    ("model", "text", "sentence"),
    [
        (
            "resnet50",
            "imagnet",
            "weights=imagnet is neither a file nor published for resnet50; use imagenet, a run folder, or a",
        ),
        (
            "resnet50",
            "bundled",
            r"published for resnet50 \(bundled exists for efficientnet_lite0\); use imagenet, a run folder, or",
        ),
        (
            "resnet20",
            "imagenet",
            r"published for resnet20 \(imagenet exists for alexnet_owt, vgg11, .* more\); use a run folder, or a",
        ),
    ],
)
def test_unknown_weights_are_answered_with_known_ones(model: str, text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        read_pretrained_weights(MODELS[model], text)
    assert "\n" not in str(caught.value)


# ---- downloading


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        Quiet.asked.append(self.path)
        super().do_GET()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on this machine, of the files in tmp_path/site; nothing is in the cache."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "site").mkdir()
    Quiet.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site"))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def publish(site: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainedWeights:
    """As somebody publishes a network: a .pth file whose name ends in the first digits of its SHA-256."""
    torch.save(state_of("resnet18"), folder / "x")
    digest = hashlib.sha256((folder / "x").read_bytes()).hexdigest()[:8]
    file = (folder / "x").rename(folder / f"resnet18-{digest}.pth")
    its = dataclasses.replace(PRETRAINED["resnet18"]["imagenet"], urls=(site + file.name,))
    monkeypatch.setitem(PRETRAINED, "resnet18", {"imagenet": its})
    return its


def test_published_weights_are_downloaded_once(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    its = publish(site, tmp_path / "site", monkeypatch)
    for _ in range(2):
        found = read_pretrained_weights(MODELS["resnet18"], "imagenet")
        assert found.tensors["fc.weight"].equal(state_of("resnet18")["fc.weight"])
    assert Quiet.asked == [f"/{its.file}"]
    assert found.title == f"imagenet ({its.file})"
    assert (tmp_path / "cache" / "svertka" / "weights" / its.file).exists()


def test_a_wrong_checksum_is_refused(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    its = publish(site, tmp_path / "site", monkeypatch)
    with (tmp_path / "site" / its.file).open("ab") as file:
        file.write(b"!")
    with pytest.raises(FetchError, match=rf"sent a file with checksum sha256:\w{{8}}, not {its.checksum}"):
        read_pretrained_weights(MODELS["resnet18"], "imagenet")


def test_a_failed_download_says_where_to_put_the_file(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    its = publish(site, tmp_path / "site", monkeypatch)
    away = (tmp_path / "site" / its.file).rename(tmp_path / its.file)
    cached = tmp_path / "cache" / "svertka" / "weights" / its.file
    with pytest.raises(FetchError, match=f"and put it at {cached}, or give its path as the weights$"):
        read_pretrained_weights(MODELS["resnet18"], "imagenet")
    away.rename(cached)
    asked = list(Quiet.asked)
    assert read_pretrained_weights(MODELS["resnet18"], "imagenet").names == imagenet.NAMES
    assert Quiet.asked == asked


# ---- loading into a network


def test_the_same_classes_take_everything() -> None:
    old = weights_of(("a", "b", "c"))
    network = RESNET20.build(3)
    assert old.load_into(network, ("a", "b", "c")) == ""
    assert all(tensor.equal(old.tensors[name]) for name, tensor in network.state_dict().items())


def test_rows_of_the_head_are_matched_by_class_name() -> None:
    old = weights_of(("a", "b", "c"))
    network = RESNET20.build(4)
    said = old.load_into(network, ("c", "x", "a", "y"))
    assert said == (
        "the head of 3 classes is replaced by one of 4; 2 of them keep the weights of the class of the same name (c, a)"
    )
    for name in ("linear.weight", "linear.bias"):
        zero = torch.zeros_like(old.tensors[name][0])
        expected = torch.stack([old.tensors[name][2], zero, old.tensors[name][0], zero])
        assert network.state_dict()[name].equal(expected)
    assert network.state_dict()["conv1.weight"].equal(old.tensors["conv1.weight"])


def test_other_classes_get_a_new_head() -> None:
    network = RESNET20.build(2)
    said = weights_of(("a", "b", "c")).load_into(network, ("x", "y"))
    assert said == "the head of 3 classes is replaced by one of 2, newly initialized"
    assert not network.state_dict()["linear.weight"].any()


def test_a_head_under_a_relu_does_not_start_from_zero() -> None:
    squeezenet = MODELS["squeezenet1_1"]
    old = LoadedWeights(squeezenet, squeezenet.build(3).state_dict(), None, ("a", "b", "c"), "old", "")
    network = squeezenet.build(2)
    old.load_into(network, ("x", "y"))
    assert network.state_dict()["classifier.1.weight"].any()


def test_classes_without_names_are_matched_by_index() -> None:
    network = RESNET20.build(3)
    assert "has no class names; its head is used as it is" in weights_of(None).load_into(network, ("x", "y", "z"))
    assert network.state_dict()["linear.bias"].equal(weights_of(None).tensors["linear.bias"])
    network = RESNET20.build(2)
    assert "newly initialized" in weights_of(None).load_into(network, ("0", "1"))


def test_a_class_of_imagenet_has_two_names() -> None:
    network = RESNET20.build(2)
    old = weights_of(("tench", "tabby"))
    assert old.load_into(network, ("n02123045", "n01440764")) == ""
    assert network.state_dict()["linear.weight"].equal(old.tensors["linear.weight"].flip(0))


def test_counters_and_auxiliaries_may_be_missing() -> None:
    state = state_of("googlenet_bn")
    short = {
        name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked") and "aux" not in name
    }
    preprocess = PRETRAINED["googlenet_bn"]["imagenet"].preprocess
    old = LoadedWeights(MODELS["googlenet_bn"], short, preprocess, imagenet.NAMES, "old")
    network = MODELS["googlenet_bn"].build()
    assert old.load_into(network, imagenet.NAMES) == "the auxiliary classifiers are newly initialized"
    assert network.state_dict()["fc.weight"].equal(state["fc.weight"])


def test_the_heads_of_auxiliaries_follow_the_classes() -> None:
    model = MODELS["googlenet"]
    assert {name.partition(".")[0] for name in head_tensor_names(model)} == {"fc", "aux1", "aux2"}
    old = LoadedWeights(
        model, state_of("googlenet", 3), PRETRAINED["googlenet_bn"]["imagenet"].preprocess, tuple("abc"), "old"
    )
    network = model.build(2)
    old.load_into(network, ("b", "x"))
    for name in head_tensor_names(model):
        assert network.state_dict()[name][0].equal(old.tensors[name][1])


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"resnet1202"}))  # as the others, and slow to name
def test_head_tensors_of_every_model(name: str) -> None:
    model = MODELS[name]
    with torch.device("meta"):
        expected = model.build(5).state_dict()
    heads = head_tensor_names(model)
    assert heads
    assert all(len(expected[head]) == 5 for head in heads)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"conv1.weight": None}, r"weights=old does not fit resnet20 \(1 missing: conv1.weight\); use weights of"),
        ({"extra.a": torch.zeros(2)}, r"\(1 unexpected: extra.a\)"),
        ({"bn1.bias": torch.zeros(5)}, r"\(1 with another shape: bn1.bias \(5,\) instead of \(16,\)\)"),
        (
            {"bn1.bias": torch.zeros(16, dtype=torch.int8)},
            r"\(1 with integers instead of floats: bn1.bias \(int8\)\)",
        ),
        ({"linear.weight": torch.zeros(3, 9)}, r"linear.weight \(3, 9\) instead of \(3, 64\)"),
        (
            {"linear.weight": torch.zeros(4, 64)},
            "linear.bias, linear.weight, which disagree about the number of classes",
        ),
        ({"linear.bias": torch.zeros(())}, "disagree about the number of classes"),
        ({"linear.bias": None, "linear.weight": None}, "2 missing: linear.weight, linear.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_sentence(
    change: dict[str, torch.Tensor | None], sentence: str
) -> None:
    old = weights_of(("a", "b", "c"))
    changed = {name: tensor for name, tensor in (old.tensors | change).items() if tensor is not None}
    network = RESNET20.build(3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UsageError, match=sentence) as caught:
        dataclasses.replace(old, tensors=changed).load_into(network, ("a", "b", "c"))
    assert "\n" not in str(caught.value)
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())


def test_a_head_without_classes_is_refused_in_one_sentence() -> None:
    old = weights_of(("a", "b", "c"))
    empty = {name: tensor[:0] for name, tensor in old.tensors.items() if name.startswith("linear.")}
    with pytest.raises(UsageError, match="does not fit resnet20"):
        dataclasses.replace(old, tensors=old.tensors | empty).check(RESNET20.build(3))


def test_a_file_of_another_network_is_refused_in_one_sentence(cifar_file: Path) -> None:
    with pytest.raises(UsageError, match=r"does not fit resnet18, whose head is fc.bias, fc.weight, which are missing"):
        read_pretrained_weights(MODELS["resnet18"], str(cifar_file))
