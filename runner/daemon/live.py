"""Answers to readers' questions about what only the daemon knows. Asked from any thread; each answer is a snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from runner.core.reasons import Waiting, WaitReason
from runner.core.units import format_size
from runner.daemon.board import Board
from runner.daemon.context import Context
from runner.daemon.devices import Devices
from runner.daemon.gpu_use import process_name
from runner.daemon.make import Maker
from runner.daemon.prepare import Preparer
from runner.daemon.save import Saver
from runner.executors.cgroups import CgroupRoots
from runner.gpus.reading import GpuReading
from runner.service.facts import LiveFacts
from schedulers.decide import explain
from schedulers.decision import Start, Wait
from schedulers.placement import short
from schedulers.resources import Device


def live_facts(
    context: Context, devices: Devices, *, preparer: Preparer, saver: Saver, maker: Maker, cgroups: CgroupRoots
) -> LiveFacts:
    """Bind the questions to the daemon's parts."""
    return LiveFacts(
        preparing=preparer.reason,
        saving=saver.reason,
        making=maker.reason,
        explain=lambda job_id: why_waiting(context.board, context.clock.now_us(), job_id, devices.absent),
        inventory=context.board.inventory,
        devices=lambda: _devices(context, devices),
        admission=lambda: context.admission,
        stalled=lambda: context.stalled,
        enforced=lambda: {name: cgroups.enforces(name) for name in ("cpu", "memory")},
        ways=lambda: {"cgroup": cgroups.unified is not None, **asdict(context.permitted)},
    )


def why_waiting(board: Board, now_us: int, job_id: int, absent: Mapping[str, str]) -> WaitReason | None:
    """Ask the scheduler's own code about one job; the board may change under us, then the question is asked again."""
    for _ in range(3):
        try:
            if job_id not in board.waiting:
                return None
            decision = explain(board.look(now_us), job_id)
        except (RuntimeError, LookupError, AssertionError):  # the queue changed while it was read
            continue
        return _sentence(decision, absent)
    return None


def _sentence(decision: Start | Wait, absent: Mapping[str, str]) -> WaitReason:
    if isinstance(decision, Start):
        return WaitReason(Waiting.RESOURCES, "it starts next")
    reason = decision.reason
    data = {"lacks": reason.lacks, "holders": list(reason.holders), "behind": reason.behind or None}
    if reason.kind == "array_limit":
        return WaitReason(Waiting.ARRAY_LIMIT, "as many elements of its array run as may at once", data)
    if reason.behind:
        return WaitReason(
            Waiting(reason.kind),
            f"waits behind job {reason.behind}" + (f" for {reason.lacks}" if reason.lacks else ""),
            data,
        )
    who = list(reason.holders[:3])
    if "GPU" in reason.lacks:
        who += [f"{short(uuid)} is {why}" for uuid, why in list(absent.items())[:3]]
    held = f": {', '.join(who)}" if who else ""
    return WaitReason(Waiting(reason.kind), f"waits for {reason.lacks}{held}", data)


def _devices(context: Context, devices: Devices) -> dict[str, Any]:
    reading = devices.reading
    here = {each.uuid for each in reading.devices}
    shown = [_device(context, devices, each) for each in reading.devices]
    gone = [_gone(context, devices, each) for each in context.board.known if each.uuid not in here]
    return {"devices": shown + gone, "driver": reading.driver_version, "error": reading.error}


def _gone(context: Context, devices: Devices, device: Device) -> dict[str, Any]:
    """Tell of a device that was seen before and is not there now."""
    ref, quarantine = context.board.holder(device.uuid), _quarantine(devices, device.uuid)
    return {
        "uuid": device.uuid,
        "index": None,
        "model": device.model,
        "memory_bytes": device.memory_bytes,
        "state": "quarantined" if quarantine is not None else "gone",
        "holder": f"job {ref.label}" if ref is not None else None,
        "job": ref.label if ref is not None else None,
        "reason": quarantine or devices.absent.get(device.uuid),
        "processes": [],
    }


def _quarantine(devices: Devices, uuid: str) -> str | None:
    """Say why a device is quarantined: in one look, as the turn may be changing it."""
    why = devices.quarantined.get(uuid)
    return None if why is None else f"quarantined: {why}"


def _device(context: Context, devices: Devices, reading: GpuReading) -> dict[str, Any]:
    ref = context.board.holder(reading.uuid)
    on_board = next((each for each in context.board.devices if each.uuid == reading.uuid), None)
    outside = on_board.holder if on_board is not None else None
    state, reason, quarantine = "free", devices.absent.get(reading.uuid), _quarantine(devices, reading.uuid)
    if quarantine is not None:
        state, reason = "quarantined", quarantine
    elif reason is not None:
        state = "unreadable"
    elif ref is not None:
        state = "held"
    elif on_board is None:
        state, reason = "excluded", "[gpu] exclude"
    elif outside is not None:
        state, reason = "used", outside
    return {
        "uuid": reading.uuid,
        "index": reading.index,
        "model": reading.model,
        "memory_bytes": reading.memory_bytes,
        "used_bytes": reading.used_bytes,
        "utilization_percent": reading.utilization_percent,
        "temperature_c": reading.temperature_c,
        "power_w": reading.power_mw / 1000 if reading.power_mw is not None else None,
        "state": state,
        "holder": f"job {ref.label}" if ref is not None else outside,
        "job": ref.label if ref is not None else None,
        "reason": reason,
        "processes": [
            {
                "pid": each.pid,
                "name": process_name(each.pid),
                "kind": each.kind,
                "used": format_size(each.used_bytes) if each.used_bytes is not None else None,
            }
            for each in reading.processes or ()
        ],
    }
