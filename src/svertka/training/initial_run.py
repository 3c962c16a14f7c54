"""How a training begins: the network with its first weights and the head that it is to have, and the run folder."""

import os
import shutil

import torch
from torch import nn

from svertka.classifier import Classifier, Config
from svertka.data.preprocessing import Preprocess
from svertka.data.split_manifest import Manifest
from svertka.errors import UsageError
from svertka.files import storage_errors, sync_folder, write_json
from svertka.models.heads import replace_head, trainable_head
from svertka.models.initialization import init_head, init_weights, signal_vanishes
from svertka.models.registry import Model
from svertka.models.weights import Weights, head_tensors
from svertka.run import Run
from svertka.training import checkpoint
from svertka.training.config import Settings
from svertka.training.data_splits import Parts
from svertka.training.learner import computes_head, optimizer_for
from svertka.training.lr_finder import RangeTest
from svertka.training.metrics_log import Log
from svertka.training.recipe import Recipe
from svertka.training.training_loop import State
from svertka.transfer.freeze import ALL, HEAD

PREPARED_WITH = 5000  # training pictures, for networks that want to see some before their first step
PROBED = 64  # training pictures by which fresh weights are tried


def refuse_untrained(recipe: Recipe, boxes: str | None, *, trained: bool) -> None:
    """Nothing, if what `recipe` freezes is `trained`, and if `boxes`, where there are some, have a head to train.

    Raises:
        UsageError: otherwise.
    """
    if boxes is not None and not (trained and recipe.unfreeze == HEAD):
        raise UsageError(f"boxes={boxes} train a head on trained weights; name --weights, and leave out --unfreeze")
    if recipe.unfreeze != ALL and not trained:
        raise UsageError(
            f"unfreeze={recipe.unfreeze} leaves the other weights as they are, and nothing has trained them; name "
            "--weights to start from, or give --unfreeze all"
        )


def describe_ignored(recipe: Recipe, boxes: str | None) -> list[str]:
    """Return a sentence on the settings of `recipe` that change nothing, because only the head is trained."""
    given = {"--gradual": recipe.gradual, "--stage-rate": recipe.stage_rate != 1}
    ignored = [option for option, is_given in given.items() if is_given]
    if recipe.unfreeze != HEAD or not ignored:
        return []
    why = "with --boxes only the head is trained" if boxes is not None else "only the head is trained"
    advice = "" if boxes is not None else "; give --unfreeze all, last or a number of stages"
    return [f"{' and '.join(ignored)} changes nothing: {why}{advice}"]


def begin(
    model: Model,
    start: Weights | None,
    parts: Parts,
    preprocess: Preprocess,
    recipe: Recipe,
    seed: int,
    place: torch.device,
    *,
    may_redraw: bool = False,
) -> tuple[Classifier, list[str]]:
    """The classifier before its first step, on `place`, and what to say of the weights that it starts from.

    `may_redraw`: fresh weights through which no signal passes are replaced by those of He et al. 2015.

    Raises:
        UsageError: the weights are another network's, or it cannot have such a head.
    """
    torch.manual_seed(seed)
    names = parts.dataset.names
    network = model.build(len(names), preprocess.channels, preprocess.size).to(place)
    if recipe.initial is not None:
        init_weights(network, recipe.initial)
    said = []
    if may_redraw and start is None and recipe.initial is None:
        said += _redrawn(network, model, parts.sample(preprocess, PROBED).to(place))
    if model.init_from_data is not None:
        model.init_from_data(network, parts.sample(preprocess, PREPARED_WITH).to(place))
    own_head = trainable_head(model, "linear")
    replace_head(network, model, own_head, len(names))
    if start is not None:
        said += [start.note, start.load_into(network, names)]
    if own_head != "linear":
        said.append(
            f"{model.name} is trained without the ReLU behind its class scores: a class that it sets to 0 never learns"
        )
    kind = trainable_head(model, recipe.head_kind)
    if kind != own_head:
        replace_head(network, model, kind, len(names))
    config = Config(model=model.name, names=names, preprocess=preprocess, head=kind, patches_only=parts.patches_only)
    classifier = Classifier(network, config)
    computes_head(classifier, recipe)  # says now, before there is a run, that it cannot be
    return classifier, [sentence for sentence in said if sentence]


def _redrawn(network: nn.Module, model: Model, images: torch.Tensor) -> list[str]:
    """What to say, if the fresh weights of `network` let its scores for `images` vanish and others were drawn."""
    if not signal_vanishes(network, images):
        return []
    init_weights(network, "he")
    init_head(network, head_tensors(model))
    return [
        f"the scores of {model.name} with its own first weights are the same for every picture, so that nothing would "
        "be learned; its weights are drawn as in He et al. 2015 (--initial he) instead"
    ]


def create(run: Run, classifier: Classifier, settings: Settings, manifest: Manifest, found: RangeTest | None) -> None:
    """Make the claimed folder a run, whole from its first moment: untrained weights, settings, a checkpoint of step 0.

    It is made beside the folder, and takes its place with its lock.
    """
    draft = Run(run.folder.with_name(f".svertka.{os.getpid()}.{run.folder.name[:40]}.tmp"))
    try:
        with storage_errors(run.folder):
            draft.folder.mkdir()
        classifier.save(draft.folder)
        write_json(draft.training, settings.model_dump())
        manifest.write(draft.manifest)
        log = Log(draft.metrics)
        for sentence in settings.account.get("warnings", ()):
            log.write("health", epoch=None, step=0, finding="source", sentence=sentence)
        if found is not None:
            log.write("range_test", learning_rate=found.rates, loss=found.losses, chosen=found.chosen)
        optimizer = optimizer_for(classifier, settings.recipe)
        checkpoint.save(draft.checkpoint, classifier.network, optimizer, State(), log=log.offset)
        with storage_errors(run.folder):
            run.lock.rename(draft.lock)
            draft.folder.replace(run.folder)
            sync_folder(run.folder.parent)
    except BaseException:
        shutil.rmtree(draft.folder, ignore_errors=True)
        raise
