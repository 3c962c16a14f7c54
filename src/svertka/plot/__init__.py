"""Figures of networks, runs and their results, each in one line. They need matplotlib: pip install 'svertka[figures]'.

Each function returns a matplotlib Figure: notebooks show it, and `figure.savefig("name.png")` stores it. `model` is a
run, as for `svertka.evaluate`, or any nn.Module.

    from svertka import plot
    plot.first_layer_filters(network)                     # weights of the first convolution
    plot.feature_maps(network, image, "conv1")            # what a layer makes of an image
    plot.top_patches(network, images, "conv1")            # the patches that activate units most
    plot.projections(network, images, "conv1")            # and what in them does (deconvolution)
    plot.saliency(network, images)                        # evidence for the predicted class
    plot.receptive_fields(network, 224)                   # how they grow from layer to layer
    plot.layer_table(network, 224)                        # parameters and multiply-adds of each layer
    plot.learning_curves(run)                             # loss and error by epoch
    plot.lr_finder(run)                                   # loss by learning rate
    plot.confusion(run)                                   # which classes are mistaken for which
    plot.reliability(run)                                 # confidence against accuracy
    plot.top_losses(run)                                  # the most confident mistakes
    plot.show_batch(run)                                  # augmented training images
    plot.images(arrays, titles)                           # any arrays as images
    plot.curves({"error": values})                        # any numbers as curves

Names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svertka.plot.array_figures import curves as curves
    from svertka.plot.array_figures import images as images
    from svertka.plot.layer_figures import feature_maps as feature_maps
    from svertka.plot.layer_figures import first_layer_filters as first_layer_filters
    from svertka.plot.layer_figures import layer_table as layer_table
    from svertka.plot.layer_figures import receptive_fields as receptive_fields
    from svertka.plot.result_figures import confusion as confusion
    from svertka.plot.result_figures import reliability as reliability
    from svertka.plot.result_figures import top_losses as top_losses
    from svertka.plot.training_figures import learning_curves as learning_curves
    from svertka.plot.training_figures import lr_finder as lr_finder
    from svertka.plot.training_figures import show_batch as show_batch
    from svertka.plot.unit_figures import projections as projections
    from svertka.plot.unit_figures import saliency as saliency
    from svertka.plot.unit_figures import top_patches as top_patches

_HOMES = {
    "curves": "svertka.plot.array_figures",
    "images": "svertka.plot.array_figures",
    "first_layer_filters": "svertka.plot.layer_figures",
    "feature_maps": "svertka.plot.layer_figures",
    "receptive_fields": "svertka.plot.layer_figures",
    "layer_table": "svertka.plot.layer_figures",
    "top_patches": "svertka.plot.unit_figures",
    "projections": "svertka.plot.unit_figures",
    "saliency": "svertka.plot.unit_figures",
    "learning_curves": "svertka.plot.training_figures",
    "lr_finder": "svertka.plot.training_figures",
    "show_batch": "svertka.plot.training_figures",
    "confusion": "svertka.plot.result_figures",
    "reliability": "svertka.plot.result_figures",
    "top_losses": "svertka.plot.result_figures",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'svertka.plot' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
