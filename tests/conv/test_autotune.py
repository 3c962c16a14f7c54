from dataclasses import replace

import pytest
import torch

from svertka.conv import autotune, native, native_winograd_bf16
from svertka.conv.api import conv2d
from svertka.conv.autotune import Trial, winner
from svertka.conv.autotune_cache import FILE, here, remember, remembered
from svertka.conv_geometry import ConvShape

SHAPE = ConvShape.of((2, 3, 9, 9), (4, 3, 3, 3), padding=1)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A process that has chosen nothing yet, with a cache of its own; calling it makes another such process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def forget():
        remembered.cache_clear()
        autotune._chosen.clear()
        autotune._repeated.clear()
        return tmp_path / "svertka" / FILE

    yield forget
    forget()


@pytest.fixture
def timed(monkeypatch):
    """The shapes that were timed, in order; gemm always wins."""
    shapes = []

    def trials(one_pass, shape, *_, **__):
        shapes.append((one_pass, shape))
        return {"direct": Trial(1.0), "gemm": Trial(0.5), "winograd": Trial(None, "no"), "fft": Trial(2.0)}

    monkeypatch.setattr(autotune, "trials", trials)
    return shapes


def test_a_shape_is_timed_once_and_remembered_by_later_processes(fresh, timed):
    x = torch.zeros(SHAPE.input)
    fresh()
    for _ in range(2):
        assert autotune.algorithm("auto", "forward", SHAPE, x) is autotune.ALGORITHMS["gemm"]
    autotune.algorithm("auto", "weight_gradient", SHAPE, x)
    assert timed == [("forward", SHAPE), ("weight_gradient", SHAPE)]
    fresh()
    assert autotune.algorithm("auto", "forward", SHAPE, x) is autotune.ALGORITHMS["gemm"]
    assert len(timed) == 2


def test_each_dtype_is_timed_and_remembered_for_itself(fresh, timed):
    fresh()
    for dtype in autotune.DTYPES:
        autotune.algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input, dtype=dtype))
    assert len(timed) == 2
    one, other = autotune.choices()
    assert other == f"{one}, bfloat16"  # so what was remembered of float32 before there was bfloat16 still holds


def test_what_it_does_not_know_is_pytorchs(fresh, timed):
    fresh()
    for x in (torch.zeros(SHAPE.input, dtype=torch.float64), torch.zeros(SHAPE.input, device="meta")):
        assert autotune.algorithm("auto", "forward", SHAPE, x) is autotune.ALGORITHMS["direct"]
    assert not timed


def test_algorithms_that_there_are_no_more_are_timed_anew(fresh, timed):
    fresh()
    autotune.algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input))
    (written,) = autotune.choices()
    remember(here(autotune.ALGORITHMS), written, "strassen")
    fresh()
    autotune.algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input))
    assert len(timed) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(fresh, timed, monkeypatch, tmp_path):
    fresh()
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        autotune.algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input))
    assert len(timed) == 1


def test_choices_can_be_repeated(fresh, timed, monkeypatch):
    fresh()
    autotune.algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input))
    taken = autotune.choices()
    assert list(taken.values()) == ["gemm"]
    path = fresh()
    path.unlink()
    with autotune.repeating(dict.fromkeys(taken, "fft")):
        assert autotune.algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input)) is autotune.ALGORITHMS["fft"]
        assert list(autotune.choices().values()) == ["fft"]
    assert len(timed) == 1


def test_what_is_repeated_does_not_last(fresh, timed):
    fresh()
    autotune.algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input))
    taken = autotune.choices()
    with autotune.repeating(dict.fromkeys(taken, "fft")):
        autotune.algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input))
    assert autotune.choices() == taken
    assert autotune.algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input)) is autotune.ALGORITHMS["gemm"]
    fresh()
    assert autotune.algorithm("auto", "forward", SHAPE, torch.zeros(SHAPE.input)) is autotune.ALGORITHMS["gemm"]


def test_the_winner_has_to_be_clearly_faster():
    assert winner({"direct": Trial(1.0), "gemm": Trial(0.98)}) == "direct"
    assert winner({"direct": Trial(1.0), "gemm": Trial(0.9), "fft": Trial(0.8)}) == "fft"
    assert winner({"direct": Trial(1.0), "gemm": Trial(None, "no")}) == "direct"
    assert winner({"direct": Trial(1e-4), "gemm": Trial(9e-5)}) == "direct"  # to get there takes longer than is won


def test_where_bfloat16_is_imitated_pytorchs_own_is_not_timed_but_that_of_float32(fresh, monkeypatch):
    fresh()
    for computed, own, reason in ((True, "direct", None), (False, "widened", "this processor only imitates bfloat16")):
        monkeypatch.setattr("svertka.conv.autotune.has_bfloat16", lambda computed=computed: computed)
        tried = autotune.trials("forward", SHAPE, torch.channels_last, torch.bfloat16)
        assert tried["direct"].why_not == reason
        assert tried["widened"].seconds > 0
        assert winner({own: Trial(1.0), "native_winograd": Trial(0.98)}) == own
        grouped = ConvShape.of((2, 4, 9, 9), (4, 1, 3, 3), groups=4)
        fresh().unlink(missing_ok=True)
        taken = autotune.algorithm("auto", "forward", grouped, torch.zeros(grouped.input, dtype=torch.bfloat16))
        assert taken in (autotune.ALGORITHMS[own], autotune.ALGORITHMS["widened"])
    assert autotune.trials("forward", SHAPE, torch.channels_last)["widened"].why_not == "it is for bfloat16"


def test_trials_are_real():
    tried = autotune.trials("forward", SHAPE, torch.channels_last, thorough=True)
    assert list(tried) == list(autotune.ALGORITHMS)
    for trial in tried.values():
        assert trial.why_not or (trial.seconds > 0 and trial.error < 1e-5)
    for name, trial in autotune.trials("forward", SHAPE, torch.channels_last, torch.bfloat16, thorough=True).items():
        # Of eight digits, of values up to four times their root mean square; pairs are rounded in between, too.
        limit = 10 * native_winograd_bf16.LIMIT if name == "native_pairs" else 0.03
        assert trial.why_not or (trial.seconds > 0 and trial.error < limit)
    strided = ConvShape.of((1, 3, 9, 9), (4, 3, 3, 3), stride=2)
    assert "stride" in autotune.trials("forward", strided, torch.contiguous_format)["winograd"].why_not
    huge = ConvShape.of((64, 256, 56, 56), (256, 256, 3, 3), padding=1)
    assert autotune._too_large("gemm", huge) == "its patches would take 1.7 GiB"


def test_what_hardly_ever_wins_is_timed_only_when_all_is_asked_for():
    one_by_one = ConvShape.of((2, 3, 9, 9), (4, 3, 1, 1))
    tried = autotune.trials("forward", one_by_one, torch.channels_last)
    assert tried["fft"].why_not == "with fewer than 25 taps transforms cost more than they save"
    assert tried["gemm"].why_not == "PyTorch's own is the same product"
    assert autotune.trials("weight_gradient", one_by_one, torch.channels_last)["gemm"].seconds > 0
    thorough = autotune.trials("forward", one_by_one, torch.channels_last, thorough=True)
    assert thorough["fft"].seconds > 0
    assert thorough["gemm"].seconds > 0
    depthwise = autotune.trials("forward", ConvShape.of((2, 3, 9, 9), (3, 1, 3, 3), groups=3), torch.channels_last)
    assert depthwise["gemm"].why_not == "products of one channel each leave nothing to gain"
    if not native.why_not():
        assert autotune.trials("forward", SHAPE, torch.channels_last)["gemm"].why_not == "compiled kernels can do it"


def test_nothing_is_timed_where_nothing_else_could_win(fresh, monkeypatch):
    fresh()
    monkeypatch.setattr(autotune, "trials", None)
    shape = ConvShape.of((2, 3, 9, 9), (4, 3, 1, 1))
    assert autotune.algorithm("auto", "forward", shape, torch.zeros(shape.input)) is autotune.aten


def test_random_numbers_are_not_touched(fresh):
    fresh()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    conv2d(torch.zeros(SHAPE.input), torch.zeros(SHAPE.weight), padding=1)
    assert torch.equal(torch.rand(1), expected)


def reads(case, one_pass, places):
    """Which numbers of a pass's result the definition makes of those that are marked in `places`, a case of 0 and 1."""
    everything = {name: torch.ones_like(getattr(case, name)).double() for name in ("x", "weight", "gradient")}
    marked = replace(case, **everything | places)
    return marked.passes(autotune.ALGORITHMS["direct"])[autotune.PASSES.index(one_pass)] > 0.5


def test_an_algorithm_that_is_local_spoils_only_what_reads_a_value(each_case, spoil):
    assert all(any(autotune.is_local(name, dtype) for name in autotune.ALGORITHMS) for dtype in autotune.DTYPES)

    def check(case):
        if not case.shape.batch:
            return
        spoiled, huge = spoil(case), replace(case, x=case.x.clone(), gradient=case.gradient.clone())
        huge.x[-1, -1, -1, -1] = huge.gradient[0, 0, 0, 0] = 1e12
        for dtype in autotune.DTYPES:
            for way, algorithm in autotune.ALGORITHMS.items():
                if not autotune.is_local(way, dtype) or algorithm.why_not(case.shape, dtype):
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
                    if one_pass != "weight_gradient":  # there PyTorch's own multiplies padding, too
                        assert torch.equal(bad, seen)
                        far_seen = reads(case, one_pass, {name: (getattr(huge, name) == 1e12).double()})
                        for other, marked in ((off, seen), (far, far_seen)):
                            kept = ~marked
                            torch.testing.assert_close(other[number][kept], clean[number][kept])

    each_case(check)


def test_strict_chooses_among_local_algorithms_and_remembers_it_by_itself(fresh, monkeypatch):
    fresh()
    monkeypatch.setattr(autotune, "winner", lambda tried: [name for name in tried if tried[name].seconds][-1])
    x = torch.randn(SHAPE.input)
    assert not autotune.algorithm("auto", "forward", SHAPE, x).IS_LOCAL
    assert autotune.algorithm("strict", "forward", SHAPE, x).IS_LOCAL
    assert len(autotune.choices()) == 2
    tried = autotune.trials("forward", SHAPE, torch.channels_last, strict=True, thorough=True)
    assert {name for name, trial in tried.items() if trial.seconds is not None} <= {
        name for name, known in autotune.ALGORITHMS.items() if known.IS_LOCAL
    }
