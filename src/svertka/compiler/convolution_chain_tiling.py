"""Tiling of chains of convolutions, computed a few rows at a time so that intermediate rows stay in the cache.

The blocks of MobileNet-v2 expand feature maps by 1×1 convolutions, apply a depthwise convolution, and reduce them again
(Sandler et al. 2018, figure 3). The intermediate maps are six times as large as the input and output, but a row of the
result needs only a few of their rows.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from svertka.compiler.int8_packing import PackedInt8Weights
from svertka.compiler.ir import ConvolutionChain, FusedConvolution, Step
from svertka.compiler.memory_planner import ALIGNMENT, FeatureMapSize
from svertka.compiler.packing import PackedWeights

MIN_TILED_FLOATS = 1 << 16  # smaller intermediate maps stay in the L2 cache as a whole
DIVIDED_IMAGE_FACTOR = 4  # MIN_TILED_FLOATS is larger by this if threads divide an image and compute border rows twice
MAX_TILE_FLOATS = 1 << 18  # of intermediate rows per thread, about the size of an L2 cache
FLOAT_BYTES = 4
DEPTHWISE, DENSE = ("depthwise", "int8-depthwise"), ("direct", "int8")  # kinds of kernels


def form_convolution_chains(
    steps: Sequence[Step],
    maps: Mapping[int, FeatureMapSize],
    weights: Mapping[str, PackedWeights | PackedInt8Weights],
    kept: Iterable[int],
    per_float: Mapping[int, int],
    threads: int = 1,
) -> list[Step | ConvolutionChain]:
    """Return `steps` with chains instead of consecutive convolutions that are faster together.

    A chain contains depthwise convolutions and the direct convolutions around them. It is extended as long as the
    intermediate map of one image is larger than MIN_TILED_FLOATS and than the weights on both sides, which are read
    again for each image.

    Args:
        steps: The steps in the order in which they run.
        maps: The sizes of values.
        weights: Packed weights by name.
        kept: Values needed to the end.
        per_float: How many numbers of a value take the memory of a float, for values whose pixels begin with a whole
            float. Other values are in no chain.
        threads: How many threads run the network. If there are more than images, each image is divided among them.
    """
    uses = Counter(value for step in steps for value in step.inputs) + Counter(kept)

    def follows(step: Step, before: Step) -> bool:
        if not (
            isinstance(before, FusedConvolution) and isinstance(step, FusedConvolution) and step.x == before.result
        ):
            return False
        packed = weights[before.weight], weights[step.weight]
        by_definition = all(one.kernel in DEPTHWISE or (one.kernel in DENSE and one.groups == 1) for one in packed)
        in_floats = all(value in per_float for value in (*before.inputs, *step.inputs, step.result))
        if uses[step.x] != 1 or not by_definition or not in_floats:
            return False
        between = maps[step.x]
        size = between.height * between.width * between.channels // per_float[step.x]
        weights_size = sum(one.numbers.nbytes for one in packed) // FLOAT_BYTES
        least = MIN_TILED_FLOATS * (DIVIDED_IMAGE_FACTOR if between.batch < threads else 1)
        return size > max(least, weights_size)

    runs: list[list[Step]] = []
    for step in steps:
        if runs and follows(step, runs[-1][-1]):
            runs[-1].append(step)
        else:
            runs.append([step])
    found: list[Step | ConvolutionChain] = []
    for run in runs:
        convolutions = [step for step in run if isinstance(step, FusedConvolution)]
        if len(run) > 1 and any(weights[step.weight].kernel in DEPTHWISE for step in convolutions):
            found.append(ConvolutionChain(tuple(convolutions)))
        else:
            found += run
    return found


@dataclass(frozen=True)
class TileStep:
    """One convolution of a chain in one tile, which computes rows `makes` of its result from rows `reads` of its input.

    In memory, the result begins with row `first` and the input with row reads.start, but the input and output of the
    chain are complete. `kept` rows of the result were computed in the previous tile; they are `below` rows further down
    and are moved first. `makes` may be empty.
    """

    number: int
    reads: range
    makes: range
    first: int
    kept: int
    below: int


class ChainTiling:
    """The computation of a chain: `segments` of an image, each a list of tile steps for one thread.

    Args:
        chain: The convolutions.
        maps: Sizes of each step's input, and of the result.
        taps: Rows of each step's kernel.
        segments: Number of segments per image.
        per_float: For each of `maps`, how many of its numbers take the memory of a float.

    Attributes:
        segments: For each segment, its tile steps in order.
        starts: Offset in the thread's memory of each step's input, except the first, in numbers of the input.
        room: Size of a thread's memory, in floats.
    """

    def __init__(
        self,
        chain: ConvolutionChain,
        maps: Sequence[FeatureMapSize],
        taps: Sequence[int],
        segments: int,
        per_float: Sequence[int],
    ) -> None:
        self.chain, self.maps, self.taps, self.per_float = chain, maps, taps, per_float
        height = maps[-1].height
        rows = height
        while rows > 1 and self._room(self._parts(range(height), rows))[1] > MAX_TILE_FLOATS:
            rows -= 1
        edges = [height * number // segments for number in range(segments + 1)]
        self.segments = [list(self._parts(range(*edge), rows)) for edge in pairwise(edges)]
        self.starts, self.room = self._room(part for segment in self.segments for part in segment)

    def _room(self, parts: Iterable[TileStep]) -> tuple[list[int], int]:
        most = Counter[int]()
        for part in parts:
            most[part.number] = max(most[part.number], len(part.reads))
        starts, end = [0], 0
        for number, maps in enumerate(self.maps[1:-1], start=1):
            starts.append(end * self.per_float[number])
            size = -(-most[number] * maps.width * maps.channels // self.per_float[number])
            end += -(-size // ALIGNMENT) * ALIGNMENT
        return starts, end

    def _parts(self, segment: range, rows: int) -> Iterator[TileStep]:
        """Yield the tile steps for rows `segment` of the result, `rows` rows at a time."""
        steps = self.chain.steps
        there = [range(0)] * len(steps)  # rows that each step has in memory
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
    """Return the rows of an input of `height` rows that a step needs for rows `makes`; one if it needs only padding."""
    first = makes.start * step.stride[0] - step.padding[0]
    last = (makes.stop - 1) * step.stride[0] - step.padding[0] + (taps - 1) * step.dilation[0] + 1
    first = min(max(first, 0), height - 1)
    return range(first, max(min(last, height), first + 1))
