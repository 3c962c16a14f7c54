"""A process that evaluates a run on the images that it was not trained on, and prints its mistakes as JSON.

`python -m svertka.studio.held_out_mistakes RUN FOLDER`
"""

import json
import sys
from typing import Any

from svertka.errors import SvertkaError, UsageError
from svertka.escaping import to_printable
from svertka.evaluation.evaluate import JointEvaluation, evaluate_jointly
from svertka.evaluation.metrics import Evaluation


def describe_mistakes(joint: JointEvaluation) -> dict[str, Any]:
    """Return the classes, the confusion matrix and the mistakes as JSON values.

    `mistakes` are dicts with `path`, `label`, `predicted` (indices of classes) and `probability`. Of each pair of
    classes there are the 8 most confident, and the 24 most confident of all.

    Raises:
        UsageError: The run predicts several labels or a number.
    """
    evaluation = joint.ensemble
    if not isinstance(evaluation, Evaluation):
        raise UsageError("only the mistakes of runs with one class an image are shown; see the report of the run")
    names = [one.name for one in evaluation.per_class]
    low, high = evaluation.top1_interval
    return {
        "names": names,
        "images": evaluation.images,
        "error": evaluation.top1_error,
        "interval": [low, high],
        "scope": evaluation.scope.sentence if evaluation.scope else "",
        "confusion": evaluation.confusion.tolist(),
        "mistakes": [
            {
                "path": joint.dataset.images.name(one.index),
                "label": one.label,
                "predicted": one.predicted,
                "probability": one.probability,
            }
            for one in evaluation.mistakes
        ],
    }


def main(run: str, source: str) -> int:
    """Print the evaluation of `run` on `source`, and return the exit code."""
    try:
        print(json.dumps(describe_mistakes(evaluate_jointly(run, source))))
    except SvertkaError as error:
        print(f"svertka: {to_printable(str(error))}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
