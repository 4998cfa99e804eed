"""The launch plan as a document: printable, whole, and without a value of the environment."""

from __future__ import annotations

import json

import pytest

from runner.core.plan import CgroupPlan, Identity, LaunchPlan, Link, Mount, ResourceLimit, WorkerPlan, from_document

PLAN = LaunchPlan(
    attempt_id=3,
    job="42[7]",
    token="0" * 32,
    cwd="/home/ada",
    workers=(WorkerPlan(0, ("python", "train.py"), ("HOME", "PATH")), WorkerPlan(1, ("python", "train.py"))),
    time_limit_s=3600.0,
    memory_bytes=1 << 30,
    cpu_quota_milli=250,
    affinity=(0, 1),
    rlimits=(ResourceLimit(7, 1024, -1),),
    mounts=(Mount("/a", "/b"),),
    links=(Link("/c", "/d"),),
    identity=Identity(1000, 1000, (44,)),
    cgroups=CgroupPlan(unified="/sys/fs/cgroup/stoker/x"),
)


def test_a_plan_survives_its_document() -> None:
    """Through JSON and back it is the same plan."""
    assert from_document(json.loads(json.dumps(PLAN.to_document()))) == PLAN


@pytest.mark.parametrize("change", [{"version": 2}, {"colour": "red"}, {"workers": [{"rank": 0}]}, {"workers": 1}])
def test_a_document_that_is_no_plan_is_refused(change: dict[str, object]) -> None:
    """Another version, an unknown field, a missing one: ValueError, never a guess."""
    with pytest.raises(ValueError, match="launch plan"):
        from_document({**PLAN.to_document(), **change})


def test_a_missing_field_is_refused() -> None:
    """A plan without its token is no plan."""
    document = PLAN.to_document()
    del document["token"]
    with pytest.raises(ValueError, match="token"):
        from_document(document)
