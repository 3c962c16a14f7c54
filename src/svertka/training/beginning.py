"""How a training begins: the network with its first weights and the head that it is to have, and the run folder."""

import os
import shutil

import torch

from svertka.classifier import Classifier, Config
from svertka.data.preprocess import Preprocess
from svertka.errors import UsageError
from svertka.files import storage, sync_folder, write_json
from svertka.models.heads import put_head
from svertka.models.initial import initialise
from svertka.models.weights import Weights
from svertka.models.zoo import Model
from svertka.run import Run
from svertka.training import checkpoint
from svertka.training.learner import computes_head, optimizer_for
from svertka.training.log import Log
from svertka.training.loop import State
from svertka.training.parts import Parts
from svertka.training.range_test import RangeTest
from svertka.training.recipe import Recipe
from svertka.training.settings import Settings
from svertka.transfer.freeze import ALL, HEAD

PREPARED_WITH = 5000  # training pictures, for networks that want to see some before their first step


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


def begin(
    model: Model,
    start: Weights | None,
    parts: Parts,
    preprocess: Preprocess,
    recipe: Recipe,
    seed: int,
    place: torch.device,
) -> tuple[Classifier, list[str]]:
    """The classifier before its first step, on `place`, and what to say of the weights that it starts from.

    Raises:
        UsageError: the weights are another network's, or it cannot have such a head.
    """
    torch.manual_seed(seed)
    names = parts.dataset.names
    network = model.build(len(names), preprocess.channels, preprocess.size).to(place)
    if recipe.initial is not None:
        initialise(network, recipe.initial)
    if model.prepare is not None:
        model.prepare(network, parts.sample(preprocess, PREPARED_WITH).to(place))
    said = [] if start is None else [start.note, start.put_into(network, names)]
    put_head(network, model, recipe.head_kind, len(names))
    config = Config(model=model.name, names=names, preprocess=preprocess, head=recipe.head_kind)
    classifier = Classifier(network, config)
    computes_head(classifier, recipe)  # says now, before there is a run, that it cannot be
    return classifier, [sentence for sentence in said if sentence]


def create(run: Run, classifier: Classifier, settings: Settings, found: RangeTest | None) -> None:
    """Make the claimed folder a run, whole from its first moment: untrained weights, settings, a checkpoint of step 0.

    It is made beside the folder, and takes its place with its lock.
    """
    draft = Run(run.folder.with_name(f".svertka.{os.getpid()}.{run.folder.name[:40]}.tmp"))
    try:
        with storage(run.folder):
            draft.folder.mkdir()
        classifier.save(draft.folder)
        write_json(draft.training, settings.model_dump())
        log = Log(draft.metrics)
        if found is not None:
            log.write("range_test", learning_rate=found.rates, loss=found.losses, chosen=found.chosen)
        optimizer = optimizer_for(classifier, settings.recipe)
        checkpoint.save(draft.checkpoint, classifier.network, optimizer, State(), log=log.offset)
        with storage(run.folder):
            run.lock.rename(draft.lock)
            draft.folder.replace(run.folder)
            sync_folder(run.folder.parent)
    except BaseException:
        shutil.rmtree(draft.folder, ignore_errors=True)
        raise
