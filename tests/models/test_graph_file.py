from pathlib import Path

import torch
from torch import Tensor, nn

from svertka.models.graph_file import allocate_state_dict, read_graph, write_graph


class Tables(nn.Module):
    """A network with tensors of every kind: parameters, buffers that are saved or not, attributes, new ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.register_buffer("order", torch.tensor([5, 3, 1, 0, 2, 4]), persistent=False)
        self.register_buffer("scale", torch.rand(6))
        self.shift = torch.rand(6)

    def forward(self, x: Tensor) -> Tensor:
        features = self.norm(self.conv(x)).mean((2, 3))[:, self.order] * self.scale + self.shift
        scores: Tensor = self.fc(features + torch.arange(6, device=x.device))
        return scores


def test_a_graph_computes_what_the_network_does_for_any_batch(tmp_path: Path) -> None:
    network = Tables()
    network(torch.rand(8, 3, 16, 16))  # statistics of batch norm
    write_graph(tmp_path / "graph.pt2", network, (1, 3, 16, 16))
    assert network.training
    loaded = allocate_state_dict(read_graph(tmp_path / "graph.pt2"))
    loaded.load_state_dict(network.state_dict())
    network.eval()
    for batch in (1, 2, 7):
        images = torch.rand(batch, 3, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), network(images))
    assert loaded.eval() is loaded


def test_a_graph_holds_no_weights(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 100))
    write_graph(tmp_path / "graph.pt2", network, (1, 3, 64, 64))
    assert (tmp_path / "graph.pt2").stat().st_size < 1_000_000  # the weights are 5 MB
    assert all(tensor.is_meta for tensor in read_graph(tmp_path / "graph.pt2").state_dict().values())
    assert not any(tensor.is_meta for tensor in network.state_dict().values())
