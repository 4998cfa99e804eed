"""What an hour costs: prices by device model and by core, and the rate an attempt copies at its start."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from runner.config import MODEL_CHARS_MAX
from runner.core.errors import UsageError
from runner.core.money import CREDITS_MAX, MICRO

_WORD = re.compile(r"[a-z0-9]+")


# An account pays for each distinct artifact that it names, once, past the first 50 GB.
STORAGE_FREE_BYTES = 50 * 10**9


def paid_storage(stored_bytes: int) -> int:
    """Return how many of an account's stored bytes are paid for."""
    return max(0, stored_bytes - STORAGE_FREE_BYTES)


class PriceKind(StrEnum):
    """What is paid for."""

    GPU = "gpu"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Price:
    """One price in micro-credits an hour, per device or per core; a GPU price without a model is the default."""

    kind: PriceKind
    model: str
    rate_micro_per_hour: int

    def __post_init__(self) -> None:
        """Refuse what could never be charged; the text may come from a user."""
        if not 0 <= self.rate_micro_per_hour <= CREDITS_MAX * MICRO:
            raise UsageError(f"a price is 0 to {CREDITS_MAX} credits an hour")
        if len(self.model) > MODEL_CHARS_MAX or (self.model and not self.condensed):
            raise UsageError(f"not a device model: {self.model[:40]!a}", hint='a few words, such as "RTX 4090"')
        if self.kind is PriceKind.CPU and self.model:
            raise UsageError("cores have one price, whatever their model")

    @property
    def condensed(self) -> str:
        """The model without blanks and case: two prices that share it are one price."""
        return condense(self.model)


@dataclass(frozen=True, slots=True)
class Rate:
    """What an attempt costs while it runs, in micro-credits an hour."""

    gpu_micro_per_hour: int
    cpu_micro_per_hour: int

    @property
    def micro_per_hour(self) -> int:
        """Both together: owed is one division over the sum, so an attempt is off by less than one micro-credit."""
        return self.gpu_micro_per_hour + self.cpu_micro_per_hour


def rate_for(devices: Sequence[str], cpu_milli: int, prices: Iterable[Price]) -> Rate:
    """Return the rate of an attempt that holds devices of these model names and `cpu_milli` thousandths of a core."""
    gpu_prices: dict[str, int] = {}
    core_rate = 0
    for price in prices:
        if price.kind is PriceKind.CPU:
            core_rate = price.rate_micro_per_hour
        else:
            gpu_prices[price.condensed] = price.rate_micro_per_hour
    return Rate(sum(_device_rate(name, gpu_prices) for name in devices), core_rate * cpu_milli // 1000)


def condense(model: str) -> str:
    """Return the words of a model name run together in lower case."""
    return "".join(_WORD.findall(model.lower()))


def _device_rate(name: str, gpu_prices: dict[str, int]) -> int:
    """The longest run of whole words that has a price wins, so that `a10` never prices an A100."""
    words = _WORD.findall(name.lower())
    runs = {"".join(words[first:last]) for first in range(len(words)) for last in range(first + 1, len(words) + 1)}
    best = max((run for run in runs if run in gpu_prices), key=len, default="")
    return gpu_prices.get(best, 0)
