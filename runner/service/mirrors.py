"""What is kept of checkpoints at the places that their jobs name, for readers."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from runner.core import addresses
from runner.core.job import PLAIN, Ref
from runner.core.spec import EVERY_S
from runner.identity.users import user_name
from runner.service.refs import Target
from runner.service.times import iso
from runner.state import jobs, mirrors


def mirrored(connection: sqlite3.Connection, target: Target, now_us: int) -> list[dict[str, Any]]:
    """Return what is kept of the checkpoints of the elements that are meant, where their job says; a row an element."""
    facts = jobs.job_facts(connection, target.job_id)
    assert facts is not None
    stated = json.loads(facts[1]).get("mirror")
    if stated is None:
        return []
    user = user_name(facts[3]) or str(facts[3])
    return [
        {
            "index": None if index == PLAIN else index,
            "uri": addresses.of_element(stated["uri"], Ref(target.job_id, index), name=facts[0], user=user),
            "every_s": stated.get("every", EVERY_S),
            "saved_at": iso(each.saved_us),
            "age_s": None if each.saved_us is None else round((now_us - each.saved_us) / 1e6, 3),
            "digest": each.digest,
            "files": each.files,
            "size_bytes": each.size_bytes,
            "failures": each.failures,
            "fault": each.fault,
        }
        for index, each in mirrors.of_job(connection, target.job_id, target.index)
    ]
