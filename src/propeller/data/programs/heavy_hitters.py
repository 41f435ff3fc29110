"""A linear sketch of how often values occur: those of all devices add up, and the frequent values can be read out of the sum.

Cormode and Muthukrishnan, *What's Hot and What's Not: Tracking Most Frequent Items Dynamically*, ACM Transactions on Database
Systems 30(1), 2005, section 3.2 (combinatorial group testing): ``depth`` times each value falls into one of ``width`` buckets, by a
hash; a bucket counts its occurrences, and for each bit of a value those in which it is 1. A value that makes up more than half of its
bucket is there bit for bit.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from propeller.tensors.shapes import TensorError

Row = list[list[int]]
"""A list for each bucket: its count, and those of the bits."""


@dataclass(frozen=True)
class HeavyHitters:
    """How a sketch is made; its tensor has the shape ``[depth, width, 1 + 8 * length]``.

    Of ``N`` values in all, one that occurs ``f`` times is missed with a probability of at most ``(N / (width f)) ** depth`` (Markov's
    inequality for each hash, as if hashes were random), and counted as at least ``f``, and as more than ``f + 4 N / width`` with a
    probability of at most ``4 ** -depth`` (Count-Min).

    Attributes:
        depth: hashes.
        width: buckets of each.
        length: bytes of a value as UTF-8; the rest of a longer one does not count.
    """

    depth: int = 4
    width: int = 128
    length: int = 16

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> "HeavyHitters":
        """The one whose tensor has this shape.

        Raises:
            TensorError: there is none.
        """
        if len(shape) != 3 or min(shape) < 1 or shape[2] < 9 or shape[2] % 8 != 1:
            raise TensorError(f"a sketch has the shape [depth, width, 1 + 8 * length], not {list(shape)}")
        return cls(shape[0], shape[1], shape[2] // 8)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of its tensor."""
        return self.depth, self.width, 1 + 8 * self.length

    def count(self, occurrences: Mapping[str, int]) -> list[Row]:
        """The sketch of so many occurrences of each text."""
        rows: list[Row] = [[[0] * self.shape[2] for _ in range(self.width)] for _ in range(self.depth)]
        for text, number in occurrences.items():
            value = self._encode(text)
            ones = [0, *(1 + bit for bit in range(8 * self.length) if value[bit // 8] >> bit % 8 & 1)]
            for row, counts in enumerate(rows):
                bucket = counts[self._bucket(row, value)]
                for place in ones:
                    bucket[place] += number
        return rows

    def find(self, sketch: Sequence[Row], least: int = 1) -> list[tuple[str, int]]:
        """The frequent texts of a sketch with how often each occurs, or somewhat more; the most frequent first.

        Args:
            sketch: the sum of some.
            least: texts that occur less often are left out.
        """
        found = set(self._candidates(sketch))
        counted = ((value, min(self._counts(sketch, value))) for value in found)
        texts = [
            (value.rstrip(b"\0").decode(errors="replace"), count)
            for value, count in counted
            if count >= least
        ]
        return sorted(texts, key=lambda one: (-one[1], one[0]))

    def _candidates(self, sketch: Sequence[Row]) -> Iterator[bytes]:
        for row, counts in enumerate(sketch):
            for place, (count, *bits) in enumerate(counts):
                if count > 0:
                    value = bytes(
                        sum((2 * bits[8 * at + bit] > count) << bit for bit in range(8))
                        for at in range(self.length)
                    )
                    if self._bucket(row, value) == place:  # else it is a mixture of several
                        yield value

    def _counts(self, sketch: Sequence[Row], value: bytes) -> Iterable[int]:
        return (sketch[row][self._bucket(row, value)][0] for row in range(self.depth))

    def _encode(self, text: str) -> bytes:
        value = text.encode()
        if len(value) > self.length:  # no part of a character
            value = value[: self.length].decode(errors="ignore").encode()
        return value.ljust(self.length, b"\0")

    def _bucket(self, row: int, value: bytes) -> int:
        digest = blake2b(value, digest_size=8, person=b"hitters", salt=row.to_bytes(2, "little")).digest()
        return int.from_bytes(digest, "little") % self.width
