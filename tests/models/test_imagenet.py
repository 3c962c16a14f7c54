from pathlib import Path

from svertka.models.imagenet import CHALLENGE, CLASSES, NAMES, SENSES, name_of


def test_the_classes_are_in_the_order_of_the_published_networks() -> None:
    assert len(CLASSES) == len(set(NAMES)) == len({one.wordnet for one in CLASSES}) == 1000
    # Indices and names as everybody who has used such a network knows them.
    known = {0: ("n01440764", "tench"), 1: ("n01443537", "goldfish"), 207: ("n02099601", "golden retriever")}
    known |= {281: ("n02123045", "tabby"), 388: ("n02510455", "giant panda"), 999: ("n15075141", "toilet tissue")}
    assert {index: (CLASSES[index].wordnet, CLASSES[index].name) for index in known} == known
    assert [one.wordnet for one in CLASSES] == sorted(one.wordnet for one in CLASSES)


def test_a_wordnet_id_is_its_class_and_other_words_are_themselves() -> None:
    assert name_of("n01440764") == "tench"
    assert name_of("tench") == "tench"
    assert name_of("n00000000") == "n00000000"
    assert {name_of("n02012849"), name_of("n03126707")} == {"crane (bird)", "crane (machine)"}


def test_the_names_are_the_published_ones_and_those_of_the_pictures(shared_data: Path) -> None:
    lines = (shared_data / "imagenet-classes.tsv").read_text().splitlines()
    published = [tuple(line.split("\t")) for line in lines]
    ours = [(one.wordnet, one.name.partition(" (")[0] if one.wordnet in SENSES else one.name) for one in CLASSES]
    assert ours == published
    pictures = sorted((shared_data / "imagenet-samples").glob("*.JPEG"))
    assert len(pictures) == 63
    for picture in pictures:
        wordnet, _, name = picture.stem.partition("_")
        assert name_of(wordnet).partition(" (")[0].replace(" ", "_") == name


def test_the_revolution_of_depth_is_the_slide_s() -> None:
    assert [(entry.year, entry.layers, entry.top5_error) for entry in CHALLENGE] == [
        (2010, None, 28.2), (2011, None, 25.8), (2012, 8, 16.4), (2013, 8, 11.7),
        (2014, 19, 7.3), (2014, 22, 6.7), (2015, 152, 3.57),
    ]  # fmt: skip
    assert all(entry.source for entry in CHALLENGE)
