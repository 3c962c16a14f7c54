import numpy as np
import pytest

from svertka.inspection.activations import convolution_names, find_layer, list_layers
from svertka.inspection.stride_aligned_crops import CropJobs, crops_for_positions, feature_map_size_in_crop
from svertka.models.registry import find_model

NETWORKS = [("squeezenet1_1", 227), ("squeezenet1_1", 224), ("resnet18", 224), ("googlenet", 224), ("alexnet", 227)]


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_crops_contain_the_receptive_field_and_start_at_a_multiple_of_the_stride(name: str, size: int):
    known = list_layers(find_model(name).build(), (1, 3, size, size))
    smallest = size**2
    for layer in (find_layer(known, name) for name in convolution_names(known)):
        grid = np.meshgrid(*(np.arange(there) for there in layer.shape[2:]), indexing="ij")
        places = np.stack(grid, axis=-1).reshape(-1, 2)
        found, inside = crops_for_positions(layer, places)
        assert len(np.unique(found[:, 2:], axis=0)) <= 36  # few sizes, so that batches are full
        smallest = min(smallest, int(found[:, 2:].prod(1).min()))
        for axis, field in enumerate(layer.fields):
            first, length = found[:, axis], found[:, axis + 2]
            seen = np.array(field.intervals)[places[:, axis]]
            assert (first <= seen[:, 0]).all()
            assert (seen[:, 1] < first + length).all()
            assert ((first >= 0) & (first + length <= size)).all()
            assert field.grid is not None
            assert (first % field.grid.jump == 0).all()
            assert ((size - length) % field.grid.jump == 0).all()
            assert (inside[:, axis] == places[:, axis] - first // field.grid.jump).all()
            there = [feature_map_size_in_crop(layer, *one)[axis] for one in found[:, 2:].tolist()]
            assert ((inside[:, axis] >= 0) & (inside[:, axis] < there)).all()
    assert smallest <= 11**2  # of the first layer


def test_every_job_is_in_one_turn_of_a_batch_of_its_size():
    random = np.random.default_rng(1)
    # The last window is drawn far more often than the others.
    sizes = np.array([[0, 0, 8, 8], [8, 0, 8, 8], [0, 0, 16, 8], [0, 0, 32, 32]])
    chosen = np.minimum(random.integers(0, 9, 500), 3)
    jobs = CropJobs(
        random.integers(0, 20, 500), random.integers(0, 9, 500), sizes[chosen], random.integers(0, 4, (500, 2))
    )
    done: list[int] = []
    for turns in jobs.batches(num_pixels=700):
        first = turns[0]
        assert (first >= 0).all()
        _, height, width = np.unique(jobs.crops[first, 1:], axis=0)[0]
        assert (jobs.crops[first, 2:] == (height, width)).all()
        assert len(first) == 1 or len(first) * height * width <= 700
        for turn in turns:
            there = turn >= 0
            assert there.any()
            assert (jobs.images[turn[there]] == jobs.images[first[there]]).all()
            assert (jobs.crops[turn[there]] == jobs.crops[first[there]]).all()
            done += turn[there].tolist()
    assert sorted(done) == list(range(500))


def test_no_jobs_give_no_batches():
    none = np.zeros(0, np.int64)
    assert list(CropJobs(none, none, none.reshape(0, 4), none.reshape(0, 2)).batches(num_pixels=100)) == []
