import torch

from svertka.models.mlp import MLP


def test_forward_is_linear_relu_linear():
    torch.manual_seed(0)
    network, images = MLP(classes=4, channels=3, size=5), torch.randn(2, 3, 5, 5)
    first, second = network.hidden, network.output
    hidden = (images.reshape(2, 75) @ first.weight.T + first.bias).clamp(min=0)
    assert torch.allclose(network(images), hidden @ second.weight.T + second.bias, atol=1e-6)


def test_it_has_the_papers_300_hidden_units():
    assert sum(parameter.numel() for parameter in MLP().parameters()) == 785 * 300 + 301 * 10
