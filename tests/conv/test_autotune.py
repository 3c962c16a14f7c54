import json
from dataclasses import replace

import pytest
import torch

from svertka.conv import autotune, native_support, native_winograd_bf16
from svertka.conv.api import conv2d
from svertka.conv.autotune import (
    CACHE_FILE,
    CACHE_FORMAT,
    FORMER_NAMES,
    AlgorithmTiming,
    choose_by_timings,
    describe_timing_environment,
    load_choices,
    save_choice,
)
from svertka.conv_shape import ConvShape

SHAPE = ConvShape.of((2, 3, 9, 9), (4, 3, 3, 3), padding=1)
PLACE = describe_timing_environment(["aten", "gemm"])


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A process without choices and with its own cache; a call makes another such process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def forget():
        load_choices.cache_clear()
        autotune._chosen.clear()
        autotune._pinned.clear()
        autotune._spent["seconds"] = 0.0
        return tmp_path / "svertka" / CACHE_FILE

    yield forget
    forget()


@pytest.fixture
def timed(monkeypatch):
    """The list of timed shapes, in order; gemm always wins, also when the winner is timed again."""
    shapes = []

    def trials(one_pass, shape, *_, only=None, **__):
        if only is None:
            shapes.append((one_pass, shape))
        return {
            "aten": AlgorithmTiming(1.0),
            "gemm": AlgorithmTiming(0.5),
            "winograd": AlgorithmTiming(None, "no"),
            "fft": AlgorithmTiming(2.0),
        }

    monkeypatch.setattr(autotune, "time_algorithms", trials)
    return shapes


def test_a_shape_is_timed_once_and_cached_for_later_processes(fresh, timed):
    x = torch.zeros(SHAPE.input)
    fresh()
    for _ in range(2):
        assert autotune.select_algorithm("auto", "forward", SHAPE, x) is autotune.ALGORITHMS["gemm"]
    autotune.select_algorithm("auto", "weight_gradient", SHAPE, x)
    assert timed == [("forward", SHAPE), ("weight_gradient", SHAPE)]
    fresh()
    assert autotune.select_algorithm("auto", "forward", SHAPE, x) is autotune.ALGORITHMS["gemm"]
    assert len(timed) == 2


def test_an_interrupted_run_is_repeated(monkeypatch):
    runs = {"aten": iter([(0.02, False)] * 99), "native_winograd": iter([(0.09, True)] + [(0.01, False)] * 99)}
    monkeypatch.setattr(autotune, "_time_once", lambda name, *_: next(runs[name]))
    tried = autotune.time_algorithms("forward", SHAPE, torch.channels_last, only=list(runs))
    assert autotune.choose_by_timings(tried) == "native_winograd"


@pytest.mark.parametrize("threads", [1, 2])
def test_only_runs_of_several_threads_are_interrupted(monkeypatch, threads):
    counts = iter(range(99))
    monkeypatch.setattr(autotune, "_count_interruptions", lambda: next(counts))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    tensors = autotune.make_random_tensors("forward", SHAPE, torch.channels_last)
    _, is_interrupted = autotune._time_once("aten", "forward", tensors, SHAPE, torch.channels_last)
    assert is_interrupted == (threads > 1)


def test_a_winner_that_does_not_win_again_is_not_chosen(fresh, monkeypatch):
    asked = []

    def trials(*_, only=None, **__):
        asked.append(only)
        return {"aten": AlgorithmTiming(1.0), "gemm": AlgorithmTiming(0.9 if only is None else 1.0)}

    monkeypatch.setattr(autotune, "time_algorithms", trials)
    fresh()
    x = torch.zeros(SHAPE.input)
    assert autotune.select_algorithm("auto", "forward", SHAPE, x) is autotune.ALGORITHMS["aten"]
    assert asked == [None, ("aten", "gemm")]


def test_a_clear_winner_is_timed_once(fresh, monkeypatch):
    asked = []

    def trials(*_, only=None, **__):
        asked.append(only)
        return {"aten": AlgorithmTiming(1.0), "gemm": AlgorithmTiming(0.7)}

    monkeypatch.setattr(autotune, "time_algorithms", trials)
    fresh()
    assert autotune.select_algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input)) is autotune.ALGORITHMS["gemm"]
    assert asked == [None]


def test_without_time_left_the_choice_is_that_of_the_most_similar_shape(fresh, timed):
    path = fresh()
    kernel = {"weight": (4, 3, 3, 3), "padding": 1}
    small, large = (ConvShape.of((2, 3, side, side), **kernel) for side in (9, 40))
    autotune.select_algorithm("auto", "forward", small, torch.zeros(small.input))
    autotune._chosen.update({(key[0], large, *key[2:]): "aten" for key in list(autotune._chosen)})
    written = path.read_bytes()
    autotune._spent["seconds"] = autotune.TOTAL_BUDGET
    for side, expected in ((10, "gemm"), (39, "aten")):
        like = ConvShape.of((2, 3, side, side), **kernel)
        found = autotune.select_algorithm("auto", "forward", like, torch.zeros(like.input))
        assert found is autotune.ALGORITHMS[expected]
    strided = replace(small, stride=(2, 2))
    assert autotune.select_algorithm("auto", "forward", strided, torch.zeros(small.input)) is autotune.aten
    assert len(timed) == 1
    assert path.read_bytes() == written  # later processes time them


def test_a_shape_with_as_many_channels_is_more_similar_than_one_with_as_many_multiplications(fresh, timed):
    fresh()
    sizes = {"gemm": (64, 224), "aten": (512, 14)}
    shapes = {
        name: ConvShape.of((8, width, side, side), (width, width, 3, 3), padding=1)
        for name, (width, side) in sizes.items()
    }
    layout, threads = torch.contiguous_format, torch.get_num_threads()
    for name, shape in shapes.items():
        autotune._chosen[("forward", shape, layout, threads, torch.float32, False)] = name
    autotune._spent["seconds"] = autotune.TOTAL_BUDGET
    like = ConvShape.of((8, 512, 28, 28), (512, 512, 3, 3), padding=1)
    assert like.multiply_adds == shapes["gemm"].multiply_adds
    found = autotune.select_algorithm("auto", "forward", like, torch.zeros(1).expand(like.input))
    assert found is autotune.aten
    assert not timed


def test_small_images_are_timed_on_so_many_that_their_weights_do_not_decide(fresh, timed):
    fresh()
    large = ConvShape.of((16, 512, 7, 7), (512, 512, 3, 3), padding=1)
    autotune.select_algorithm("auto", "forward", large, torch.zeros(1).expand(large.input))
    assert timed == [("forward", replace(large, batch=9))]  # 441 pixels


def test_large_batches_are_timed_on_fewer_images(fresh, timed):
    fresh()
    large = ConvShape.of((64, 64, 56, 56), (64, 64, 3, 3), padding=1)
    autotune.select_algorithm("auto", "forward", large, torch.zeros(1).expand(large.input))
    assert timed == [("forward", replace(large, batch=2))]
    assert list(autotune.get_choices_of_process()) == [autotune._describe(next(iter(autotune._chosen)))]
    assert "64×64×56×56" in next(iter(autotune.get_choices_of_process()))


def test_each_dtype_is_timed_and_cached_separately(fresh, timed):
    fresh()
    for dtype in autotune.DTYPES:
        autotune.select_algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input, dtype=dtype))
    assert len(timed) == 2
    one, other = autotune.get_choices_of_process()
    assert other == f"{one}, bfloat16"  # so caches from before bfloat16 stay valid


def test_other_dtypes_and_devices_use_aten(fresh, timed):
    fresh()
    for x in (torch.zeros(SHAPE.input, dtype=torch.float64), torch.zeros(SHAPE.input, device="meta")):
        assert autotune.select_algorithm("auto", "forward", SHAPE, x) is autotune.ALGORITHMS["aten"]
    assert not timed


def test_a_cached_algorithm_that_no_longer_exists_is_timed_again(fresh, timed):
    fresh()
    autotune.select_algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input))
    (written,) = autotune.get_choices_of_process()
    save_choice(describe_timing_environment(autotune.ALGORITHMS), written, "strassen")
    fresh()
    autotune.select_algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input))
    assert len(timed) == 2


@pytest.mark.parametrize("pinned", [False, True])
def test_a_choice_of_an_installation_with_kernels_is_made_again_without(fresh, timed, monkeypatch, pinned):
    description = autotune._describe(
        ("forward", SHAPE, torch.contiguous_format, torch.get_num_threads(), torch.float32, False)
    )
    monkeypatch.setattr(native_support, "MISSING", "no kernels here")
    fresh()
    if pinned:
        autotune._pinned[description] = "native_direct"
    else:
        save_choice(describe_timing_environment(autotune.ALGORITHMS), description, "native_direct")
    x, weight = torch.rand(SHAPE.input), torch.rand(SHAPE.weight)
    torch.testing.assert_close(conv2d(x, weight, padding=1), torch.nn.functional.conv2d(x, weight, padding=1))
    assert len(timed) == 1


def test_without_kernels_another_part_of_the_cache_is_used(monkeypatch):
    monkeypatch.setattr(native_support, "MISSING", None)
    before = describe_timing_environment(["aten"])
    monkeypatch.setattr(native_support, "MISSING", "no kernels here")
    assert describe_timing_environment(["aten"]) != before


def test_an_unwritable_cache_costs_only_time(fresh, timed, monkeypatch, tmp_path):
    fresh()
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        autotune.select_algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input))
    assert len(timed) == 1


def test_pinned_choices_are_used(fresh, timed, monkeypatch):
    fresh()
    autotune.select_algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input))
    taken = autotune.get_choices_of_process()
    assert list(taken.values()) == ["gemm"]
    path = fresh()
    path.unlink()
    with autotune.pin_choices(dict.fromkeys(taken, "fft")):
        assert (
            autotune.select_algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input)) is autotune.ALGORITHMS["fft"]
        )
        assert list(autotune.get_choices_of_process().values()) == ["fft"]
    assert len(timed) == 1


def test_pinned_choices_end_with_the_context(fresh, timed):
    fresh()
    autotune.select_algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input))
    taken = autotune.get_choices_of_process()
    with autotune.pin_choices(dict.fromkeys(taken, "fft")):
        autotune.select_algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input))
    assert autotune.get_choices_of_process() == taken
    assert autotune.select_algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input)) is autotune.ALGORITHMS["gemm"]
    fresh()
    assert autotune.select_algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input)) is autotune.ALGORITHMS["gemm"]


def test_the_winner_must_be_clearly_faster():
    assert choose_by_timings({"aten": AlgorithmTiming(1.0), "gemm": AlgorithmTiming(0.96)}) == "aten"
    assert (
        choose_by_timings({"aten": AlgorithmTiming(1.0), "gemm": AlgorithmTiming(0.9), "fft": AlgorithmTiming(0.8)})
        == "fft"
    )
    assert choose_by_timings({"aten": AlgorithmTiming(1.0), "gemm": AlgorithmTiming(None, "no")}) == "aten"
    assert (
        choose_by_timings({"aten": AlgorithmTiming(1e-4), "gemm": AlgorithmTiming(9e-5)}) == "aten"
    )  # the call overhead exceeds the gain
    assert choose_by_timings({"aten": AlgorithmTiming(4e-4), "gemm": AlgorithmTiming(3e-4)}) == "gemm"
    assert (
        choose_by_timings({"aten": AlgorithmTiming(4e-4), "gemm": AlgorithmTiming(3e-4)}, "weight_gradient") == "aten"
    )


def test_where_bfloat16_is_emulated_upcast_is_timed_instead_of_aten(fresh, monkeypatch):
    fresh()
    for computed, own, reason in ((True, "aten", None), (False, "upcast", "this CPU emulates bfloat16")):
        monkeypatch.setattr("svertka.conv.autotune.has_bfloat16", lambda computed=computed: computed)
        tried = autotune.time_algorithms("forward", SHAPE, torch.channels_last, torch.bfloat16)
        assert tried["aten"].why_not == reason
        assert tried["upcast"].seconds > 0
        assert choose_by_timings({own: AlgorithmTiming(1.0), "native_winograd": AlgorithmTiming(0.98)}) == own
        grouped = ConvShape.of((2, 4, 9, 9), (4, 1, 3, 3), groups=4)
        fresh().unlink(missing_ok=True)
        taken = autotune.select_algorithm("auto", "forward", grouped, torch.zeros(grouped.input, dtype=torch.bfloat16))
        assert taken in (autotune.ALGORITHMS[own], autotune.ALGORITHMS["upcast"])
    assert autotune.time_algorithms("forward", SHAPE, torch.channels_last)["upcast"].why_not == "it is for bfloat16"


def test_trials_hold_real_timings_and_errors():
    tried = autotune.time_algorithms("forward", SHAPE, torch.channels_last, thorough=True)
    assert list(tried) == list(autotune.ALGORITHMS)
    for trial in tried.values():
        assert trial.why_not or (trial.seconds > 0 and trial.error < 1e-5)
    for name, trial in autotune.time_algorithms(
        "forward", SHAPE, torch.channels_last, torch.bfloat16, thorough=True
    ).items():
        # bfloat16 has eight bits; values reach four times their root mean square; pairs are rounded in between, too.
        limit = 10 * native_winograd_bf16.LIMIT if name == "native_winograd_bf16" else 0.03
        assert trial.why_not or (trial.seconds > 0 and trial.error < limit)
    strided = ConvShape.of((1, 3, 9, 9), (4, 3, 3, 3), stride=2)
    assert "stride" in autotune.time_algorithms("forward", strided, torch.contiguous_format)["winograd"].why_not
    huge = ConvShape.of((64, 256, 56, 56), (256, 256, 3, 3), padding=1)
    assert autotune._too_large("gemm", huge) == "its patches would take 1.7 GiB"


def test_unlikely_winners_are_timed_only_when_thorough():
    one_by_one = ConvShape.of((2, 3, 9, 9), (4, 3, 1, 1))
    tried = autotune.time_algorithms("forward", one_by_one, torch.channels_last)
    assert tried["fft"].why_not == "with fewer than 25 taps, transforms cost more than they save"
    assert tried["gemm"].why_not == "aten computes the same product"
    thorough = autotune.time_algorithms("forward", one_by_one, torch.channels_last, thorough=True)
    assert thorough["fft"].seconds > 0
    assert thorough["gemm"].seconds > 0
    depthwise = autotune.time_algorithms(
        "forward", ConvShape.of((2, 3, 9, 9), (3, 1, 3, 3), groups=3), torch.channels_last
    )
    assert depthwise["gemm"].why_not == "depthwise convolutions gain nothing from it"
    if not native_support.why_not():
        assert (
            autotune.time_algorithms("forward", SHAPE, torch.channels_last)["gemm"].why_not
            == "a compiled kernel supports this shape"
        )


def test_a_single_candidate_is_not_timed(fresh, monkeypatch):
    fresh()
    monkeypatch.setattr(autotune, "time_algorithms", None)
    shape = ConvShape.of((2, 3, 9, 9), (4, 3, 1, 1), padding=1)
    assert autotune.select_algorithm("auto", "forward", shape, torch.zeros(shape.input)) is autotune.aten


def test_timing_does_not_change_the_random_state(fresh):
    fresh()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    conv2d(torch.zeros(SHAPE.input), torch.zeros(SHAPE.weight), padding=1)
    assert torch.equal(torch.rand(1), expected)


def reads(case, one_pass, places):
    """Return which values of a pass's result read those marked with 1 in `places`."""
    everything = {name: torch.ones_like(getattr(case, name)).double() for name in ("x", "weight", "gradient")}
    marked = replace(case, **everything | places)
    return marked.passes(autotune.ALGORITHMS["aten"])[autotune.PASSES.index(one_pass)] > 0.5


def test_local_algorithms_spread_nan_only_to_results_that_read_it(each_case, spoil):
    assert all(any(autotune.is_window_local(name, dtype) for name in autotune.ALGORITHMS) for dtype in autotune.DTYPES)

    def check(case):
        if not case.shape.batch:
            return
        spoiled, huge = spoil(case), replace(case, x=case.x.clone(), gradient=case.gradient.clone())
        huge.x[-1, -1, -1, -1] = huge.gradient[0, 0, 0, 0] = 1e12
        for dtype in autotune.DTYPES:
            for way, algorithm in autotune.ALGORITHMS.items():
                if not autotune.is_window_local(way, dtype) or algorithm.why_not(case.shape, dtype):
                    continue
                clean, off, far = (each.to(dtype).passes(algorithm) for each in (case, spoiled, huge))
                for number, one_pass in enumerate(autotune.PASSES):
                    name = "x" if one_pass == "forward" else "gradient"
                    places = {name: (~getattr(spoiled, name).isfinite()).double()}
                    seen = reads(case, one_pass, places)
                    if one_pass == "weight_gradient":
                        seen |= reads(case, one_pass, {"x": (~spoiled.x.isfinite()).double()})
                    bad = ~off[number].isfinite()
                    assert bad[seen].all()
                    if one_pass != "weight_gradient":  # there PyTorch multiplies padding, too
                        assert torch.equal(bad, seen)
                        far_seen = reads(case, one_pass, {name: (getattr(huge, name) == 1e12).double()})
                        for other, marked in ((off, seen), (far, far_seen)):
                            kept = ~marked
                            torch.testing.assert_close(other[number][kept], clean[number][kept])

    each_case(check)


def test_strict_chooses_among_local_algorithms_and_is_cached_separately(fresh, monkeypatch):
    fresh()

    def prefer_not_local(tried, _):
        return min((name for name in tried if tried[name].seconds), key=lambda name: autotune.ALGORITHMS[name].IS_LOCAL)

    monkeypatch.setattr(autotune, "choose_by_timings", prefer_not_local)
    x = torch.randn(SHAPE.input)
    assert not autotune.select_algorithm("auto", "forward", SHAPE, x).IS_LOCAL
    assert autotune.select_algorithm("strict", "forward", SHAPE, x).IS_LOCAL
    assert len(autotune.get_choices_of_process()) == 2
    tried = autotune.time_algorithms("forward", SHAPE, torch.channels_last, strict=True, thorough=True)
    assert {name for name, trial in tried.items() if trial.seconds is not None} <= {
        name for name, known in autotune.ALGORITHMS.items() if known.IS_LOCAL
    }


@pytest.fixture
def cache_path(tmp_path, monkeypatch):
    """The cache file of a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_choices.cache_clear()
    yield tmp_path / "svertka" / CACHE_FILE
    load_choices.cache_clear()


def test_a_cached_choice_holds_only_for_its_environment(cache_path):
    save_choice(PLACE, "x", "gemm")
    save_choice(PLACE, "y", "aten")
    load_choices.cache_clear()
    assert load_choices(PLACE) == {"x": "gemm", "y": "aten"}
    assert load_choices(describe_timing_environment(["aten", "gemm", "fft"])) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 1, "choices": 7}', b"\xff\x00"])
def test_a_damaged_cache_is_reported_and_replaced(cache_path, capsys, content):
    cache_path.parent.mkdir(parents=True)
    cache_path.write_bytes(content)
    assert load_choices(PLACE) == {}
    assert capsys.readouterr().err.count("is damaged; timing convolutions again") == 1
    save_choice(PLACE, "x", "gemm")
    assert json.loads(cache_path.read_text()) == {"format": CACHE_FORMAT, "choices": {PLACE: {"x": "gemm"}}}


def test_a_cache_of_another_format_is_replaced(cache_path, capsys):
    cache_path.parent.mkdir(parents=True)
    cache_path.write_text(json.dumps({"format": 99, "choices": {PLACE: {"x": "fft"}}}))
    assert load_choices(PLACE) == {}
    save_choice(PLACE, "y", "gemm")
    load_choices.cache_clear()
    assert load_choices(PLACE) == {"y": "gemm"}
    assert not capsys.readouterr().err


def test_an_unwritable_cache_is_kept_in_memory(cache_path, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    save_choice(PLACE, "x", "gemm")
    assert load_choices(PLACE) == {"x": "gemm"}


def test_a_cache_with_former_names_is_read(cache_path):
    former = {current: name for name, current in FORMER_NAMES.items()}
    place = describe_timing_environment(autotune.ALGORITHMS)
    before = describe_timing_environment(former.get(name, name) for name in autotune.ALGORITHMS)
    cache_path.parent.mkdir(parents=True)
    content = {before: {"x": "native_phases", "y": "direct", "z": "fft"}, place: {"y": "gemm"}}
    cache_path.write_text(json.dumps({"format": CACHE_FORMAT, "choices": content}))
    assert load_choices(place) == {"x": "space_to_depth", "y": "gemm", "z": "fft"}
