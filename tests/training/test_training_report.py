from svertka.classifier import Classifier, Config
from svertka.data.preprocessing import Preprocess
from svertka.training.builtin_recipes import RECIPES
from svertka.training.config import RunSettings
from svertka.training.training_report import describe_training


def test_the_plan_says_what_on_what_how_where_and_how_long() -> None:
    settings = RunSettings(
        source="digits", fingerprint="ab", parts={"train": 1233, "val": 180, "test": 0}, val=0.1, test=0.0,
        model="lenet5", bad=[{"path": "x.png", "reason": "truncated"}], recipe_name="lenet5-digits",
        recipe=RECIPES["lenet5-digits"], stored_side=32, seed=0, device="cpu", threads=2, memory_format="channels_last",
        prefetch=True, cache_limit=None,
    )  # fmt: skip
    preprocess = Preprocess(size=32, resize=28, mean=(0.1,), std=(0.8,))
    config = Config(model="lenet5", names=tuple("0123456789"), preprocess=preprocess)
    lines = dict(describe_training(Classifier(config.build(), config), settings, seconds=75))
    assert lines["data"] == "digits: 1,233 train, 180 val; 10 classes; 1 bad left out"
    assert lines["network"] == "lenet5, 32×32 gray, 60,000 parameters, 415,680 multiply-adds"
    assert lines["recipe"].startswith("lenet5-digits: sgd, lr ")
    assert lines["recipe"].endswith(" epochs, pad crop")
    once = settings.model_copy(update={"recipe": settings.recipe.with_changes(epochs=1)})
    assert ", 1 epoch, " in dict(describe_training(Classifier(config.build(), config), once, seconds=75))["recipe"]
    assert lines["device"].startswith("cpu, ")
    assert lines["time"] == "about 1 min 15 s"
