"""Names for jobs that have none: an adjective and a noun."""

from __future__ import annotations

ADJECTIVES = [
    "able", "amber", "ancient", "bold", "brave", "bright", "brisk", "calm", "clever", "cool", "cosmic", "crisp",
    "daring", "deep", "eager", "early", "fair", "fast", "fine", "firm", "fresh", "gentle", "glad", "golden",
    "grand", "happy", "hardy", "keen", "kind", "late", "light", "lively", "loyal", "lucid", "lucky", "mellow",
    "merry", "mild", "modest", "neat", "noble", "patient", "plain", "proud", "quick", "quiet", "rapid", "ready",
    "red", "royal", "rustic", "sharp", "shy", "silent", "silver", "sleek", "smart", "snug", "solid", "steady",
    "still", "strong", "sunny", "swift", "tidy", "true", "vivid", "warm", "wise", "witty", "young", "zesty",
]  # fmt: skip
NOUNS = [
    "badger", "bear", "beaver", "bison", "cedar", "comet", "crane", "creek", "crow", "dune", "eagle", "elk",
    "ember", "falcon", "fern", "finch", "fir", "fjord", "fox", "gale", "glade", "grove", "gull", "harbor", "hare",
    "hawk", "heron", "hill", "ibis", "jay", "kestrel", "kiln", "koala", "lake", "larch", "lark", "leaf", "lynx",
    "maple", "marten", "meadow", "mole", "moon", "moose", "moss", "oak", "otter", "owl", "panda", "peak", "pebble",
    "pine", "plover", "pond", "quail", "rain", "raven", "reef", "ridge", "river", "robin", "seal", "sloth",
    "sparrow", "spruce", "stoat", "stone", "stork", "swan", "thrush", "tiger", "trout", "wave", "willow", "wolf",
    "wren",
]  # fmt: skip


def made_up(number: int) -> str:
    """Return the name that a random non-negative number picks."""
    return f"{ADJECTIVES[number % len(ADJECTIVES)]}-{NOUNS[number // len(ADJECTIVES) % len(NOUNS)]}"
