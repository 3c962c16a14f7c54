"""Convolutions that are computed together, a few rows at a time, so that what lies between them stays in the cache.

Networks for small machines widen their maps by 1×1 convolutions, filter each channel by itself, and narrow them again
(Sandler et al. 2018, MobileNetV2, figure 3): what lies in between is six times what is there before and afterwards. It
is never needed as a whole: a row of the result needs a few rows of it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from svertka.compiler.ir import Chain, FusedConvolution, Step, inputs_of
from svertka.compiler.memory_planner import ALIGNMENT, FeatureMapSize
from svertka.compiler.packing import PackedWeights

MAX_TILE_NUMBERS = (
    1 << 18
)  # numbers between the steps of a chain at a time, for each thread: about what a second cache holds


def form_chains(
    steps: Sequence[Step], maps: Mapping[int, FeatureMapSize], weights: Mapping[str, PackedWeights], kept: Iterable[int]
) -> list[Step | Chain]:
    """`steps` with chains in place of those that are better computed together. `kept`: values needed to the end.

    A chain has convolutions of each channel by itself in it, and others around them that are computed as they are
    defined. It goes on where the map in between is larger, for one picture, than the weights on both sides of it, which
    are read again for every picture.
    """
    uses = Counter(value for step in steps for value in inputs_of(step)) + Counter(kept)

    def follows(step: Step, before: Step) -> bool:
        if not (
            isinstance(before, FusedConvolution) and isinstance(step, FusedConvolution) and step.x == before.result
        ):
            return False
        packed = weights[before.weight], weights[step.weight]
        by_definition = all(one.kernel == "depthwise" or (one.kernel == "direct" and one.groups == 1) for one in packed)
        between = maps[step.x]
        size = between.height * between.width * between.channels
        return uses[step.x] == 1 and by_definition and size > sum(one.numbers.numel() for one in packed)

    runs: list[list[Step]] = []
    for step in steps:
        if runs and follows(step, runs[-1][-1]):
            runs[-1].append(step)
        else:
            runs.append([step])
    found: list[Step | Chain] = []
    for run in runs:
        convolutions = [step for step in run if isinstance(step, FusedConvolution)]
        if len(run) > 1 and any(weights[step.weight].kernel == "depthwise" for step in convolutions):
            found.append(Chain(tuple(convolutions)))
        else:
            found += run
    return found


@dataclass(frozen=True)
class TileStep:
    """What a step of a chain does in a band: it makes rows `makes` of its result from rows `reads`.

    What it makes begins in memory with row `first`, as what it reads does with reads.start, except in the maps before
    and after the chain, which are there as a whole. `kept` rows of the result are there already, from the band before,
    `below` rows further down; they have to be moved before anything is made. There may be nothing else to do.
    """

    number: int
    reads: range
    makes: range
    first: int
    kept: int
    below: int


class ChainTiling:
    """How a chain is computed: in `segments` of a picture, each in parts, one after the other, by one thread.

    `maps`: what each step reads, and the result. `taps`: rows of each step's kernel. `starts`: where in the thread's
    memory lies what each step but the first reads; `room`: numbers in all.
    """

    def __init__(self, chain: Chain, maps: Sequence[FeatureMapSize], taps: Sequence[int], segments: int) -> None:
        self.chain, self.maps, self.taps = chain, maps, taps
        height = maps[-1].height
        rows = height
        while rows > 1 and self._room(self._parts(range(height), rows))[1] > MAX_TILE_NUMBERS:
            rows -= 1
        edges = [height * number // segments for number in range(segments + 1)]
        self.segments = [list(self._parts(range(*edge), rows)) for edge in pairwise(edges)]
        self.starts, self.room = self._room(part for segment in self.segments for part in segment)

    def _room(self, parts: Iterable[TileStep]) -> tuple[list[int], int]:
        most = Counter[int]()
        for part in parts:
            most[part.number] = max(most[part.number], len(part.reads))
        starts = [0, 0]
        for number, maps in enumerate(self.maps[1:-1], start=1):
            size = most[number] * maps.width * maps.channels
            starts.append(starts[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
        return starts[:-1], starts[-1]

    def _parts(self, segment: range, rows: int) -> Iterator[TileStep]:
        """For rows `segment` of the result, so many `rows` at a time."""
        steps = self.chain.steps
        there = [range(0)] * len(steps)  # what each step has in memory of the rows that it reads
        for start in range(segment.start, segment.stop, rows):
            makes = range(start, min(start + rows, segment.stop))
            band: list[TileStep] = []
            first, kept, below = 0, 0, 0
            for number in reversed(range(len(steps))):
                if not makes:
                    band.append(TileStep(number, range(0), makes, first, kept, below))
                    break
                before, reads = (
                    there[number],
                    find_input_rows(steps[number], self.taps[number], makes, self.maps[number].height),
                )
                band.append(TileStep(number, reads, makes, first, kept, below))
                before, there[number] = there[number], reads
                again = range(max(reads.start, before.start), max(before.stop, reads.start))
                first, kept, below = reads.start, len(again), again.start - before.start if again else 0
                makes = range(again.stop, reads.stop)
            yield from reversed(band)


def find_input_rows(step: FusedConvolution, taps: int, makes: range, height: int) -> range:
    """The rows of its input, `height` of them, that a step needs for rows that it makes; one where it needs none."""
    first = makes.start * step.stride[0] - step.padding[0]
    last = (makes.stop - 1) * step.stride[0] - step.padding[0] + (taps - 1) * step.dilation[0] + 1
    first = min(max(first, 0), height - 1)
    return range(first, max(min(last, height), first + 1))
