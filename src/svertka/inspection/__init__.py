"""Tools that show what a trained network has learned.

Each function accepts any nn.Module, runs it in evaluation mode and leaves it unchanged.

    from svertka import inspection
    inspection.list_layers(network, (1, 3, 224, 224))            # the layers whose outputs can be read, by name
    inspection.layer_outputs(network, images, ["conv1"])         # feature maps
    inspection.top_patches(network, data, "conv1")               # the image patches that activate each unit most
    inspection.project(network, images, "conv1", 42)             # deconvolution (Zeiler & Fergus 2014)
    inspection.grad_cam(network, images, 3)                      # image regions that support a class
    inspection.get_first_layer_filters(network)                  # first-layer filters

Names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svertka.inspection.activations import layer_outputs as layer_outputs
    from svertka.inspection.activations import list_layers as list_layers
    from svertka.inspection.deconvolution.deconvnet import project as project
    from svertka.inspection.deconvolution.deconvnet import to_images as to_images
    from svertka.inspection.first_layer_filters import get_first_layer_filters as get_first_layer_filters
    from svertka.inspection.maximally_activating_patches import top_patches as top_patches
    from svertka.inspection.saliency import grad_cam as grad_cam
    from svertka.inspection.saliency import guided_backpropagation as guided_backpropagation
    from svertka.inspection.saliency import occlusion as occlusion

_HOMES = {
    "list_layers": "svertka.inspection.activations",
    "layer_outputs": "svertka.inspection.activations",
    "project": "svertka.inspection.deconvolution.deconvnet",
    "to_images": "svertka.inspection.deconvolution.deconvnet",
    "get_first_layer_filters": "svertka.inspection.first_layer_filters",
    "top_patches": "svertka.inspection.maximally_activating_patches",
    "guided_backpropagation": "svertka.inspection.saliency",
    "grad_cam": "svertka.inspection.saliency",
    "occlusion": "svertka.inspection.saliency",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'svertka.inspection' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
