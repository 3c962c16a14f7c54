from svertka.models.ilsvrc_winners import ILSVRC_RESULTS


def test_the_revolution_of_depth_is_the_slide_s() -> None:
    assert [(entry.year, entry.layers, entry.top5_error) for entry in ILSVRC_RESULTS] == [
        (2010, None, 28.2), (2011, None, 25.8), (2012, 8, 16.4), (2013, 8, 11.7),
        (2014, 19, 7.3), (2014, 22, 6.7), (2015, 152, 3.57),
    ]  # fmt: skip
    assert all(entry.source for entry in ILSVRC_RESULTS)
