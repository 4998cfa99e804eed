"""Which devices a request gets, and where it gets none, what is lacking and who holds it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from schedulers.decision import Reason, Start
from schedulers.resources import Allocation, Device, Inventory, ResourceRequest

# A reason is one line of a terminal: past this many holders the rest are counted.
HOLDERS_MAX = 8


class Room:
    """What can be given away. It only shrinks, so that a request that does not fit once never fits later."""

    __slots__ = ("cpu_milli", "devices", "memory_bytes")

    def __init__(self, devices: Iterable[Device], cpu_milli: int, memory_bytes: int) -> None:
        self.devices = sorted(devices, key=_smallest_first)
        self.cpu_milli = max(0, cpu_milli)
        self.memory_bytes = max(0, memory_bytes)

    @classmethod
    def now_free(cls, inventory: Inventory) -> Room:
        """Return what nobody holds."""
        free = (device for device in inventory.devices if device.holder is None)
        return cls(free, inventory.free_cpu_milli, inventory.free_memory_bytes)

    @classmethod
    def present(cls, inventory: Inventory) -> Room:
        """Return what there would be if every holder let go."""
        return cls(inventory.devices, inventory.cpu_milli, inventory.memory_bytes)

    @classmethod
    def ever(cls, inventory: Inventory) -> Room:
        """Return what the box has when every device that was ever seen is back."""
        return cls(inventory.known, inventory.cpu_milli, inventory.memory_bytes)

    def fits(self, request: ResourceRequest) -> bool:
        """Say whether all workers of a request can be placed at once."""
        workers = request.workers
        if request.cpu_milli * workers > self.cpu_milli or request.memory_bytes * workers > self.memory_bytes:
            return False
        gpus = request.gpus * workers
        if not gpus:
            return True
        return gpus <= len(self.devices) and self.devices[-gpus].memory_bytes >= request.gpu_memory_bytes

    def take(self, request: ResourceRequest) -> Allocation | None:
        """Give a request all that it asks for, the smallest devices that will do, or nothing."""
        if not self.fits(request):
            return None
        first = self._first_usable(request)
        last = first + request.gpus * request.workers
        devices = tuple(device.uuid for device in self.devices[first:last])
        del self.devices[first:last]
        cpu_milli, memory_bytes = request.cpu_milli * request.workers, request.memory_bytes * request.workers
        self.cpu_milli -= cpu_milli
        self.memory_bytes -= memory_bytes
        return Allocation(devices, cpu_milli, memory_bytes)

    def keep_for(self, request: ResourceRequest) -> None:
        """Set aside what a waiting request needs: its part of what suffices, and all there is of what it lacks."""
        first = self._first_usable(request)
        del self.devices[first : first + request.gpus * request.workers]
        self.cpu_milli = max(0, self.cpu_milli - request.cpu_milli * request.workers)
        self.memory_bytes = max(0, self.memory_bytes - request.memory_bytes * request.workers)

    def lacks(self, request: ResourceRequest) -> dict[str, int]:
        """Return how much of `gpus`, `cpu` (milli) and `memory` (bytes) is missing; empty when the request fits."""
        missing = {
            "gpus": request.gpus * request.workers - len(self.devices) + self._first_usable(request),
            "cpu": request.cpu_milli * request.workers - self.cpu_milli,
            "memory": request.memory_bytes * request.workers - self.memory_bytes,
        }
        if not request.gpus:
            del missing["gpus"]
        return {kind: amount for kind, amount in missing.items() if amount > 0}

    def _first_usable(self, request: ResourceRequest) -> int:
        return bisect_left(self.devices, request.gpu_memory_bytes, key=_memory)


def refusal(request: ResourceRequest, inventory: Inventory) -> Reason:
    """Say what a request that does not fit lacks of what is free, and who holds that."""
    lacks = Room.now_free(inventory).lacks(request)
    holders: list[str] = []
    if "gpus" in lacks:
        holders += _device_holders(request, inventory.devices)
    if "cpu" in lacks:
        holders += [f"{who} holds {cores(milli)}" for who, milli in _largest(inventory.cpu_holders)]
    if "memory" in lacks:
        holders += [f"{who} holds {size(held)} of memory" for who, held in _largest(inventory.memory_holders)]
    if len(holders) > HOLDERS_MAX:
        holders[HOLDERS_MAX - 1 :] = [f"{len(holders) - HOLDERS_MAX + 1} more"]
    return Reason("resources", lacks=shortage(lacks, request), holders=tuple(holders))


def after(inventory: Inventory, starts: Iterable[Start]) -> Inventory:
    """Return the box as it is when all starts have what they were given."""
    owner: dict[str, str] = {}
    free_cpu_milli, free_memory_bytes = inventory.free_cpu_milli, inventory.free_memory_bytes
    cpu_holders, memory_holders = dict(inventory.cpu_holders), dict(inventory.memory_holders)
    for start in starts:
        who, given = f"job {start.job_id}", start.allocation
        owner.update(dict.fromkeys(given.devices, who))
        free_cpu_milli -= given.cpu_milli
        free_memory_bytes -= given.memory_bytes
        cpu_holders[who] = cpu_holders.get(who, 0) + given.cpu_milli
        memory_holders[who] = memory_holders.get(who, 0) + given.memory_bytes
    return replace(
        inventory,
        devices=tuple(replace(each, holder=owner.get(each.uuid, each.holder)) for each in inventory.devices),
        free_cpu_milli=free_cpu_milli,
        free_memory_bytes=free_memory_bytes,
        cpu_holders=cpu_holders,
        memory_holders=memory_holders,
    )


def never_fits(request: ResourceRequest, inventory: Inventory) -> str | None:
    """Say why a request can never start on this box, with what the box has; None when it could."""
    lacks = Room.ever(inventory).lacks(request)
    if "gpus" in lacks:
        has = ", ".join(f"{count} x {name}" for name, count in Counter(map(_kind, inventory.known)).items())
        return f"it asks for {gpus(request.gpus * request.workers, request)}, the box has {has or 'no GPU'}"
    if "cpu" in lacks:
        return f"it asks for {cores(request.cpu_milli * request.workers)}, the box has {cores(inventory.cpu_milli)}"
    if "memory" in lacks:
        asked = size(request.memory_bytes * request.workers)
        return f"it asks for {asked} of memory, the box has {size(inventory.memory_bytes)}"
    return None


def shortage(lacks: Mapping[str, int], request: ResourceRequest) -> str:
    """Return the words for what `Room.lacks` found: "2 GPUs, 1.5 cores"."""
    words = []
    if "gpus" in lacks:
        words.append(gpus(lacks["gpus"], request))
    if "cpu" in lacks:
        words.append(cores(lacks["cpu"]))
    if "memory" in lacks:
        words.append(f"{size(lacks['memory'])} of memory")
    return ", ".join(words)


def gpus(count: int, request: ResourceRequest) -> str:
    """Return "2 GPUs", and how large they have to be where the request says so."""
    words = "1 GPU" if count == 1 else f"{count} GPUs"
    return f"{words} of {size(request.gpu_memory_bytes)} or more" if request.gpu_memory_bytes else words


def cores(milli: int) -> str:
    """Return "1.5 cores"."""
    return "1 core" if milli == 1000 else f"{milli / 1000:g} cores"


def size(amount_bytes: int) -> str:
    """Return "24 GiB", rounded to a tenth; what is below a tenth is told in MiB."""
    if amount_bytes < 2**30:
        return f"{max(1, round(amount_bytes / 2**20))} MiB"
    return f"{round(amount_bytes / 2**30, 1):g} GiB"


def short(uuid: str) -> str:
    """Return enough of a device's UUID for a person: "GPU-3f2a"."""
    return uuid[:8]


def _device_holders(request: ResourceRequest, devices: Iterable[Device]) -> list[str]:
    held: dict[str, list[str]] = {}
    for device in sorted(devices, key=_smallest_first):
        if device.holder is not None and device.memory_bytes >= request.gpu_memory_bytes:
            held.setdefault(device.holder, []).append(short(device.uuid))
    return [f"{who} holds {', '.join(uuids)}" for who, uuids in held.items()]


def _largest(holders: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(((who, held) for who, held in holders.items() if held), key=lambda each: (-each[1], each[0]))


def _kind(device: Device) -> str:
    return f"{device.model} ({size(device.memory_bytes)})"


def _memory(device: Device) -> int:
    return device.memory_bytes


def _smallest_first(device: Device) -> tuple[int, int, str]:
    return (device.memory_bytes, device.index, device.uuid)
