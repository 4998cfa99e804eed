"""One writer beside a sweep: publishes trees that share bytes with others', writes down the last few, and checks them.

`python ingest_job.py STORE OWN-DIRECTORY SEED`, until OWN-DIRECTORY/stop is there; `done` grows by a byte a tree,
`lost` by a line for each tree that was promised and is not whole.
"""

import random
import sys
from pathlib import Path

from storage.publish import publish
from storage.store import Store

KEPT = 3
CONTENTS = [bytes([number]) * (1 + 700 * number) for number in range(40)]

root, own, chance = Path(sys.argv[1]), Path(sys.argv[2]), random.Random(int(sys.argv[3]))
store = Store(root)
kept: list[str] = []
while not (own / "stop").exists():
    source = own / "source"
    source.mkdir()
    for number in range(chance.randint(1, 12)):
        (source / f"f{number}").write_bytes(chance.choice(CONTENTS))
    with store.lease(f"ingest {own.name}"):
        published = publish(store, source)
        assert published is not None
        kept = [*kept, published.tree_digest][-KEPT:]
        (own / "roots.new").write_text("\n".join(kept))
        (own / "roots.new").rename(own / "roots")
    for path in source.iterdir():
        path.unlink()
    source.rmdir()
    for bad in store.verify(*kept):
        with (own / "lost").open("a") as lost:
            lost.write(f"{bad.tree} {bad.path} {bad.why}\n")
    with (own / "done").open("ab") as done:
        done.write(b".")
