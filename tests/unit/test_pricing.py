"""Which price a device gets, and what an attempt's rate is."""

from __future__ import annotations

import pytest

from runner.core.errors import UsageError
from runner.core.money import CREDITS_MAX, MICRO
from runner.ledger.pricing import Price, PriceKind, Rate, paid_storage, rate_for


def gpu(model: str, rate_micro_per_hour: int) -> Price:
    """A GPU price."""
    return Price(PriceKind.GPU, model, rate_micro_per_hour)


PRICES = [
    gpu("", 7),
    gpu("a10", 10),
    gpu("A100", 100),
    gpu("a100 80GB", 180),
    gpu("RTX 4090", 409),
    gpu("1g.5gb", 15),
    Price(PriceKind.CPU, "", 50_000),
]


@pytest.mark.parametrize(
    ("device", "rate"),
    [
        ("NVIDIA A10", 10),
        ("NVIDIA A10G", 7),
        ("NVIDIA A100-SXM4-40GB", 100),
        ("NVIDIA A100 80GB PCIe", 180),
        ("NVIDIA A100-SXM4-80GB", 100),
        ("NVIDIA GeForce RTX 4090", 409),
        ("nvidia geforce rtx4090", 409),
        ("NVIDIA GeForce RTX 4090 Ti", 409),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 15),
        ("Tesla T4", 7),
        ("", 7),
    ],
)
def test_the_longest_run_of_whole_words_wins(device: str, rate: int) -> None:
    """`a10` is neither A10G nor A100; blanks and case do not matter; no match takes the default."""
    assert rate_for([device], 0, PRICES) == Rate(rate, 0)


def test_a_device_without_any_price_is_free() -> None:
    """Where neither its model nor a default has a price, a device costs nothing."""
    assert rate_for(["Tesla T4"], 1000, [gpu("a100", 100)]) == Rate(0, 0)


def test_devices_add_up_and_cores_count_in_thousandths() -> None:
    """An attempt pays for each device and for its part of a core, rounded down once."""
    rate = rate_for(["NVIDIA A10", "NVIDIA A100-PCIE-40GB"], 1250, PRICES)
    assert rate == Rate(110, 62_500)
    assert rate.micro_per_hour == 62_610
    assert rate_for([], 1, [Price(PriceKind.CPU, "", 999)]) == Rate(0, 0)


@pytest.mark.parametrize(
    ("kind", "model", "rate"),
    [
        (PriceKind.GPU, "a100", -1),
        (PriceKind.GPU, "a100", CREDITS_MAX * MICRO + 1),
        (PriceKind.GPU, "--- ", 1),
        (PriceKind.GPU, "x" * 101, 1),
        (PriceKind.CPU, "epyc", 1),
    ],
)
def test_a_price_that_cannot_be_charged_is_refused(kind: PriceKind, model: str, rate: int) -> None:
    """Out of bounds, a model without a word, a model for cores: `UsageError`."""
    with pytest.raises(UsageError):
        Price(kind, model, rate)


@pytest.mark.parametrize(("stored", "paid"), [(0, 0), (50 * 10**9, 0), (50 * 10**9 + 1, 1), (2 * 10**12, 195 * 10**10)])
def test_the_first_50_gb_are_free(stored: int, paid: int) -> None:
    """Past them every byte is paid for."""
    assert paid_storage(stored) == paid
