"""The initial classifier of a training: its network, weights and head; and the run folder that it is written to."""

import os
import shutil
from collections.abc import Mapping

import torch
from torch import nn

from svertka.classifier import Classifier, Config
from svertka.data.augmentation import AUTO_AUGMENTATIONS, Augmentation, RandomErasing
from svertka.data.preprocessing import Preprocess
from svertka.data.split_manifest import Manifest
from svertka.errors import UsageError
from svertka.files import os_error_to_storage_error, sync_folder, write_json
from svertka.models.head_kinds import has_head, head_kind_without_relu, head_path, set_head_kind
from svertka.models.initialization import init_head, init_weights, signal_vanishes
from svertka.models.registry import Model
from svertka.models.weights import LoadedWeights, head_tensor_names
from svertka.run import Run
from svertka.training import checkpoint
from svertka.training.computed_initial_head import needs_computed_head
from svertka.training.config import RunSettings
from svertka.training.data_splits import DataSplits
from svertka.training.lr_finder import RangeTest
from svertka.training.metrics_log import MetricsLog
from svertka.training.recipe import Recipe
from svertka.training.trained_part_and_batches import build_optimizer
from svertka.training.training_loop import TrainingProgress
from svertka.transfer.freeze import ALL, HEAD

INIT_IMAGES = 5000  # training images, for networks that are initialized from data
PROBED = 64  # training images on which fresh weights are tested


def check_frozen_layers_and_boxes(recipe: Recipe, boxes: str | None, *, trained: bool) -> None:
    """Check that only trained layers are frozen, and that boxes trains only a head, on pretrained weights.

    Args:
        recipe: The recipe.
        boxes: The option boxes.
        trained: Whether training starts from trained weights.

    Raises:
        UsageError: Otherwise.
    """
    if boxes is not None and not (trained and recipe.unfreeze == HEAD):
        raise UsageError(
            f"boxes={boxes} trains only a head, on pretrained weights; give --weights, and leave out --unfreeze"
        )
    if recipe.unfreeze != ALL and not trained:
        raise UsageError(
            f"unfreeze={recipe.unfreeze} freezes layers with random weights; give --weights to start from, or "
            "--unfreeze all"
        )


def check_patch_augmentation(recipe: Recipe) -> None:
    """Raise UsageError if patches, which are labeled by what they show, would be mixed or partly hidden."""
    settings = {"--mixup": recipe.mixup, "--cutmix": recipe.cutmix}
    given = [f"{name} {value:g}" for name, value in settings.items() if value]
    given += [_option_of(one) for one in recipe.augmentations]
    if given:
        raise UsageError(
            f"{given[0]} cannot be combined with --boxes, whose patches are labeled by what they show; leave out one"
        )


def _option_of(augmentation: Augmentation) -> str:
    """Return the option that adds `augmentation`, with its value."""
    if isinstance(augmentation, RandomErasing):
        return f"--random-erasing {augmentation.probability:g}"
    names = {kind: name for name, kinds in AUTO_AUGMENTATIONS.items() for kind in kinds}
    name = names.get(augmentation)
    return f"augmentation {augmentation.kind}" if name is None else f"--auto-augment {name}"


def describe_ignored_settings(
    recipe: Recipe,
    boxes: str | None,
    feature_store: str | None = None,
    *,
    is_frozen: bool = True,
    is_cached: bool = True,
) -> list[str]:
    """Return sentences on the settings of `recipe`, and others, that change nothing, because of what is trained."""
    sentences = []
    if not is_frozen:
        sentences = _ignored({"--feature-store": feature_store}, "no layer is frozen")
    elif not is_cached:
        sentences = _ignored({"--feature-store": feature_store}, "features are not stored with --no-cache")
    of_pairs: dict[str, object] = {"--mixup": recipe.mixup, "--cutmix": recipe.cutmix}
    of_steps: dict[str, object] = {"augmentation": recipe.augmentations, **of_pairs, "--ema": recipe.ema}
    if recipe.is_computed:
        sentences += _ignored(of_steps, "the head is computed from the images as they are, without steps")
    elif recipe.batch_size == 1:
        sentences += _ignored(of_pairs, "batches of one image hold no pair to mix; give --batch-size 2 or more")
    if recipe.unfreeze == HEAD:
        why = "with --boxes only the head is trained" if boxes is not None else "only the head is trained"
        advice = "" if boxes is not None else "; give --unfreeze all, last or a number of stages"
        of_stages: dict[str, object] = {"--gradual": recipe.gradual, "--stage-rate": recipe.stage_rate != 1}
        sentences += _ignored(of_stages, why + advice)
    return sentences


def _ignored(given: Mapping[str, object], why: str) -> list[str]:
    """Return the sentence that the options of `given` with a true value change nothing; none without such options."""
    options = [option for option, value in given.items() if value]
    verb = "changes" if len(options) == 1 else "change"
    return [f"{' and '.join(options)} {verb} nothing: {why}"] if options else []


def build_initial_classifier(
    model: Model,
    start: LoadedWeights | None,
    parts: DataSplits,
    preprocess: Preprocess,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    *,
    may_reinitialize: bool = False,
) -> tuple[Classifier, list[str]]:
    """Build the classifier with its initial weights and head.

    Args:
        model: The network.
        start: The weights to start from. None: fresh weights.
        parts: The images.
        preprocess: The preprocessing.
        recipe: The recipe.
        seed: Seed of fresh weights.
        device: The device.
        may_reinitialize: Whether fresh weights through which no signal passes are replaced by He initialization.

    Returns:
        The classifier, and sentences about its weights.

    Raises:
        UsageError: The weights belong to another network, or the network cannot have the head.
    """
    torch.manual_seed(seed)
    names = parts.dataset.names
    network = model.build(len(names), preprocess.channels, preprocess.size).to(device)
    if recipe.initial is not None:
        init_weights(network, recipe.initial)
    notes = []
    if may_reinitialize and start is None and recipe.initial is None and not model.has_own_weights:
        notes += _reinitialize_if_vanishing(network, model, parts.first_training_images(preprocess, PROBED).to(device))
    if model.init_from_data is not None:
        model.init_from_data(network, parts.first_training_images(preprocess, INIT_IMAGES).to(device))
    own_head = head_kind_without_relu(model, "linear")
    set_head_kind(network, model, own_head, len(names))
    if start is not None:
        notes += [start.note, start.load_into(network, names)]
    elif recipe.unfreeze != ALL and model.classes != len(names) and has_head(model):
        for parameter in network.get_submodule(head_path(model)).parameters():
            nn.init.zeros_(parameter)  # as `LoadedWeights.load_into`: random weights would have to be unlearned first
    if own_head != "linear":
        notes.append(
            f"{model.name} is trained without the ReLU after its class scores: a class that it sets to 0 never learns"
        )
    kind = head_kind_without_relu(model, recipe.head_kind)
    if kind != own_head:
        set_head_kind(network, model, kind, len(names))
    targets = parts.dataset.labels[parts.indices["train"]]
    task = parts.dataset.task.fit(targets)
    _set_initial_bias(network, model, task.initial_bias(targets))
    config = Config(
        model=model.name,
        names=names,
        preprocess=preprocess,
        builder=model.reference,
        head=kind,
        patches_only=parts.patches_only,
        task=task,
    )
    classifier = Classifier(network, config, model)
    needs_computed_head(classifier, recipe)  # raises an error before there is a run
    return classifier, [sentence for sentence in notes if sentence]


def _set_initial_bias(network: nn.Module, model: Model, bias: torch.Tensor | None) -> None:
    """Set the biases of a new linear head, which are 0, to `bias` (K,), if there is one."""
    if bias is None or not has_head(model):
        return
    head = network.get_submodule(head_path(model))
    if isinstance(head, nn.Linear) and head.bias is not None and not head.bias.any():
        with torch.no_grad():
            head.bias.copy_(bias)


def _reinitialize_if_vanishing(network: nn.Module, model: Model, images: torch.Tensor) -> list[str]:
    """Initialize `network` as He et al. 2015 if its scores for `images` are all the same; return a sentence on it."""
    if not signal_vanishes(network, images):
        return []
    init_weights(network, "he")
    init_head(network, head_tensor_names(model))
    return [
        f"the scores of {model.name} with its own initialization are the same for every image, so that it would not "
        "learn; its weights are initialized as in He et al. 2015 (--initial he) instead"
    ]


def write_new_run(
    run: Run, classifier: Classifier, settings: RunSettings, manifest: Manifest, found: RangeTest | None
) -> None:
    """Write the initial weights, the settings and a checkpoint of step 0 into the claimed folder, atomically.

    The run is written beside the folder, which it then replaces.

    Args:
        run: The claimed folder.
        classifier: The classifier before its first step.
        settings: The settings of the training.
        manifest: Content hashes of the images by part.
        found: The learning rate range test. None: there was none.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    draft = Run(run.folder.with_name(f".svertka.{os.getpid()}.{run.folder.name[:40]}.tmp"))
    try:
        with os_error_to_storage_error(run.folder):
            draft.folder.mkdir()
        classifier.save(draft.folder)
        write_json(draft.training, settings.model_dump())
        manifest.write(draft.manifest)
        log = MetricsLog(draft.metrics)
        for sentence in settings.account.get("warnings", ()):
            log.write("health", epoch=None, step=0, finding="source", sentence=sentence)
        if found is not None:
            log.write("range_test", learning_rate=found.rates, loss=found.losses, chosen=found.chosen)
        optimizer = build_optimizer(classifier, settings.recipe)
        checkpoint.save(draft.checkpoint, classifier.network, optimizer, TrainingProgress(), log=log.offset)
        with os_error_to_storage_error(run.folder):
            run.lock.rename(draft.lock)
            draft.folder.replace(run.folder)
            sync_folder(run.folder.parent)
    except BaseException:
        shutil.rmtree(draft.folder, ignore_errors=True)
        raise
