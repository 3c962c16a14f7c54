"""What a trained network looks for: each function takes any nn.Module, returns arrays, and leaves it as it was.

    from svertka import inspection
    inspection.layers(network, (1, 3, 224, 224))        # what can be watched, by name
    inspection.outputs(network, images, ["conv1"])     # the maps of a layer
    inspection.top_patches(network, data, "conv1")      # what excites each of its units most
    inspection.project(network, images, "conv1", 42)    # the same back in pixels (Zeiler & Fergus 2014)
    inspection.grad_cam(network, images, 3)             # where the score of a class comes from
    inspection.first_layer(network)                     # its filters

Each name is imported when it is first used. The functions live in submodules that are called after what they are
about.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svertka.inspection.activations import layers as layers
    from svertka.inspection.activations import outputs as outputs
    from svertka.inspection.deconvnet import as_pictures as as_pictures
    from svertka.inspection.deconvnet import project as project
    from svertka.inspection.first_layer_filters import first_layer as first_layer
    from svertka.inspection.saliency import grad_cam as grad_cam
    from svertka.inspection.saliency import guided_backpropagation as guided_backpropagation
    from svertka.inspection.saliency import occlusion as occlusion
    from svertka.inspection.unit_patches import top_patches as top_patches

_HOMES = {
    "layers": "svertka.inspection.activations",
    "outputs": "svertka.inspection.activations",
    "project": "svertka.inspection.deconvnet",
    "as_pictures": "svertka.inspection.deconvnet",
    "first_layer": "svertka.inspection.first_layer_filters",
    "top_patches": "svertka.inspection.unit_patches",
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
